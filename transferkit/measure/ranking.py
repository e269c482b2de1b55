"""Bootstrap intervals of ranks, with the same resampled images for all models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError

__all__ = ["RESAMPLES", "RankIntervals", "bootstrap_ranks", "rank_resampled"]

RESAMPLES = 1000
"""25 resamples are outside each end of a 95 % interval: enough for ranks, which are integers."""


@dataclass(frozen=True, kw_only=True)
class RankIntervals:
    """Ranks of M models, 1 is best.

    Args:
        rank: (M,) int, 1 + number of models that are correct more often; ties share a rank.
        low, high: (M,) int, interval of the rank over resamples.
        best: (M,) probability of being best, in [0, 1]; sums to 1, ties at the top share it.
    """

    rank: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    best: npt.NDArray[np.float64]


def bootstrap_ranks(
    right: npt.NDArray[np.bool_],
    *,
    groups: npt.NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> RankIntervals:
    """Rank models by the number of correctly classified images, with bootstrap intervals over images.

    Every resample draws N of the N images with replacement, the same ones for all models, so that the difficulty of the
    images cancels out. Models tied in a resample could be in any order: the lower end counts them as ahead of each
    other, the upper end as behind, so that few images give wide intervals, never falsely narrow ones.

    Args:
        right: (M, N) bool, whether each model is correct on each image; M and N >= 1.
        groups: (N,) int; images of equal value are drawn together. None draws each image independently.
        resamples: B, >= 1.
        level: Of the interval, in (0, 1).
        seed: Of the resampling.

    Raises:
        DataError: `right` is not (M, N) with M and N >= 1.
        OptionError: `resamples` or `level` is out of its range.

    Comparable:
        It covers other images of the same kind for the same fits, not how fits vary with their training images, so it
        is too narrow rather than too wide.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval). Deviation: a
        rank's interval counts ties both ways, as above.

    Example:
        >>> sure, guess = np.ones(100, dtype=bool), np.arange(100) < 50
        >>> found = bootstrap_ranks(np.stack([guess, sure]))
        >>> found.rank.tolist(), found.low.tolist(), found.high.tolist(), found.best.tolist()
        ([2, 1], [2, 1], [2, 1], [0.0, 1.0])
    """
    hits = np.asarray(right, dtype=bool)
    if hits.ndim != 2 or 0 in hits.shape:
        raise DataError(f"right must be (M, N), a row of N images for each of M models, got shape {hits.shape}.")
    if resamples < 1:
        raise OptionError(f"resamples must be >= 1, got {resamples!r}.")
    if not 0 < level < 1:
        raise OptionError(f"level must be in (0, 1), got {level!r}.")
    drawn = _draw_hits(_by_group(hits, groups), resamples, seed)
    ahead, level_with = _compare(drawn)
    tail = (1 - level) / 2
    on_top = ahead == 0
    return RankIntervals(
        rank=1 + _compare(hits.sum(axis=1)[None])[0][0],
        # An observed rank, never interpolated: ranks are integers.
        low=np.quantile(1 + ahead, tail, axis=0, method="inverted_cdf").astype(np.int64),
        high=np.quantile(ahead + level_with, 1 - tail, axis=0, method="inverted_cdf").astype(np.int64),
        best=(on_top / on_top.sum(axis=1, keepdims=True)).mean(axis=0),
    )


def rank_resampled(
    scores: npt.NDArray[np.floating], draws: npt.NDArray[np.floating], *, level: float = 0.95
) -> RankIntervals:
    """The same from scores that were resampled already, such as a mean average precision; higher is better.

    Args:
        scores: (M,) of the images as they are.
        draws: (M, B) of resampled images, the same ones for all models.
        level: Of the interval, in (0, 1).

    Example:
        >>> rank_resampled(np.array([0.5, 0.9]), np.array([[0.5, 0.4], [0.9, 0.8]])).rank.tolist()
        [2, 1]
    """
    known = draws[:, np.isfinite(draws).all(axis=0)].T
    ahead, level_with = _compare(known)
    tail, on_top = (1 - level) / 2, ahead == 0
    return RankIntervals(
        rank=1 + _compare(np.asarray(scores)[None])[0][0],
        low=np.quantile(1 + ahead, tail, axis=0, method="inverted_cdf").astype(np.int64),
        high=np.quantile(ahead + level_with, 1 - tail, axis=0, method="inverted_cdf").astype(np.int64),
        best=(on_top / on_top.sum(axis=1, keepdims=True)).mean(axis=0),
    )


def _by_group(hits: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """(M, G) correct images in each group; per image if there are no groups."""
    if groups is None:
        return hits.astype(np.int64)
    codes = np.unique(groups, return_inverse=True)[1].reshape(-1)
    return np.stack([np.bincount(codes, weights=row) for row in hits]).astype(np.int64)


def _draw_hits(hits: npt.NDArray[np.int64], resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """(B, M) correct images in each resample.

    Images on which the same models are correct are interchangeable, so only the count of each such pattern is drawn: a
    multinomial over at most min(N, 2^M) patterns. The same holds for groups of equal counts.
    """
    patterns, counts = np.unique(hits.T, axis=0, return_counts=True)  # (P, M), (P,)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(hits.shape[1], counts / hits.shape[1], size=resamples)  # (B, P)
    # In floating point, where matrix products are fast; counts below 2^53 are exact.
    return np.rint(drawn.astype(np.float64) @ patterns.astype(np.float64)).astype(np.int64)


def _compare(hits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(B, M) hits -> (B, M) number of models with more, and number with as many, itself included."""
    ordered = np.sort(hits, axis=1)
    ahead, level_with = np.empty(hits.shape, dtype=np.int64), np.empty(hits.shape, dtype=np.int64)
    for row, values in enumerate(ordered):
        first, last = (np.searchsorted(values, hits[row], side=side) for side in ("left", "right"))
        ahead[row], level_with[row] = len(values) - last, last - first
    return ahead, level_with
