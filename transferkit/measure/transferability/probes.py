"""Baseline probes for measures: nearest neighbours and least squares, with leave-out accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.measure.knn import knn_accuracy
from transferkit.measure.ridge import ridge_paths
from transferkit.measure.transferability._inputs import check_features
from transferkit.records import Folds

__all__ = ["knn", "press"]


def knn(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    k: int = 5,
    folds: Folds | None = None,
) -> float:
    """Leave-one-out accuracy of a cosine-weighted vote of k nearest neighbours; higher is better.

    Safe for N < D and constant features. The only image of a class is not counted.

    Args:
        features: (N, D) float, one pooled vector per image; centred here.
        labels: (N,) int in [0, K); at least 2 classes present.
        k: Neighbours, >= 1; no more than N - 1 are used.
        folds: Which images are held back together; None: each image is independent of all others.

    Returns:
        Accuracy in [0, 1]; NaN if no image can be held back without its class.

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `k` is below 1.

    Comparable:
        It is an accuracy: between models on one task, and, relative to the chance level, across tasks.

    References:
        Renggli et al., CVPR 2022, for neighbours as a proxy of transferability. Deviation: cosine weights, and
        leave-one-out instead of a held-out split.

    Example:
        >>> knn(np.array([[0, 1.0], [0, 2], [1, 0], [2, 0]]), np.array([0, 0, 1, 1]), k=1)
        1.0
    """
    wide, labels = check_features(features, labels)
    if k < 1:
        raise OptionError(f"k must be >= 1, got {k!r}.")
    return knn_accuracy(wide.astype(np.float32), labels, k=k, folds=folds)


def press(
    features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], *, folds: Folds | None = None
) -> float:
    """Held-back accuracy of ridge regression on one-hot targets, at the best held-back penalty; higher is better.

    Exact: groups of images are left out one by one if classes are large, otherwise one of each class at a time. Safe
    for N < D and constant features. The only image of a class is not counted.

    Args:
        features: (N, D) float, one pooled vector per image; scaled to unit variance here.
        labels: (N,) int in [0, K); at least 2 classes present.
        folds: Which images are held back together; None: each image is independent of all others.

    Returns:
        Accuracy in [0, 1] at the penalty with the lowest held-back squared error; NaN if no image can be held back
        without its class.

    Raises:
        DataError: Features or labels cannot be used.

    Comparable:
        It is an accuracy: between models on one task, and, relative to the chance level, across tasks.

    References:
        Allen, Technometrics 1974. Deviations: squared error chooses the penalty, accuracy is returned; with small
        classes one image of each is left out together.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> press(rng.normal(size=(40, 3)) + 9 * labels[:, None], labels)
        1.0
    """
    wide, labels = check_features(features, labels)
    narrow = wide.astype(np.float32)
    whole = {"features": slice(0, narrow.shape[1])}
    # Without content ids, images are numbered by their features: their order must not matter.
    folds = Folds.alone(labels).numbered(np.lexsort((narrow[:, 0], narrow.sum(axis=1)))) if folds is None else folds
    order = folds.order
    narrow, labels = narrow[order], labels[order]
    path = ridge_paths(lambda: [narrow], labels, whole, classes=int(labels.max()) + 1, folds=folds.take(order))[
        "features"
    ]
    return float(path.accuracy[path.best])
