"""When labels are scarce: what a few images per class are worth, and a class added from a few."""
