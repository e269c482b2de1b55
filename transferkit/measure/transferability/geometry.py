"""The shape of the classes in feature space: coding rate, overlap of Gaussians, agreement of distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, unknown_name
from transferkit.measure.transferability._inputs import (
    Floats,
    Labels,
    centre,
    check_features,
    class_means,
    principal_scores,
)

__all__ = ["COVARIANCES", "gbc", "parc", "transrate"]

COVARIANCES = ("spherical", "diagonal")

VARIANCE_FLOOR = 1e-6
"""Smallest variance of a class, as a share of the features' mean variance."""

MAX_PAIRED_IMAGES = 2000
"""Two million pairs: about a second."""


def transrate(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    distortion: float = 1e-4,
) -> float:
    """Reduction of the coding rate by knowing the class, R(Z) - R(Z|y); higher is better.

    Safe for N < D; constant features give 0. A class with one image has a coding rate of one direction, which
    is optimistic.

    Args:
        features: (N, D) float, one pooled vector per image.
        labels: (N,) int in [0, K); at least 2 classes present.
        distortion: Allowed mean squared error, > 0, as a share of the total variance.

    Returns:
        A value >= 0, in nats; 0 if every class has the second moments of all images.

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `distortion` is not above 0.

    Comparable:
        Between models with features of the same width on the same images and labels; with few images per class a
        wider model scores higher because of its width alone.

    References:
        Huang et al., ICML 2022. Deviations: features are scaled to total variance 1, so that their scale does not
        matter; classes are weighted by their share of the images (equally in the authors' code).

    Example:
        >>> same_twice = np.array([[1.0, 0], [0, 1], [-1, -1]] * 2)
        >>> transrate(same_twice, np.array([0, 0, 0, 1, 1, 1]))
        0.0
    """
    wide, labels = check_features(features, labels)
    if not distortion > 0:
        raise OptionError(f"distortion must be > 0, got {distortion!r}.")
    centred = centre(wide)
    total = (centred**2).mean(axis=0).sum()
    if total == 0:
        return 0.0
    unit = centred / np.sqrt(total)
    order = np.argsort(labels, kind="stable")
    groups = np.split(unit[order], np.cumsum(np.bincount(labels))[:-1])
    within = sum(len(group) * _coding_rate(group, distortion) for group in groups) / len(labels)
    # Concavity of log det makes the difference >= 0; rounding need not.
    return float(max(_coding_rate(unit, distortion) - within, 0.0))


def _coding_rate(rows: Floats, distortion: float) -> float:
    """1/2 log det (I + Z'Z / (n distortion)), from whichever of Z'Z and Z Z' is smaller."""
    moment = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    moment /= len(rows) * distortion
    moment[np.diag_indices_from(moment)] += 1
    return float(0.5 * np.linalg.slogdet(moment)[1])


def gbc(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    components: int = 64,
    covariance: str = "spherical",
) -> float:
    """Minus the overlap of all pairs of classes, each modelled as a Gaussian; higher is better.

    Safe for N < D; constant features give full overlap. A class with one image gets the mean variance within
    classes.

    Args:
        features: (N, D) float, one pooled vector per image.
        labels: (N,) int in [0, K); at least 2 classes present.
        components: Leading principal components kept, >= 1.
        covariance: "spherical", one variance per class, or "diagonal", one per class and component.

    Returns:
        Minus the sum of Bhattacharyya coefficients over ordered pairs, in [-K (K - 1), 0].

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `components` or `covariance` is invalid.

    Comparable:
        Between models on the same images and labels; it sums over pairs of classes, and far-apart classes all score
        near 0, where differences mean nothing.

    References:
        Pandy et al., CVPR 2022. Deviations: variances are floored at 1e-6 of the mean variance, and a class with one
        image gets the mean variance within classes.

    Example:
        >>> two_apart = np.array([[0.0, 1], [0, -1], [9, 1], [9, -1]])
        >>> gbc(two_apart, np.array([0, 0, 1, 1])) > gbc(two_apart, np.array([0, 1, 0, 1]))
        True
    """
    wide, labels = check_features(features, labels)
    if covariance not in COVARIANCES:
        raise OptionError(unknown_name("covariance", covariance, COVARIANCES))
    if components < 1:
        raise OptionError(f"components must be >= 1, got {components!r}.")
    scores = principal_scores(centre(wide))[:, :components]
    means = class_means(scores, labels)
    variances = _class_variances(scores, means, labels, spherical=covariance == "spherical")
    overlap = 0.0
    for mean, variance in zip(means, variances, strict=True):
        average = 0.5 * (variance + variances)
        distance = 0.125 * ((mean - means) ** 2 / average).sum(axis=1)
        distance += 0.5 * (np.log(average) - 0.5 * (np.log(variance) + np.log(variances))).sum(axis=1)
        overlap += np.exp(-distance).sum() - 1  # its overlap with itself
    return float(min(-overlap, 0.0)) + 0.0


def _class_variances(scores: Floats, means: Floats, labels: Labels, *, spherical: bool) -> Floats:
    """(K, P) variances above 0."""
    squares = (scores - means[labels]) ** 2
    variances = class_means(squares, labels)
    variances[np.bincount(labels) == 1] = squares.mean(axis=0)
    if spherical:
        variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape)
    floor = VARIANCE_FLOOR * (scores**2).mean() or 1.0
    return np.maximum(variances, floor)


def parc(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    max_images: int = MAX_PAIRED_IMAGES,
    seed: int = 0,
) -> float:
    """Rank correlation between the images' distances in feature space and those of their labels; higher is better.

    A distance is 1 minus Pearson's correlation over the features. Safe for N < D. An image whose features are all
    equal has correlation 0 with every other; a class with one image adds only pairs of different classes.

    Args:
        features: (N, D) float, one pooled vector per image; not centred.
        labels: (N,) int in [0, K); at least 2 classes present.
        max_images: Size of a random sample of more images, >= 2; pairs grow with the square.
        seed: Of that sample; up to `max_images` there is none, and the order of the images does not matter.

    Returns:
        Spearman's correlation in [-1, 1]; 0 if all distances, or all labels' distances, are equal.

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `max_images` is below 2.

    Comparable:
        Between models on the same images and labels; distances of labels are binary, so even perfect features stay
        below 1, by an amount that depends on the class sizes.

    References:
        Bolya et al., NeurIPS 2021. Deviations: a fraction, no percentage; no reduction of the features, which the
        paper studies as an option; a seeded sample of at most 2000 images.

    Example:
        >>> alike = np.array([[1.0, 0, 0], [2, 0, 0.1], [0, 1, 0.1], [0, 2, 0]])
        >>> parc(alike, np.array([0, 0, 1, 1])) > 0.7
        True
    """
    from scipy.stats import rankdata

    wide, labels = check_features(features, labels)
    if max_images < 2:
        raise OptionError(f"max_images must be >= 2, got {max_images!r}.")
    if len(labels) > max_images:
        drawn = np.random.default_rng(seed).choice(len(labels), max_images, replace=False)
        wide, labels = wide[drawn], labels[drawn]
    rows = centre(wide.T).T
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1)
    first, second = np.triu_indices(len(labels), k=1)
    distances = 1 - (rows @ rows.T)[first, second]
    # One-hot vectors of K classes correlate at 1 or at -1/(K - 1): their distances are binary.
    differ = (labels[first] != labels[second]).astype(np.float64)
    return _correlation(rankdata(distances), differ)


def _correlation(one: Floats, other: Floats) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one @ one) * (other @ other))
    return float(np.clip(one @ other / scale, -1, 1)) if scale > 0 else 0.0
