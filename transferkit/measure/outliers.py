"""Images that are unlike all others: strange pictures, wrong folders, broken files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError
from transferkit.measure.neighbours import check_features

__all__ = ["Outliers", "find_outliers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NEIGHBOURS = 5
DIRECTIONS = 64
"""Principal directions that are compared. Foreign images stood out as well in 64 as in 256 on ten tasks, and a third as
many images of their own were far off."""

FREEDOM = 6
"""Degrees of freedom of the t distribution of the deviations: ten tasks without known outliers had heavier tails than a
normal distribution, up to 8 or 10 robust standard deviations."""

PRIOR_IMAGES = 20
"""As how many images of a class the spread of all classes counts in that of one."""

FEWEST = 20
"""Images below which nothing is usual."""

CHUNK_BYTES = 1 << 24
TO_DEVIATION = 1 / 0.6745  # of the median of absolute values of a normal distribution


@dataclass(frozen=True)
class Outliers:
    """How unusual every image is.

    Args:
        p_values: (N,) in [0, 1]: chance that an image of its class is as far from all others.
        marked: (N,) bool: the images to look at; about `share` of them are expected to be ordinary.
    """

    p_values: Floats
    marked: npt.NDArray[np.bool_]

    @property
    def order(self) -> Ints:
        """(N,) indices, least usual first."""
        return np.argsort(self.p_values, kind="stable")


def find_outliers(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, share: float = 0.05
) -> Outliers:
    """Compare the distance to the nearest images, of any class, with what is usual in the image's own class.

    An image that lies among those of another class is no outlier; its label may be wrong.

    Args:
        features: (N, D) float, columns by importance, as from `compress_features`; the first 64 are used.
        labels: (N,) int, >= 0.
        share: Expected share of ordinary images among those marked, in (0, 1).

    Returns:
        With fewer than 20 images nothing is marked, and all p-values are 1.

    Raises:
        DataError: The features are not a finite (N, D) table, or labels do not fit.
        OptionError: `share` is out of its range.

    References:
        Benjamini and Hochberg, JRSS B 1995, for the cut.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.normal(size=(200, 10))
        >>> rows[17] += 9
        >>> np.flatnonzero(find_outliers(rows, np.arange(200) % 2).marked).tolist()
        [17]
    """
    check_features(features)
    labels = np.asarray(labels)
    if labels.shape != (len(features),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"Expected {len(features)} labels that are integers >= 0, got shape {labels.shape}.")
    if not 0 < share < 1:
        raise OptionError(f"share must be in (0, 1), got {share!r}.")
    if len(features) < FEWEST:
        return Outliers(np.ones(len(features)), np.zeros(len(features), dtype=bool))
    from scipy.stats import t as student

    p_values = student.sf(_deviations(np.log(_mean_distance(features[:, :DIRECTIONS])), labels), FREEDOM)
    ranked = np.sort(p_values)
    passing = np.flatnonzero(ranked <= share * np.arange(1, len(ranked) + 1) / len(ranked))
    cut = ranked[passing[-1]] if len(passing) else -1.0
    return Outliers(p_values, p_values <= cut)


def _mean_distance(features: npt.NDArray[np.floating]) -> Floats:
    """(N,) mean Euclidean distance to the nearest other images, > 0."""
    rows = features.astype(np.float32)
    rows -= rows.mean(axis=0)
    squares = np.einsum("nd,nd->n", rows, rows)
    images, found = len(rows), np.empty(len(rows))
    step = max(1, CHUNK_BYTES // (4 * images))
    for start in range(0, images, step):
        chunk = np.arange(start, min(start + step, images))
        distance = squares[chunk, None] + squares - 2 * rows[chunk] @ rows.T
        distance[np.arange(len(chunk)), chunk] = np.inf
        near = np.partition(distance, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        found[chunk] = np.sqrt(np.maximum(near, 0)).mean(axis=1)
    return np.maximum(found, 1e-6 * max(float(found.max()), 1e-12))


def _deviations(values: Floats, labels: npt.NDArray[np.integer]) -> Floats:
    """(N,) distance from the class median in robust standard deviations; classes of few images borrow from all."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    codes = codes.reshape(-1)
    own = np.array([np.median(values[codes == code]) for code in range(len(counts))])
    weight = counts / (counts + PRIOR_IMAGES)
    middles = weight * own + (1 - weight) * np.median(values)
    left = values - middles[codes]
    # Far above the median alone matters, and the upper half may be wider than the lower.
    above = left[left > 0]
    usual = float(np.median(above)) * TO_DEVIATION if len(above) else 0.0
    spreads = np.array([np.median(np.abs(left[codes == code])) for code in range(len(counts))]) * TO_DEVIATION
    return left / np.maximum(weight * spreads + (1 - weight) * usual, max(0.01, 1e-3 * usual))[codes]
