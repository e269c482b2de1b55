"""Metrics of predicted labels and numbers on held-out images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.measure.target_heads import label_loss
from transferkit.measure.target_scores import ResampledScore, resample_score
from transferkit.records import Folds, HeldOut, LabelMetrics, LabelScore, NumberMetrics, NumberScore, Targets

__all__ = ["assess_targets"]

BINS = 15

TINY = 1e-7
"""Distance of a probability from 0 and 1 at which its loss stops to grow: half precision cannot tell them apart."""

Array = npt.NDArray[np.float64]


def assess_targets(answers: HeldOut, targets: Targets, folds: Folds) -> LabelMetrics | NumberMetrics:
    """The metrics of a held-out split of N >= 1 images.

    Args:
        answers: (N, T) probabilities of labels, or numbers.
        targets: The truth.
        folds: Groups and copies of the images.
    """
    predicted = answers.probabilities.astype(np.float64)
    found = resample_score(targets, predicted, folds, counting=np.ones(len(targets)))
    if targets.is_labels:
        return _assess_labels(answers, targets, predicted, folds, found)
    score, (low, high) = (found.score, found.interval) if found.known else (0.0, (0.0, 0.0))
    return NumberMetrics(
        images=len(targets),
        r2=score,
        low=low,
        high=high,
        numbers=tuple(_number_score(targets, predicted, folds, at) for at in range(len(targets.names))),
    )


def _one(targets: Targets, at: int) -> Targets:
    return Targets(task=targets.task, names=targets.names[at : at + 1], values=targets.values[:, at : at + 1])


def _resample_one(targets: Targets, predicted: Array, folds: Folds, at: int) -> ResampledScore:
    return resample_score(_one(targets, at), predicted[:, at : at + 1], folds, counting=np.ones(len(targets)))


def _number_score(targets: Targets, predicted: Array, folds: Folds, at: int) -> NumberScore:
    found = _resample_one(targets, predicted, folds, at)
    error = predicted[:, at] - targets.values[:, at]
    low, high = found.interval if found.known else (None, None)
    return NumberScore(
        name=targets.names[at],
        r2=found.score if found.known else None,
        low=low,
        high=high,
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
        bias=float(error.mean()),
    )


def _assess_labels(
    answers: HeldOut, targets: Targets, predicted: Array, folds: Folds, found: ResampledScore
) -> LabelMetrics:
    thresholds = np.asarray(answers.thresholds or (0.5,) * len(targets.names))
    given, truth = predicted >= thresholds, targets.values > 0
    hits = int((given & truth).sum())
    wrong = int((given ^ truth).sum())
    low, high = found.interval if found.known else (0.0, 0.0)
    clipped = np.clip(predicted, TINY, 1 - TINY)
    return LabelMetrics(
        images=len(targets),
        mean_average_precision=found.score if found.known else 0.0,
        low=max(0.0, low),
        high=high,
        f1=2 * hits / (2 * hits + wrong) if hits + wrong else 1.0,
        exact=float((given == truth).all(axis=1).mean()),
        log_loss=label_loss(np.log(clipped) - np.log1p(-clipped), targets.values),
        calibration_error=_calibration_error(predicted.ravel(), targets.values.ravel()),
        labels=tuple(_label_score(targets, predicted, folds, at, thresholds) for at in range(len(targets.names))),
    )


def _label_score(targets: Targets, predicted: Array, folds: Folds, at: int, thresholds: Array) -> LabelScore:
    found = _resample_one(targets, predicted, folds, at)
    given, truth = predicted[:, at] >= thresholds[at], targets.values[:, at] > 0
    hits = int((given & truth).sum())
    low, high = found.interval if found.known else (None, None)
    return LabelScore(
        name=targets.names[at],
        positives=int(truth.sum()),
        average_precision=found.score if found.known else None,
        low=None if low is None else max(0.0, low),
        high=high,
        threshold=float(thresholds[at]),
        precision=hits / int(given.sum()) if given.any() else None,
        recall=hits / int(truth.sum()) if truth.any() else None,
    )


def _calibration_error(chances: Array, truth: Array) -> float:
    order = np.argsort(chances, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    gaps = [abs(float(chances[part].mean() - truth[part].mean())) * len(part) for part in bins]
    return float(sum(gaps) / len(order))
