"""Training scripts with a planted bug each, and without: what a training doctor is judged by."""
