"""Separation of classes relative to the variance within classes: H-score and SFDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, eigvalsh
from scipy.special import log_softmax

from transferkit.core.errors import OptionError
from transferkit.measure.transferability._inputs import (
    Floats,
    Labels,
    centre,
    check_features,
    class_means,
    principal_scores,
)

__all__ = ["h_score", "sfda"]

ADAPTIVITY = 5.0
"""Rate at which SFDA's regularisation falls with the largest within-class variance; 5 in the authors' code."""

SPREAD_FLOOR = 1e-6
"""Smallest variance within classes, as a share of all: classes of one image each, or of copies, have none."""


def h_score(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    shrinkage: float | None = None,
) -> float:
    """Share of the features' variation between classes, tr(Cov(f)^-1 Cov(E[f|y])); higher is better.

    Safe for N < D and constant features. The mean of a class with one image is that image, which is optimistic.

    Args:
        features: (N, D) float, one pooled vector per image.
        labels: (N,) int in [0, K); at least 2 classes present.
        shrinkage: Weight of the spherical covariance in [0, 1]; None takes Ledoit and Wolf's estimate. At 0 the
            pseudo-inverse is used, invertible linear maps of the features change nothing, and N <= D gives K - 1
            whatever the labels.

    Returns:
        A value in [0, K - 1].

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `shrinkage` is outside [0, 1].

    Comparable:
        Between models on the same images and labels; its maximum K - 1 depends on the number of classes, so it has no
        threshold.

    References:
        Bao et al., ICIP 2019; shrinkage of both covariances: Ibrahim et al., arXiv 2110.06893, 2021. Deviation: the
        trace is taken in principal coordinates, which is the same number.

    Example:
        >>> two_apart = np.array([[0.0, 1], [0, -1], [9, 1], [9, -1]])
        >>> round(h_score(two_apart, np.array([0, 0, 1, 1]), shrinkage=0), 6)
        1.0
    """
    wide, labels = check_features(features, labels)
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise OptionError(f"shrinkage must be None or in [0, 1], got {shrinkage!r}.")
    scores = principal_scores(centre(wide))
    variance = (scores**2).mean(axis=0)
    if variance[0] == 0:
        return 0.0
    alpha = _ledoit_wolf(scores, wide.shape[1]) if shrinkage is None else shrinkage
    # Class means are in the span of the images, so the D - R directions without variation add nothing to the trace.
    shrunk = (1 - alpha) * variance + alpha * variance.sum() / wide.shape[1]
    between = np.bincount(labels) @ class_means(scores, labels) ** 2 / len(labels)
    return float((1 - alpha) * (between / shrunk).sum())


def _ledoit_wolf(scores: Floats, width: int) -> float:
    """Ledoit and Wolf's weight of the spherical covariance, in [0, 1]; a rotation does not change it.

    Args:
        scores: (N, R) principal coordinates.
        width: D of the features that they come from.
    """
    variance = (scores**2).mean(axis=0)
    squared = (variance**2).sum()  # Frobenius norm of the covariance, squared
    distance = squared - variance.sum() ** 2 / width
    noise = (((scores**2).sum(axis=1) ** 2).mean() - squared) / len(scores)
    return float(np.clip(noise / distance, 0, 1)) if distance > 0 else 0.0


def sfda(features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Log-probability of the true class under a Fisher discriminant with self-challenging; higher is better.

    A regularised discriminant gives each image its probability p of the right class; the image is then mixed with the
    mean of all other classes, p to 1 - p, and a second discriminant is fitted to and scored on the mixtures.
    Safe for N < D and constant features. A class with one image adds nothing to the spread within classes.

    Args:
        features: (N, D) float, one pooled vector per image.
        labels: (N,) int in [0, K); at least 2 classes present.

    Returns:
        Mean log-probability in nats, <= 0; that of the class shares alone if the features are constant.

    Raises:
        DataError: Features or labels cannot be used.

    Comparable:
        Between models on the same images and labels only; it is scored on the images it was fitted to, so it is no
        estimate of held-out likelihood.

    References:
        Shao et al., ECCV 2022. Deviations: lambda = exp(-5 v), with v the largest variance within classes as a share
        of the total variance, and the identity is scaled by the mean variance within classes over the directions that
        vary, so that the features' unit does not matter (the paper takes both in raw units); p enters the mixing
        unchanged (the authors' code applies a second softmax); the score is the mean log-probability (their code
        averages probabilities).

    Example:
        >>> two_apart = np.array([[0.0, 1], [0, -1], [9, 1], [9, -1]])
        >>> sfda(two_apart, np.array([0, 0, 1, 1])) > sfda(two_apart, np.array([0, 1, 1, 0]))
        True
    """
    wide, labels = check_features(features, labels)
    scores = principal_scores(centre(wide))
    regularisation = _regularisation(scores, labels)
    rows = np.arange(len(labels))
    truth = np.exp(_discriminate(scores, labels, regularisation)[rows, labels])[:, None]
    mixed = truth * scores + (1 - truth) * _means_of_others(scores, labels)[labels]
    return float(_discriminate(mixed, labels, regularisation)[rows, labels].mean())


def _within(scores: Floats, labels: Labels) -> Floats:
    """(R, R) covariance within classes."""
    residual = scores - class_means(scores, labels)[labels]
    return residual.T @ residual / len(labels)


def _regularisation(scores: Floats, labels: Labels) -> float:
    total = (scores**2).mean(axis=0).sum()
    if total == 0:
        return 1.0
    last = scores.shape[1] - 1
    largest = eigvalsh(_within(scores, labels), subset_by_index=[last, last])[0]
    return float(np.exp(-ADAPTIVITY * max(largest, 0) / total))


def _means_of_others(scores: Floats, labels: Labels) -> Floats:
    """(K, R) mean over the images outside each class."""
    counts = np.bincount(labels)[:, None]
    sums = class_means(scores, labels) * counts
    return (sums.sum(axis=0) - sums) / (len(labels) - counts)


def _discriminate(scores: Floats, labels: Labels, regularisation: float) -> Floats:
    """(N, K) log-probabilities of a linear discriminant, equal to Fisher's projection followed by Bayes' rule."""
    means = class_means(scores, labels)
    within = _within(scores, labels)
    # Per direction that varies, not per feature: with D >> N the latter is almost zero, and every image of
    # every backbone is classified correctly with probability 1.
    target = max(np.trace(within), SPREAD_FLOOR * scores.var(axis=0).sum()) / scores.shape[1] or 1.0
    covariance = (1 - regularisation) * within
    covariance[np.diag_indices_from(covariance)] += regularisation * target
    directions = cho_solve(cho_factor(covariance, overwrite_a=True), means.T)  # (R, K)
    offset = np.log(np.bincount(labels) / len(labels)) - 0.5 * (means.T * directions).sum(axis=0)
    return np.asarray(log_softmax(scores @ directions + offset, axis=1), dtype=np.float64)
