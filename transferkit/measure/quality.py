"""Metrics of a classifier's probabilities on held-out images, and temperature scaling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from transferkit.core.intervals import wilson_interval
from transferkit.measure.target_metrics import assess_targets
from transferkit.records import AnyMetrics, Folds, HeldOut, Metrics

__all__ = ["assess", "calibration_error", "fit_temperature", "log_loss"]

CALIBRATION_BINS = 15
"""Guo et al., ICML 2017, use 15; bins of equal mass (Nixon et al., CVPRW 2019) need no empty-bin rule."""


def log_loss(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.floating] | None = None,
) -> float:
    """Mean negative log-likelihood in nats; lower is better, 0 is certainty in the truth.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,) int in [0, K).
        weights: (N,) >= 0, one per image; None for equal weights.
    """
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(np.average(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)), weights=weights))


def calibration_error(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Mean gap between confidence and accuracy over equal-mass bins; lower is better.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,) int in [0, K).

    Returns:
        Expected calibration error, in [0, 1].

    Example:
        >>> calibration_error(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
        0.5
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    return float(sum(abs(confidence[b].mean() - correct[b].mean()) * len(b) for b in bins) / len(order))


def assess(answers: HeldOut, folds: Folds | None = None) -> AnyMetrics:
    """The metrics of a held-out split.

    Args:
        answers: On its N images.
        folds: Groups and copies of the N images, for the interval of the accuracy: related images carry less
            information than independent ones. None: all are independent.

    Raises:
        ValueError: If the split is empty.
    """
    labels, probabilities = answers.labels, answers.probabilities
    if len(labels) == 0:
        raise ValueError(f"The {answers.split} split has no images to assess.")
    alone = Folds.alone(labels) if folds is None else folds
    if answers.targets is not None:
        return assess_targets(answers, answers.targets, alone)
    correct = probabilities.argmax(axis=1) == labels
    trials = alone.independent(correct, alone.shares)
    low, high = wilson_interval(float(correct.mean()) * trials, trials)
    recalls = [correct[labels == label].mean() for label in np.unique(labels)]
    return Metrics(
        images=len(labels),
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        balanced_accuracy=float(np.mean(recalls)),
        log_loss=log_loss(probabilities, labels),
        calibration_error=calibration_error(probabilities, labels),
    )


def fit_temperature(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], weights: npt.NDArray[np.floating] | None = None
) -> float:
    """The T > 0 for which softmax(scores / T) has the lowest log loss.

    Args:
        scores: (N, K) held-back scores from exact cross-validation.
        labels: (N,) int in [0, K).
        weights: (N,) >= 0, one per image; None for equal weights.

    References:
        Guo et al., ICML 2017. Deviation: fitted on exactly cross-validated scores, so no extra calibration images are
        needed.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        return float(np.average(-log_softmax(scaled, axis=1)[rows, labels], weights=weights))

    best = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e2)), method="bounded")
    return float(np.exp(best.x))
