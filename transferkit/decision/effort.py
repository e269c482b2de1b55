"""How long and in what portions to train, from the number of images alone."""

from __future__ import annotations

import math

__all__ = ["ENOUGH", "HELD_BACK", "TELLING", "usual_batch", "usual_epochs", "usual_folds", "usual_passes"]

BATCH_SIZES = ((5000, 64), (500, 32), (0, 16))
"""Least number of images, and images per step from there on: few images in large batches make too few steps."""

EPOCHS_AT, IMAGES_AT = 20, 150
"""Epochs at so many images; they shrink with the root of their number, so that steps grow with it. 150 hand signs
gained 2 points from 12 to 24 epochs (Lite0, 96 px, all layers)."""

EPOCHS = (8, 30)
"""Fewest and most."""

HELD_BACK = 0.2
"""Share of the images that a fold holds back."""

ENOUGH = 100
"""Held-back images that are enough: an accuracy near 90 % is then known to 3 points, one standard error."""

TELLING = 30
"""Held-back images that can tell the better of two learning rates: one fold of 150."""


def usual_batch(images: int) -> int:
    """Images per step.

    Example:
        >>> usual_batch(150), usual_batch(2000)
        (16, 32)
    """
    size = next(size for least, size in BATCH_SIZES if images >= least)
    return max(2, min(size, images))


def usual_epochs(images: int) -> int:
    """Passes over the images.

    Example:
        >>> usual_epochs(150), usual_epochs(1400)
        (20, 8)
    """
    least, most = EPOCHS
    return min(most, max(least, round(EPOCHS_AT * math.sqrt(IMAGES_AT / max(images, 1)))))


def usual_folds(images: int) -> int:
    """Times that another part of the images is held back, until that is `ENOUGH` together.

    Example:
        >>> usual_folds(150), usual_folds(1400)
        (4, 1)
    """
    most = round(1 / HELD_BACK)
    return min(most, max(1, math.ceil(ENOUGH / (HELD_BACK * max(images, 1)))))


def usual_passes(images: int) -> float:
    """Times that an epoch goes through all images in all folds together, the first of which are run at two rates.

    Example:
        >>> usual_passes(150), usual_passes(1400)
        (4.0, 1.6)
    """
    folds = usual_folds(images)
    compared = min(folds, math.ceil(TELLING / (HELD_BACK * max(images, 1))))
    return (1 - HELD_BACK) * (folds + compared)
