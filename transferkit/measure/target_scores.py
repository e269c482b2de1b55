"""Scores of predicted labels or numbers: mean average precision and R2, with intervals by resampling whole groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from transferkit.records import Folds, Targets

__all__ = [
    "ResampledScore",
    "average_precisions",
    "resample_score",
    "score_targets",
    "standardise_targets",
    "target_units",
]

RESAMPLES = 200
"""Draws of groups behind an interval: its ends are then known to about a tenth of its width."""

PERFECT = 1 - 1e-9

RULE_OF_THREE = 3.0
"""95 % upper bound of the number of errors where none was made."""

AT_ONCE = 2**22
"""Weights held in memory at a time, 32 MB."""

CONSTANT = 1e-24
"""Variance, in units of the squared mean, below which a number is constant and has no R2."""

Array = npt.NDArray[np.float64]


def average_precisions(
    values: npt.NDArray[np.floating], scores: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None = None
) -> Array:
    """Average precision of each label; higher is better, its share of images is chance.

    Args:
        values: (N, T) 0 or 1.
        scores: (N, T), higher for images that are more likely to have the label; equal ones are counted as one step.
        weights: (N,) or (B, N) >= 0, B weightings at once; None for equal weights.

    Returns:
        (T,) or (B, T) in [0, 1]; NaN for a label on no image with weight.

    Example:
        >>> average_precisions(np.array([[1], [0], [1]]), np.array([[0.9], [0.8], [0.1]])).round(3).tolist()
        [0.833]
    """
    wide = np.ones((1, len(values))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    found = np.empty((len(wide), values.shape[1]))
    for label in range(values.shape[1]):
        found[:, label] = _average_precision(values[:, label], scores[:, label], wide)
    return found[0] if weights is None or np.ndim(weights) == 1 else found


def _average_precision(values: npt.NDArray[np.floating], scores: npt.NDArray[np.floating], weights: Array) -> Array:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    ordered = weights[:, order]
    positive = np.cumsum(ordered * values[order], axis=1)[:, ends]
    chosen = np.cumsum(ordered, axis=1)[:, ends]
    steps = np.diff(positive, axis=1, prepend=0.0)
    precision = np.divide(positive, chosen, out=np.zeros_like(positive), where=chosen > 0)
    total = positive[:, -1]
    return np.divide((precision * steps).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def _r2(values: Array, predicted: Array, weights: Array) -> Array:
    """(B, T) share of the variance of each number that is explained; NaN for a number that does not vary."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = weights @ values / total
    # About the unweighted mean first, so that large numbers keep their digits.
    centre = values.mean(axis=0)
    shifted = values - centre
    variance = weights @ shifted**2 / total - (mean - centre) ** 2
    error = weights @ (values - predicted) ** 2 / total
    constant = variance <= CONSTANT * np.maximum(centre**2, 1e-300)
    return np.where(constant, np.nan, 1 - error / np.where(constant, 1, variance))


def _mean_known(scores: Array) -> Array:
    """(B,) mean over the targets that have a score; NaN where none has."""
    known = np.isfinite(scores)
    sums = np.where(known, scores, 0).sum(axis=1)
    return np.divide(sums, known.sum(axis=1), out=np.full(len(scores), np.nan), where=known.any(axis=1))


def _scores(targets: Targets, predicted: npt.NDArray[np.floating], weights: Array) -> Array:
    if targets.is_labels:
        return _mean_known(average_precisions(targets.values, predicted, weights))
    return _mean_known(_r2(targets.values, predicted.astype(np.float64), weights))


