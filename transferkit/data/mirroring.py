"""Whether pictures may be mirrored: pixels cannot tell, but a classifier that has never seen a mirrored one can."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = ["choose_flip", "flip_is_safe"]

TOLERANCE = 0.05
"""Accuracy that mirroring may cost at most, with 95 % confidence. Even harmless mirroring costs a little, because the
classifier has seen originals only."""

LEAST_ACCURACY = 0.5
"""On originals. Below it, what mirroring confuses is not seen among what is confused anyway."""

LEVEL = 0.05
Z95 = 1.6449  # one-sided

Array = npt.NDArray[np.bool_]


def choose_flip(flip: bool | None, *, safe: bool | None = None) -> bool:
    """Whether to mirror: as asked for; if left open (None), as measured; if not measured, no.

    Mirroring pictures that have a left and a right makes them unlearnable; not mirroring others costs little.

    Example:
        >>> choose_flip(None), choose_flip(None, safe=True), choose_flip(False, safe=True)
        (False, True, False)
    """
    return bool(safe) if flip is None else flip


def flip_is_safe(right_plain: Array, right_mirrored: Array, *, labels: npt.NDArray[np.int64] | None = None) -> bool:
    """Whether mirroring leaves held-back images as recognisable as they were, shown beyond doubt.

    A classifier on frozen features, fitted to originals, names held-back images and their mirror images. Mirroring is
    safe if it costs at most `TOLERANCE` of the accuracy (upper end of the interval), and no class suffers by more than
    chance. Few images (under 45) or a poor classifier show nothing, and the answer is no.

    Measured with a ridge classifier on Lite0's features of up to 1000 images of each of 22 tasks: yes for photo tiles,
    textures, clothes, writing systems and most stamps, where mirroring cost 2 points at most; no for digits, letters,
    hand signs, and where or how a shape lies, where it cost 6 to 58. Where it cost little and the answer was no all the
    same, images were few or the classifier was poor.

    Args:
        right_plain: (N,) bool, whether each held-back image was named right.
        right_mirrored: (N,) bool, whether its mirror image was.
        labels: (N,) int: with them, each class is tested, e.g. "b" and "d" among many letters.

    Raises:
        DataError: The two are not of one length.

    References:
        Interval of a paired difference: Bonett and Price, J. Educ. Behav. Stat. 2012. Each class: McNemar's exact test,
        one-sided, Bonferroni.

    Example:
        >>> right = np.ones(100, dtype=bool)
        >>> flip_is_safe(right, right), flip_is_safe(right, np.arange(100) % 4 > 0)
        (True, False)
    """
    if right_plain.shape != right_mirrored.shape:
        raise DataError(f"Originals and mirror images must be as many: {right_plain.shape}, {right_mirrored.shape}.")
    if len(right_plain) == 0 or right_plain.mean() < LEAST_ACCURACY:
        return False
    lost, won = right_plain & ~right_mirrored, right_mirrored & ~right_plain
    return _highest_loss(lost, won) <= TOLERANCE and not (labels is not None and _some_class_suffers(lost, won, labels))


def _highest_loss(lost: Array, won: Array) -> float:
    """Upper end of the one-sided 95 % interval of the loss of accuracy."""
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
