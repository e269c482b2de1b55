"""Figures of merit of a model's predictions on held-out images: confusions, recalls, reliability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import wilson_interval
from transferkit.records import HeldOut, RunRecord

__all__ = [
    "Confidence",
    "ConfusedPair",
    "ReliabilityBin",
    "class_recalls",
    "confusion_counts",
    "find_held_out",
    "mean_confidence",
    "most_confused",
    "name_classes",
    "reliability_bins",
]

IntArray = npt.NDArray[np.int64]

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Images of one class predicted as another.

    Args:
        true, predicted: Class indices.
        count: How often it happened, >= 1.
        share: `count` over the images of the true class, in (0, 1].
    """

    true: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images of similar confidence.

    Args:
        count: Images in the bin, >= 1.
        confidence: Mean probability of the predicted class, in [0, 1].
        accuracy: Share of correct predictions, in [0, 1].
        low, high: 95 % Wilson interval of the accuracy.
    """

    count: int
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Mean confidence against accuracy.

    Args:
        mean: Mean probability of the predicted class, in [0, 1].
        accuracy: Share of correct predictions, in [0, 1].
        chance: Half-width of the 95 % interval of their difference if the probabilities were exact.
    """

    mean: float
    accuracy: float
    chance: float

    @property
    def gap(self) -> float:
        """Mean confidence minus accuracy; above 0 is over-confident."""
        return self.mean - self.accuracy


def find_held_out(record: RunRecord) -> HeldOut | None:
    """The predictions on the held-out images; None if there are none."""
    return record.held_out if record.held_out is not None and len(record.held_out.labels) else None


def name_classes(record: RunRecord, held_out: HeldOut) -> list[str]:
    """Names of the model's K outputs."""
    unseen = () if record.zero_shot is None else record.zero_shot.unseen
    classes = (*record.evidence.data.classes, *unseen)
    # A head may have more outputs than the data has classes (a pretrained head kept as it was).
    extra = range(len(classes), held_out.probabilities.shape[1])
    return [*classes, *(f"output {k}" for k in extra)]


def confusion_counts(labels: IntArray, predicted: IntArray, *, classes: int) -> IntArray:
    """Confusion matrix.

    Args:
        labels: (N,) int in [0, K).
        predicted: (N,) int in [0, K).
        classes: K.

    Returns:
        (K, K) counts; rows are true classes, columns predicted ones.

    Example:
        >>> confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def most_confused(counts: IntArray, *, limit: int) -> tuple[ConfusedPair, ...]:
    """The pairs confused most often, most first; ties go to the larger share, then to label order.

    Args:
        counts: (K, K) confusion counts.
        limit: Pairs to return at most.
    """
    totals = counts.sum(axis=1)
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    pairs = [
        ConfusedPair(
            true=int(t), predicted=int(p), count=int(errors[t, p]), share=float(errors[t, p]) / float(totals[t])
        )
        for t, p in np.argwhere(errors)
    ]
    pairs.sort(key=lambda pair: (-pair.count, -pair.share, pair.true, pair.predicted))
    return tuple(pairs[:limit])


def class_recalls(counts: IntArray) -> npt.NDArray[np.float64]:
    """Recall: the share of each class's images that are classified correctly.

    Args:
        counts: (K, K) confusion counts.

    Returns:
        (K,) in [0, 1]; NaN for a class without images.
    """
    totals = counts.sum(axis=1).astype(np.float64)
    recalls: npt.NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(np.diagonal(counts), totals, out=recalls, where=totals > 0)
    return recalls


def reliability_bins(
    labels: IntArray, probabilities: npt.NDArray[np.floating], *, bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Images sorted by confidence, cut into bins of equal size (to within one image).

    Args:
        labels: (N,) int in [0, K), N >= 1.
        probabilities: (N, K) float, rows sum to 1.
        bins: Number of bins; fewer where there are fewer images.

    Returns:
        Bins in rising order of confidence.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        hits = int(right[part].sum())
        low, high = wilson_interval(hits, len(part))
        found.append(
            ReliabilityBin(
                count=len(part),
                confidence=float(confidence[part].mean()),
                accuracy=hits / len(part),
                low=low,
                high=high,
            )
        )
    return tuple(found)


def mean_confidence(labels: IntArray, probabilities: npt.NDArray[np.floating]) -> Confidence:
    """Mean confidence against accuracy.

    Args:
        labels: (N,) int in [0, K), N >= 1.
        probabilities: (N, K) float, rows sum to 1.
    """
    confidence = probabilities.max(axis=1).astype(np.float64).clip(0, 1)
    # If the probabilities were exact, the number of correct predictions would be a sum of independent Bernoulli draws.
    deviation = math.sqrt(float((confidence * (1 - confidence)).sum())) / len(confidence)
    return Confidence(
        mean=float(confidence.mean()),
        accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
        chance=NORMAL_95 * deviation,
    )
