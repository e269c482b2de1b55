"""Few labels, or none: classes from attributes, unlabelled images, episodes."""
