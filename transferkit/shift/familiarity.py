"""How far an image is from all training images, with a p-value: pure, arrays in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Familiarity", "fit_familiarity"]

Floats = npt.NDArray[np.float64]

NEIGHBOURS = 3
COMPONENTS = 64


@dataclass(frozen=True)
class Familiarity:
    """Distances to training images, calibrated on the training images themselves.

    Args:
        mean: (D,) of the features.
        basis: (D, d) whitening directions.
        points: (M, d) training images.
        known: (M,) sorted distances of these, each to those of other groups.
    """

    mean: Floats
    basis: Floats
    points: Floats
    known: Floats

    def distances(self, features: npt.NDArray[np.floating]) -> Floats:
        """(N,) root mean square distance of images (N, D) to their nearest training images."""
        return _nearest((np.asarray(features, dtype=np.float64) - self.mean) @ self.basis, self.points)

    def p_values(self, features: npt.NDArray[np.floating]) -> Floats:
        """(N,) in (0, 1]: chance that an image like those of training is as far from them.

        Rejecting those with p <= a rejects a share a of such images on average, whatever the features.
        """
        farther = len(self.known) - np.searchsorted(self.known, self.distances(features), side="left")
        return np.asarray((farther + 1) / (len(self.known) + 1))


def fit_familiarity(features: npt.NDArray[np.floating], groups: npt.NDArray[np.int64] | None = None) -> Familiarity:
    """Distances among training images, as a measure of how far an image may be.

    Args:
        features: (M, D) of M >= 2 training images.
        groups: (M,) images of equal value are no neighbours of each other; None: each is alone.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = fit_familiarity(rng.normal(size=(200, 5)))
        >>> bool(found.p_values(np.full((1, 5), 9.0))[0] < 0.01)
        True
    """
    given = np.asarray(features, dtype=np.float64)
    mean = given.mean(axis=0)
    _, sizes, directions = np.linalg.svd(given - mean, full_matrices=False)
    count = min(COMPONENTS, max(1, len(given) // 4), int((sizes > 1e-6 * sizes[0]).sum()) or 1)
    # Whitened by the square root of the deviations: full whitening would count noise as much as content.
    basis = directions[:count].T / np.sqrt(np.maximum(sizes[:count], 1e-12))
    points = (given - mean) @ basis
    own = np.arange(len(given)) if groups is None else groups
    return Familiarity(mean, basis, points, np.sort(_nearest(points, points, same=own)))


def _nearest(points: Floats, known: Floats, *, same: npt.NDArray[np.int64] | None = None) -> Floats:
    squared = (points**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * points @ known.T
    if same is not None:
        squared[same[:, None] == same] = np.inf
    few = min(NEIGHBOURS, squared.shape[1])
    nearest = np.partition(squared, few - 1, axis=1)[:, :few]
    finite = np.where(np.isfinite(nearest), np.maximum(nearest, 0.0), np.nan)
    with np.errstate(invalid="ignore"):
        counted = np.isfinite(finite).sum(axis=1)
    return np.asarray(np.sqrt(np.nansum(finite, axis=1) / np.maximum(counted, 1)))
