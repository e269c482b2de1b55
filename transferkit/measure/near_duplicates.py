"""Pairs of images whose features are much nearer than is usual around them: candidates for copies.

What distance is near depends on the image. Among photographs of many things the nearest other picture is far away;
among scans of the digit one it is close, and is no copy. Distances are therefore compared with the distance to a
neighbour further off, which is large for the one and small for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.measure.neighbours import nearest_rows
from transferkit.records import connected_groups

__all__ = ["NearDuplicates", "find_near_duplicates"]

Ints = npt.NDArray[np.int64]

USUAL_NEIGHBOUR = 16
"""The neighbour whose distance is taken as usual. Sets of up to 16 copies are found; a twentieth of a small class."""


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs that are nearer than usual.

    Args:
        images: N.
        pairs: (P, 2) int, the smaller index first; nearest first.
        scores: (P,) in [0, 1]: 1 for equal features, 0 at the usual distance around the two images.
    """

    images: int
    pairs: Ints
    scores: npt.NDArray[np.float32]

    @property
    def groups(self) -> Ints:
        """(N,) int: the index of the first image that an image is connected with by pairs, or its own."""
        return connected_groups([np.arange(self.images, dtype=np.int64)], self.pairs)


def find_near_duplicates(
    features: npt.NDArray[np.floating],
    *,
    neighbours: int = 6,
    least_score: float = 0.5,
    variants: npt.NDArray[np.floating] | None = None,
) -> NearDuplicates:
    """Pairs whose features are much nearer than those of other neighbours of the two.

    Args:
        features: (N, D) float, standardised (see `compress_features`), one row per image.
        neighbours: Nearest images that are looked at around each.
        least_score: In [0, 1): 1 minus the distance of a pair in units of the usual one must be larger. Low values
            give candidates, for pixels to decide; high ones pairs that are near beyond doubt.
        variants: As for `nearest_rows`.

    Returns:
        Pairs, nearest first. The usual distance is the geometric mean over both images of that to their 16th
        neighbour, or to the furthest there is if there are fewer.

    Raises:
        DataError: The features are not a finite (N, D) table.
        OptionError: An argument is out of its range.

    References:
        Zelnik-Manor and Perona, NIPS 2004, for the local scale.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.normal(size=(60, 20))
        >>> rows[7] = rows[3] + rng.normal(0, 0.1, 20)
        >>> found = find_near_duplicates(rows)
        >>> found.pairs.tolist(), round(float(found.scores[0]), 1), int(found.groups[7])
        ([[3, 7]], 0.9, 3)
    """
    if neighbours < 1 or not 0 <= least_score < 1:
        raise OptionError(f"neighbours must be >= 1 and least_score in [0, 1), got {neighbours!r} and {least_score!r}.")
    found = nearest_rows(features, k=max(neighbours, USUAL_NEIGHBOUR), variants=variants)
    images, reach = found.rows.shape
    if not reach:
        return NearDuplicates(images, np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    distance = found.distance
    usual = np.maximum(distance[:, -1], 1e-6)
    near, taken = found.rows[:, :neighbours], distance[:, :neighbours]
    own = np.repeat(np.arange(images), near.shape[1])
    other = near.reshape(-1)
    scores = 1 - np.minimum(taken.reshape(-1) / np.sqrt(usual[own] * usual[other]), 1)
    pairs = np.stack([np.minimum(own, other), np.maximum(own, other)], axis=1)
    kept = scores > least_score
    pairs, first = np.unique(pairs[kept], axis=0, return_index=True)
    scores = scores[kept][first]
    order = np.argsort(-scores, kind="stable")
    return NearDuplicates(images, pairs[order], scores[order].astype(np.float32))
