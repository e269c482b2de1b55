"""Distances between two sets of activations, from moments or samples.

Pure functions. nearness.py removes their bias and scales them to [0, 1]; callers choose what to compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError

__all__ = [
    "ChannelMoments",
    "channel_hellinger",
    "class_mean_similarity",
    "emd_of_class_means",
    "frechet_distance",
    "kl_by_channel",
    "mmd",
    "proxy_a_distance",
    "w2_by_channel",
]

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

SMALLEST_VARIANCE = 1e-5
"""Added to every variance, as in batch normalisation, so that a dead channel does not divide by zero."""


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and variance of every channel, like the running statistics of batch normalisation.

    Args:
        mean: (C,).
        variance: (C,) >= 0.
    """

    mean: Array
    variance: Array

    def __post_init__(self) -> None:
        if self.mean.shape != self.variance.shape or self.mean.ndim != 1:
            raise OptionError(f"Moments must be two (C,) arrays, got {self.mean.shape} and {self.variance.shape}.")
        if not (self.variance >= 0).all():
            raise OptionError("Variances must be >= 0.")

    @property
    def deviation(self) -> Array:
        """(C,) standard deviation, > 0."""
        return np.sqrt(self.variance + SMALLEST_VARIANCE)


def _same_channels(source: ChannelMoments, target: ChannelMoments) -> None:
    if source.mean.shape != target.mean.shape:
        raise OptionError(f"Both sides must have the same channels, got {source.mean.size} and {target.mean.size}.")


def w2_by_channel(source: ChannelMoments, target: ChannelMoments) -> Array:
    """Squared 2-Wasserstein distance of each channel, in units of the source's variance; lower is more alike.

    Args:
        source, target: Moments of the same C channels, each taken as Gaussian.

    Returns:
        (C,) values >= 0; 0 for equal moments. For n independent values per channel from the source itself they are
        1.5 / n on average: compare with that, not with 0.

    Raises:
        OptionError: If the channels differ.

    Example:
        >>> one, two = np.zeros(3), np.ones(3)
        >>> w2_by_channel(ChannelMoments(one, two), ChannelMoments(two, two)).round(4).tolist()
        [1.0, 1.0, 1.0]
    """
    _same_channels(source, target)
    shift = (target.mean - source.mean) / source.deviation
    stretch = target.deviation / source.deviation - 1
    return shift**2 + stretch**2


def kl_by_channel(source: ChannelMoments, target: ChannelMoments) -> Array:
    """(C,) Kullback-Leibler divergence of the target's from the source's Gaussian in each channel, in nats, >= 0."""
    _same_channels(source, target)
    ratio = (target.deviation / source.deviation) ** 2
    shift = (target.mean - source.mean) / source.deviation
    return 0.5 * (ratio + shift**2 - 1 - np.log(ratio))


def channel_hellinger(source: ChannelMoments, target: ChannelMoments) -> float:
    """Mean squared Hellinger distance per channel: 1 minus the overlap of the two Gaussians; lower is more alike.

    Symmetric, and bounded by 1 per channel, however small its variance in the source.

    Args:
        source, target: Moments of the same C channels.

    Returns:
        In [0, 1]; 0 for equal moments.

    Raises:
        OptionError: If the channels differ.

    Example:
        >>> one, two = np.zeros(3), np.ones(3)
        >>> round(channel_hellinger(ChannelMoments(one, two), ChannelMoments(two, two)), 4)
        0.1175
    """
    _same_channels(source, target)
    total = source.deviation**2 + target.deviation**2
    height = np.sqrt(2 * source.deviation * target.deviation / total)
    overlap = height * np.exp(-0.25 * (target.mean - source.mean) ** 2 / total)
    return float(np.mean(1 - overlap))


