"""Helpers of all measures: checked arguments, centred features, principal coordinates, class means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from transferkit.core.errors import DataError

__all__ = ["Floats", "Labels", "centre", "check_features", "check_probabilities", "class_means", "principal_scores"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
_Checked = tuple[Floats, Labels]

ROUNDING = 1e-10
"""Deviations below this share of a feature's magnitude are rounding errors of its mean, not variation."""

SUM_TOLERANCE = 1e-3
"""Half-precision softmax outputs sum to 1 within this."""


def check_features(features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> _Checked:
    """Features in double precision, labels renumbered without gaps.

    Raises:
        DataError: Shapes do not fit, values are not finite, or fewer than 2 classes are present.
    """
    wide = np.asarray(features, dtype=np.float64)
    if wide.ndim != 2 or wide.shape[1] == 0:
        raise DataError(f"Features must be (N, D) with D >= 1, got shape {wide.shape}. Pool every image to one vector.")
    if not np.isfinite(wide).all():
        rows = int((~np.isfinite(wide)).any(axis=1).sum())
        raise DataError(f"Features must be finite; {rows} of {len(wide)} images have NaN or infinite values.")
    return wide, _check_labels(labels, len(wide))


def check_probabilities(probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> _Checked:
    """Probabilities in double precision with rows that sum to 1, labels renumbered without gaps.

    Raises:
        DataError: Shapes do not fit, rows are not probabilities, or fewer than 2 classes are present.
    """
    wide = np.asarray(probabilities, dtype=np.float64)
    if wide.ndim != 2 or wide.shape[1] == 0:
        raise DataError(f"Source probabilities must be (N, Z) with Z >= 1, got shape {wide.shape}.")
    sums = wide.sum(axis=1)
    if not (np.isfinite(wide).all() and (wide >= 0).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all()):
        raise DataError(
            "Source probabilities must be >= 0 with rows that sum to 1. Pass logits through a softmax first."
        )
    return wide / sums[:, None], _check_labels(labels, len(wide))


def _check_labels(labels: npt.NDArray[np.integer[Any]], images: int) -> Labels:
    given = np.asarray(labels)
    if given.shape != (images,):
        raise DataError(f"Labels must be ({images},), one per image, got shape {given.shape}.")
    if not np.issubdtype(given.dtype, np.integer):
        raise DataError(f"Labels must be integers in [0, K), got {given.dtype}.")
    present, closed_up = np.unique(given, return_inverse=True)
    if len(present) < 2:
        raise DataError(f"Expected labels of at least 2 classes, got {len(present)}.")
    return np.asarray(closed_up, dtype=np.int64)


def class_means(values: Floats, labels: Labels) -> Floats:
    """(K, ...) mean over the images of each class; every number in [0, K) must occur."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(values[order], starts, axis=0) / counts[:, None]


def centre(features: Floats) -> Floats:
    """(N, D) minus the mean; a constant feature becomes exactly 0, however large it was."""
    centred = features - features.mean(axis=0)
    constant = np.abs(centred).max(axis=0) <= ROUNDING * np.abs(features).max(axis=0)
    centred[:, constant] = 0
    return centred


def principal_scores(rows: Floats) -> Floats:
    """(N, R) coordinates along the principal directions, strongest first: same distances, 1 <= R <= min(N, D).

    Directions without variation are dropped; if all rows are zero, one column of zeros remains. Computed from the
    smaller
    of the two Gram matrices: three times as fast as a singular value decomposition; it loses directions weaker than
        1e-6
    of the strongest, which are below the rounding of single-precision features.
    """
    dual = rows.shape[0] <= rows.shape[1]
    values, vectors = eigh(rows @ rows.T if dual else rows.T @ rows, driver="evd", overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[0] * max(rows.shape) * np.finfo(np.float64).eps
    rank = max(int((values > noise).sum()), 1)
    if dual:
        return np.asarray(vectors[:, :rank] * np.sqrt(np.maximum(values[:rank], 0)), dtype=np.float64)
    return np.asarray(rows @ vectors[:, :rank], dtype=np.float64)
