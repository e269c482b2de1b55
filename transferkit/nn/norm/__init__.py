"""Normalisation layers that a pretrained network did not come with, and how they take the place of those it has."""
