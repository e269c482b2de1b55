"""Class weights, and when to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, unknown_name

__all__ = ["CLASS_WEIGHTS", "IMBALANCE", "choose_weighting", "class_weights"]

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
