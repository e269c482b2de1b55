"""Default batch size, epochs and folds, from the number of images alone."""

from __future__ import annotations

import math

__all__ = [
    "MIN_COMPARED_IMAGES",
    "MIN_VAL_IMAGES",
    "RACE_SHARE",
    "VAL_SHARE",
    "default_batch_size",
    "default_epochs",
    "default_folds",
    "default_passes",
    "refits",
    "training_seconds",
    "trains_all_stages",
]

BATCH_SIZES = ((5000, 64), (2000, 32), (0, 16))
"""(Smallest number of images, batch size): few images in large batches make too few steps. On 580 letters of 29
typefaces `lp_ft` had 49 and 53 % test accuracy in batches of 32, 57 % in batches of 16."""

EPOCHS_AT, IMAGES_AT = 16, 150
"""`EPOCHS_AT` epochs at `IMAGES_AT` images, scaled with 1 / sqrt(images), so that the number of steps grows with
sqrt(images). 150 hand signs gained 2 points from 12 to 24 epochs (Lite0, 96 px, all layers)."""

EPOCHS = (8, 30)
"""Minimum and maximum number of epochs."""

VAL_SHARE = 0.2
"""Share of the images that a fold holds back for validation."""

MIN_VAL_IMAGES = 100
"""Images of a validation split that suffice: an accuracy near 90 % then has a standard error of 3 points."""

ONE_FOLD_FROM = 300
"""Images from which one fold suffices: it holds back 60."""

FOLDS = (2, 5)
"""Minimum and maximum number of folds below that."""

HELD_BACK = 40
"""Images that these folds hold back together, if there are enough. With 40 to 80 training images, four folds and a
refit instead of two that are averaged gained 4 points on seven tasks, in twice the time (Lite0, 96 px)."""

AVERAGED_FOLDS = 2
"""Folds whose networks are averaged instead of training one more on all images. More would be slow to predict with."""

PARTIAL = "lp_ft"
"""The strategy that leaves the first stages frozen where there are few images."""

ALL_STAGES_FROM = 500
"""Images from which `lp_ft` trains the first stages too. With fewer, that takes twice the time for about a point."""

RACE_SHARE = 1 / 2
"""Mean share of the epochs for which the learning rate that loses the comparison is trained."""

LOOP_COST = 1.15
"""Time of an epoch relative to that of its training steps: validation, reading and augmenting images, averaging."""

FITS_SECONDS = 6.0
"""Seconds to set up and resume all fits of a run. With this, 27 and 237 seconds are predicted of runs that took 29 and
236 (`lp_ft` on 150 and 1,402 hand signs); Lite0, 96 px, 2 cores."""

MIN_COMPARED_IMAGES = 30
"""Validation images needed to compare two learning rates: one fold of 150."""


def default_batch_size(images: int) -> int:
    """Batch size for a number of training images.

    Example:
        >>> default_batch_size(150), default_batch_size(2000)
        (16, 32)
    """
    size = next(size for least, size in BATCH_SIZES if images >= least)
    return max(2, min(size, images))


def default_epochs(images: int) -> int:
    """Number of epochs for a number of training images.

    Example:
        >>> default_epochs(150), default_epochs(1400)
        (16, 8)
    """
    least, most = EPOCHS
    return min(most, max(least, round(EPOCHS_AT * math.sqrt(IMAGES_AT / max(images, 1)))))


def default_folds(images: int) -> int:
    """Number of folds.

    Example:
        >>> default_folds(50), default_folds(150), default_folds(1400)
        (4, 2, 1)
    """
    if images >= ONE_FOLD_FROM:
        return 1
    least, most = FOLDS
    return min(most, max(least, math.ceil(HELD_BACK / (VAL_SHARE * max(images, 1)))))


def refits(folds: int) -> bool:
    """Whether the network is trained once more, on all images, after so many folds.

    Example:
        >>> refits(1), refits(2), refits(5)
        (True, False, True)
    """
    return folds != AVERAGED_FOLDS


def trains_all_stages(strategy: str, images: int) -> bool:
    """Whether a strategy that leaves the first stages frozen trains them too, with so many images.

    Example:
        >>> trains_all_stages("lp_ft", 150), trains_all_stages("lp_ft", 1400), trains_all_stages("few_layers", 1400)
        (False, True, False)
    """
    return strategy == PARTIAL and images >= ALL_STAGES_FROM


def default_passes(images: int) -> float:
    """Cost of one epoch of cross-validation, in passes over all images; the first folds begin at two learning rates.

    Example:
        >>> default_passes(150), round(default_passes(1400), 2)
        (2.0, 1.2)
    """
    folds = default_folds(images)
    compared = min(folds, math.ceil(MIN_COMPARED_IMAGES / (VAL_SHARE * max(images, 1))))
    return (1 - VAL_SHARE) * (folds + RACE_SHARE * compared)


def training_seconds(step_seconds: float, *, images: int, epochs: int, passes: float) -> float:
    """Seconds to train all fits of a run.

    Args:
        step_seconds: Of an image in a training step, as measured.
        images: N to train on.
        epochs: Of each fit.
        passes: Over all images in an epoch, of all fits together: `default_passes`, and 1 for a refit.

    Example:
        >>> round(training_seconds(0.01, images=100, epochs=10, passes=2.0))
        29
    """
    return FITS_SECONDS + LOOP_COST * step_seconds * passes * epochs * images
