"""k-nearest-neighbour accuracy: the sanity check for the probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.records import Folds

__all__ = ["NeighbourHits", "knn_accuracy", "knn_hits"]

CHUNK = 1024
"""Rows whose similarities are in memory at once: 1024 x N float32."""


def knn_accuracy(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, k: int = 5, folds: Folds | None = None
) -> float:
    """Leave-one-out accuracy of a cosine-weighted k-nearest-neighbour vote; higher is better.

    Leaves out whole groups: images of the same group are no neighbours.

    Args:
        features: (N, D) float; centred here.
        labels: (N,) int in [0, K).
        k: Neighbours, >= 1; limited to the images in other groups.
        folds: Which images are held back together; None: each image is independent of all others.

    Returns:
        Accuracy in [0, 1]; NaN if no image can be held back without losing its class.

    Example:
        >>> two = np.array([[0, 1], [0, 2], [1, 0], [2, 0]], dtype=np.float32)
        >>> knn_accuracy(two, np.array([0, 0, 1, 1]), k=1)
        1.0
    """
    return knn_hits(features, labels, k=k, folds=folds).accuracy


@dataclass(frozen=True)
class NeighbourHits:
    """Which images are classified correctly by their neighbours.

    Args:
        right: (N,) bool.
        counting: (N,) weight of each image.
    """

    right: npt.NDArray[np.bool_]
    counting: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """In [0, 1]; NaN if all weights are 0."""
        images = float(self.counting.sum())
        return float(self.right @ self.counting) / images if images else float("nan")


def knn_hits(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, k: int = 5, folds: Folds | None = None
) -> NeighbourHits:
    """Per-image results behind `knn_accuracy`; the same arguments."""
    folds = Folds.alone(labels) if folds is None else folds
    unit = features - features.mean(axis=0)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    k = min(k, len(labels) - 1)
    classes = int(labels.max()) + 1
    right = np.zeros(len(labels), dtype=bool)
    for start in range(0, len(labels), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(labels)))
        similarity = unit[rows] @ unit.T
        similarity[folds.groups[rows][:, None] == folds.groups[None, :]] = -np.inf
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.take_along_axis(similarity, near, axis=1) + 1.0
        weight[np.isneginf(weight)] = 0  # too few images in other groups
        votes = np.zeros((len(rows), classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], labels[near]), weight)
        right[rows] = (votes.argmax(axis=1) == labels[rows]) & (votes.max(axis=1) > 0)
    return NeighbourHits(right, folds.counting(folds.groups))
