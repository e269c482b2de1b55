"""Few labels, or none: a few images per class, classes from attributes, unlabelled images, classes added later."""
