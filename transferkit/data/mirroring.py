"""Whether horizontal flips are safe, tested with a classifier that was not trained on flipped images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = ["choose_flip", "flip_is_safe", "flip_keeps_targets"]

TOLERANCE = 0.05
"""Maximum loss of accuracy by flipping, with 95 % confidence. Even harmless flips cost a little, because the classifier
was trained on originals only."""

LEAST_ACCURACY = 0.5
"""Minimum accuracy on originals: below it, errors caused by flipping are lost among the others."""

LEAST_IMAGES = 45
"""Held-back images below which nothing is established."""

LEVEL = 0.05
Z95 = 1.6449  # one-sided

Array = npt.NDArray[np.bool_]


def choose_flip(flip: bool | None, *, safe: bool | None = None) -> bool:
    """Whether to flip: as requested; if None, as measured; if not measured, no.

    Flipping images in which left and right matter makes them unlearnable; not flipping others costs little.

    Example:
        >>> choose_flip(None), choose_flip(None, safe=True), choose_flip(False, safe=True)
        (False, True, False)
    """
    return bool(safe) if flip is None else flip


def flip_is_safe(correct_plain: Array, correct_flipped: Array, *, labels: npt.NDArray[np.int64] | None = None) -> bool:
    """Whether it is statistically established that held-back images are classified as well when flipped.

    A classifier on frozen features, fitted to originals, classifies held-back images and their flipped versions.
    Flipping is safe if it costs at most `TOLERANCE` of the accuracy (upper end of the interval), and no class loses
    significantly. With few images (under 45) or a poor classifier nothing is established, and the answer is no.

    Measured with a ridge classifier on Lite0's features of up to 1000 images of each of 22 tasks: yes for photo tiles,
    textures, clothes, writing systems and most stamps, where flipping cost 2 points at most; no for digits, letters,
    hand signs, and position or orientation of a shape, where it cost 6 to 58. In tasks where it cost little and the
    answer was still no, images were few or the classifier was poor.

    Args:
        correct_plain: (N,) bool, whether each held-back image was classified correctly.
        correct_flipped: (N,) bool, whether its flipped version was.
        labels: (N,) int: if given, each class is tested too, e.g. "b" and "d" among many letters.

    Raises:
        DataError: The two differ in length.

    References:
        Interval of a paired difference: Bonett and Price, J. Educ. Behav. Stat. 2012. Per class: McNemar's exact test,
        one-sided, Bonferroni.

    Example:
        >>> right = np.ones(100, dtype=bool)
        >>> flip_is_safe(right, right), flip_is_safe(right, np.arange(100) % 4 > 0)
        (True, False)
    """
    if correct_plain.shape != correct_flipped.shape:
        raise DataError(f"Expected equal shapes, got {correct_plain.shape} and {correct_flipped.shape}.")
    if len(correct_plain) == 0 or correct_plain.mean() < LEAST_ACCURACY:
        return False
    lost, won = correct_plain & ~correct_flipped, correct_flipped & ~correct_plain
    return _highest_loss(lost, won) <= TOLERANCE and not (labels is not None and _some_class_suffers(lost, won, labels))


def _highest_loss(lost: Array, won: Array) -> float:
    """Upper end of the one-sided 95 % interval of the accuracy loss."""
    total = len(lost) + 2
    less, more = (lost.sum() + 1) / total, (won.sum() + 1) / total
    return float(less - more + Z95 * math.sqrt((less + more - (less - more) ** 2) / total))


def _some_class_suffers(lost: Array, won: Array, labels: npt.NDArray[np.int64]) -> bool:
    from scipy.stats import binom

    classes = np.unique(labels)
    losses = np.array([lost[labels == label].sum() for label in classes])
    changes = losses + np.array([won[labels == label].sum() for label in classes])
    chance = binom.sf(losses - 1, changes, 0.5)
    return bool((chance < LEVEL / len(classes)).any())


LEAST_EXPLAINED = 0.3
"""Share of the variance of labels or numbers that a probe must explain on originals: as `LEAST_ACCURACY`."""


def flip_keeps_targets(plain: npt.NDArray[np.floating[Any]], flipped: npt.NDArray[np.floating[Any]]) -> bool:
    """`flip_is_safe` for labels and numbers: whether it is established that flipping costs at most `TOLERANCE` of their
    variance, of all together and of each of them within its own uncertainty.

    Args:
        plain: (N, T) squared errors of held-back images, in units of the variance.
        flipped: (N, T) of their flipped versions.

    Example:
        >>> errors = np.full((100, 1), 0.2)
        >>> flip_keeps_targets(errors, errors), flip_keeps_targets(errors, errors + 0.3)
        (True, False)
    """
    from scipy.stats import norm

    images, targets = plain.shape
    if images < LEAST_IMAGES or float(plain.mean()) > 1 - LEAST_EXPLAINED:
        return False
    loss = flipped - plain
    error = loss.std(axis=0) / math.sqrt(images)
    whole = loss.mean(axis=1)
    highest = float(whole.mean()) + Z95 * float(whole.std()) / math.sqrt(images)
    bound = norm.isf(LEVEL / targets)
    suffers = (loss.mean(axis=0) > bound * error) & (loss.mean(axis=0) > TOLERANCE / 2)
    return highest <= TOLERANCE and not bool(suffers.any())
