"""Class weights, and when to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, unknown_name
from transferkit.records import Folds

__all__ = ["CLASS_WEIGHTS", "IMBALANCE", "choose_weighting", "class_weights", "image_weights"]

CLASS_WEIGHTS = ("none", "balanced", "auto")

IMBALANCE = 2.0
"""Largest class over smallest above which "auto" weights classes. Logistic heads on hand signs (Lite0 features) and
digits (pixels), half of the classes subsampled: above 2 weights increased mean recall by 1.4 to 20 points, up to 2 by
at most 2.1; accuracy on the imbalanced mix changed by -0.3 to +2.0 points."""


def choose_weighting(counts: Sequence[int] | npt.NDArray[Any], weighting: str) -> str:
    """The weighting in use: "none" or "balanced" as requested; "auto" decides by the imbalance of the counts.

    Args:
        counts: Images of each class; empty classes are ignored.
        weighting: One of `CLASS_WEIGHTS`.

    Example:
        >>> choose_weighting([30, 10], "auto"), choose_weighting([15, 10], "auto")
        ('balanced', 'none')
    """
    if weighting not in CLASS_WEIGHTS:
        raise OptionError(unknown_name("class_weight", weighting, CLASS_WEIGHTS))
    if weighting != "auto":
        return weighting
    present = np.asarray(counts)[np.asarray(counts) > 0]
    return "balanced" if len(present) and present.max() > IMBALANCE * present.min() else "none"


def class_weights(labels: npt.NDArray[np.int64], scheme: str) -> npt.NDArray[np.float64] | None:
    """(N,) weight per image: None for "none"; for "balanced" with equal total weight per class; for "auto" either.

    Raises:
        OptionError: If the scheme is unknown.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), "balanced").round(2).tolist()
        [0.67, 0.67, 0.67, 2.0]
    """
    counts = np.bincount(labels)
    if choose_weighting(counts, scheme) == "none":
        return None
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def image_weights(folds: Folds, scheme: str) -> npt.NDArray[np.float64] | None:
    """(N,) `class_weights` of images with one class each; None where they have several labels, or numbers.

    A least-squares fit of several labels has one weight per image, not one per label: "balanced" there is a matter of
    the calibration of each label. It does not change which images are likelier to have it.

    Raises:
        OptionError: If the scheme is unknown, or "balanced" for numbers.
    """
    if folds.targets is None:
        return class_weights(folds.labels, scheme)
    if choose_weighting([], scheme) == "balanced" and not folds.targets.is_labels:
        raise OptionError("Numbers have no classes to balance: leave class_weight out.")
    return None