def _pair(first: Array, second: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise OptionError(f"Expected (N, D) and (M, D), got {first.shape} and {second.shape}.")
    if min(len(first), len(second)) < 2:
        raise OptionError(f"Both sides need at least 2 rows, got {len(first)} and {len(second)}.")
    return first.astype(np.float64), second.astype(np.float64)


def frechet_distance(first: Array, second: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to two samples; lower is more alike.

    Args:
        first: (N, D) float, N >= 2.
        second: (M, D) float, M >= 2.

    Returns:
        0 or more. Biased upwards at small N: compare only at equal N and M.

    Raises:
        OptionError: If the shapes do not fit.

    References:
        Heusel et al., NeurIPS 2017 (FID). Deviation: any features, not Inception's.

    Example:
        >>> sample = np.random.default_rng(0).normal(size=(50, 2))
        >>> round(frechet_distance(sample, sample + 3), 6)
        18.0
    """
    first, second = _pair(first, second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, two = _root_of_covariance(first), _root_of_covariance(second)
    # tr (AB)^1/2 is the sum of the singular values of A^1/2 B^1/2: real and stable also when A or B is singular.
    cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (one**2).sum() + (two**2).sum() - 2 * cross))


def _root_of_covariance(sample: Array) -> Array:
    """(min(N, D), D) R with R^T R the covariance: the factor of the QR decomposition, so never D x D for few rows."""
    return np.asarray(np.linalg.qr((sample - sample.mean(axis=0)) / np.sqrt(len(sample) - 1), mode="r"))


def _squared_distances(first: Array, second: Array) -> Array:
    norms = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :]
    return np.maximum(norms - 2 * first @ second.T, 0)


def mmd(first: Array, second: Array, *, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel; lower is more alike.

    Args:
        first: (N, D) float, N >= 2.
        second: (M, D) float, M >= 2.
        bandwidth: Of the kernel exp(-d^2 / (2 bandwidth^2)); None takes the median distance of the pooled rows.

    Returns:
        About 0, possibly negative, for samples of one distribution at any N and M; at most 2.

    Raises:
        OptionError: If the shapes do not fit, or the bandwidth is not > 0.

    References:
        Gretton et al., JMLR 2012, equation 3.
    """
    first, second = _pair(first, second)
    pooled = _squared_distances(np.concatenate([first, second]), np.concatenate([first, second]))
    if bandwidth is None:
        apart = pooled[np.triu_indices(len(pooled), k=1)]
        bandwidth = float(np.sqrt(np.median(apart))) or 1.0
    if not bandwidth > 0:
        raise OptionError(f"bandwidth must be > 0, got {bandwidth!r}.")
    kernel = np.exp(-pooled / (2 * bandwidth**2))
    n, m = len(first), len(second)
    within_first = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_second = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_first + within_second - 2 * kernel[:n, n:].mean())


def proxy_a_distance(first: Array, second: Array, *, seed: int = 0) -> float:
    """How well a linear classifier separates two samples on held-back rows; lower is more alike.

    Args:
        first: (N, D) float, N >= 2.
        second: (M, D) float, M >= 2.
        seed: Of the folds.

    Returns:
        2 (1 - 2 error), in [0, 2]: 0 is inseparable, 2 is perfectly separable. The error is balanced over the two
        sides; above chance it counts as chance.

    Raises:
        OptionError: If the shapes do not fit.

    References:
        Ben-David et al., NeurIPS 2006. Deviation: logistic regression on standardised features, five folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first, second = _pair(first, second)
    rows = np.concatenate([first, second])
    side = np.repeat([0, 1], [len(first), len(second)])
    folds = StratifiedKFold(min(5, len(first), len(second)), shuffle=True, random_state=seed)
    strength = 1 / rows.shape[1]  # a penalty in proportion to the width, for features of unit variance
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000))
    predicted = cross_val_predict(judge, rows, side, cv=folds)
    error = float(np.mean([np.mean(predicted[side == which] != which) for which in (0, 1)]))
    return 2 * (1 - 2 * min(error, 0.5))


def emd_of_class_means(first: Array, first_labels: Labels, second: Array, second_labels: Labels) -> float:
    """Earth mover's distance between two sets of class means, weighted by class size; lower is more alike.

    Args:
        first: (N, D) float.
        first_labels: (N,) int; their numbers need not agree with the other side's.
        second: (M, D) float.
        second_labels: (M,) int.

    Returns:
        0 or more, in units of the features: mean Euclidean distance over which class weight is moved.

    Raises:
        OptionError: If the shapes do not fit.

    References:
        Cui et al., CVPR 2018; `class_mean_similarity` is theirs. Exact, by linear programming.

    Example:
        >>> emd_of_class_means(np.array([[0.0], [1.0]]), np.array([0, 1]), np.array([[2.0], [3.0]]), np.array([0, 1]))
        2.0
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    first, second = _pair(first, second)
    if len(first_labels) != len(first) or len(second_labels) != len(second):
        raise OptionError(
            f"Every row needs a label, got {len(first_labels)} for {len(first)} rows and "
            f"{len(second_labels)} for {len(second)}."
        )
    one, supply = _class_means(first, first_labels)
    two, demand = _class_means(second, second_labels)
    cost = np.linalg.norm(one[:, None] - two[None], axis=2)
    leaves = kron(eye_array(len(one)), np.ones((1, len(two))))
    arrives = kron(np.ones((1, len(one))), eye_array(len(two)))
    # The last row is redundant; with it, rounding of the weights could make the program infeasible.
    balance = vstack([leaves, arrives]).tocsr()[:-1]
    found = linprog(cost.ravel(), A_eq=balance, b_eq=np.concatenate([supply, demand])[:-1], bounds=(0, None))
    return max(0.0, float(found.fun))


def _class_means(rows: Array, labels: Labels) -> tuple[Array, Array]:
    """(K, D) means and (K,) shares of the classes present."""
    classes, counts = np.unique(labels, return_counts=True)
    return np.stack([rows[labels == label].mean(axis=0) for label in classes]), counts / counts.sum()


CUI_GAMMA = 0.01
"""Of Cui et al., for the pooled features of their networks."""


def class_mean_similarity(distance: float, *, gamma: float = CUI_GAMMA) -> float:
    """exp(-gamma EMD), the domain similarity of Cui et al., CVPR 2018; in (0, 1], higher is more alike."""
    return float(np.exp(-gamma * distance))
