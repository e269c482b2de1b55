"""k nearest neighbours: the sanity row beside every probe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["knn_accuracy"]

CHUNK = 1024
"""Rows whose similarities are held at once: 1024 x N float32."""


def knn_accuracy(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, k: int = 5) -> float:
    """Leave-one-out accuracy of a cosine-weighted k-nearest-neighbour vote; higher is better.

    Args:
        features: (N, D) float; centred here.
        labels: (N,) int in [0, K).
        k: Neighbours, >= 1; no more than N - 1 are used.

    Returns:
        Accuracy in [0, 1].

    Example:
        >>> two = np.array([[0, 1], [0, 2], [1, 0], [2, 0]], dtype=np.float32)
        >>> knn_accuracy(two, np.array([0, 0, 1, 1]), k=1)
        1.0
    """
    unit = features - features.mean(axis=0)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    k = min(k, len(labels) - 1)
    classes = int(labels.max()) + 1
    correct = 0
    for start in range(0, len(labels), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(labels)))
        similarity = unit[rows] @ unit.T
        similarity[rows - start, rows] = -np.inf
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.take_along_axis(similarity, near, axis=1) + 1.0
        votes = np.zeros((len(rows), classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], labels[near]), weight)
        correct += int((votes.argmax(axis=1) == labels[rows]).sum())
    return correct / len(labels)