def score_targets(
    targets: Targets, predicted: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None = None
) -> float:
    """Mean average precision over the labels that some image has, or mean R2 over the numbers; higher is better.

    Args:
        targets: Of N images.
        predicted: (N, T) scores of labels, or numbers in the targets' unit.
        weights: (N,) >= 0; None for equal weights.

    Returns:
        At most 1; NaN if no image has a label, or no number varies.

    Example:
        >>> numbers = Targets(task="regression", names=("age",), values=np.array([[1.0], [2.0], [3.0]]))
        >>> score_targets(numbers, np.array([[1.0], [2.0], [2.0]]))
        0.5
    """
    wide = np.ones((1, len(targets))) if weights is None else np.asarray(weights, dtype=np.float64)[None]
    return float(_scores(targets, predicted, wide)[0])


@dataclass(frozen=True)
class ResampledScore:
    """A score, and what it is with resampled groups of images.

    Args:
        score: Of the images as they are; NaN if unknown.
        draws: (B,) of resampled ones.
        groups: That were drawn.
    """

    score: float
    draws: Array
    groups: int = 0

    @cached_property
    def known(self) -> bool:
        """Whether there is a score."""
        return bool(np.isfinite(self.score) and np.isfinite(self.draws).sum() > 1)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, at most 1: percentiles of the draws, moved so that their mean is the score (drawing images
        twice makes average precision a little better)."""
        draws = self.draws[np.isfinite(self.draws)]
        low, high = np.quantile(draws, (0.025, 0.975)) - draws.mean() + self.score
        if self.score > PERFECT:  # no draw can show an error that has not been made
            low = 1 - RULE_OF_THREE / max(self.groups, RULE_OF_THREE)
        return min(float(low), self.score), min(max(float(high), self.score), 1.0)

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.nanstd(self.draws))

    def gain_error(self, other: ResampledScore) -> float:
        """Standard error of the difference from another score of the same images and draws, > 0."""
        return max(float(np.nanstd(self.draws - other.draws)), 1 / max(len(self.draws), 1) ** 2)


def resample_score(
    targets: Targets,
    predicted: npt.NDArray[np.floating],
    folds: Folds,
    *,
    counting: npt.NDArray[np.floating] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ResampledScore:
    """The score with its sampling error: groups of images are drawn with replacement.

    Args:
        targets: Of N images.
        predicted: (N, T), as for `score_targets`.
        folds: Which images belong together.
        counting: (N,) weight of each image; None: as `folds.shares`.
        resamples: B.
        seed: Of the draws; the same for scores that are compared.
    """
    shares = folds.shares if counting is None else np.asarray(counting, dtype=np.float64)
    if not len(targets) or not shares.any():
        return ResampledScore(np.nan, np.full(resamples, np.nan))
    group = np.unique(folds.groups, return_inverse=True)[1].reshape(-1)
    count, rng = int(group.max()) + 1, np.random.default_rng(seed)
    at_once = max(1, AT_ONCE // len(targets))
    draws = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size=size)
        draws.append(_scores(targets, predicted, times[:, group] * shares))
    return ResampledScore(score_targets(targets, predicted, shares), np.concatenate(draws), count)


def target_units(targets: Targets, weights: npt.NDArray[np.floating]) -> Array:
    """(T,) what targets are divided by before they are fitted together: numbers by their standard deviation, labels by
    nothing.

    Args:
        targets: Of the N training images.
        weights: (N,) > 0.
    """
    if targets.is_labels:
        return np.ones(len(targets.names))
    mean = np.average(targets.values, axis=0, weights=weights)
    spread = np.sqrt(np.average((targets.values - mean) ** 2, axis=0, weights=weights))
    return np.where(spread > 0, spread, 1.0)


def standardise_targets(targets: Targets, weights: npt.NDArray[np.floating]) -> tuple[Array, Array, Array]:
    """(N, T) targets to fit together, (T,) what was subtracted and (T,) what they were divided by; labels stay as they
    are. Without it single precision would round large numbers.

    Args:
        targets: Of the N training images.
        weights: (N,) > 0.
    """
    unit, centre = target_units(targets, weights), np.zeros(len(targets.names))
    if not targets.is_labels:
        centre = np.asarray(np.average(targets.values, axis=0, weights=weights))
    return (targets.values - centre) / unit, centre, unit
