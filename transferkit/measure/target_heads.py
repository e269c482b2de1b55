"""From held-back scores of labels to probabilities and decisions: calibration per label, and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

__all__ = ["LabelCalibration", "calibrate_labels", "choose_thresholds", "fit_label_calibration", "label_loss"]

STEPS = 50
"""Newton steps at most; ten suffice."""

DAMPING = 1e-9

TRUST = 10.0
"""Strength with which a label's slope is pulled to the common one, in images: a label on few images follows the
others."""

MIN_POSITIVES = 10
"""Held-back images with a label, and without, from which on its threshold is chosen; below that it is 0.5."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelCalibration:
    """Logits of labels as a linear map of their scores: slope * score + bias.

    Args:
        slope: (T,) > 0.
        bias: (T,).
    """

    slope: Array
    bias: Array

    def apply(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, T) logits."""
        return np.asarray(scores * self.slope + self.bias, dtype=np.float32)


def fit_label_calibration(
    scores: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    counting: npt.NDArray[np.floating],
    *,
    is_balanced: bool = False,
) -> LabelCalibration:
    """Platt's calibration of every label, with slopes that are pulled to a common one.

    Scores of a least-squares fit are shrunk the more the rarer a label is; in units of its variance p (1 - p) slopes of
    labels are alike, so that one can be fitted for all first.

    Args:
        scores: (N, T) held-back scores.
        values: (N, T) 0 or 1.
        counting: (N,) >= 0, weight of each image, some > 0.
        is_balanced: Whether images with and without a label get the same total weight.

    References:
        Platt 1999, with his smoothed targets. Deviation: exactly cross-validated scores, no further images; a common
        slope first.

    Example:
        >>> scores = np.array([[0.1], [0.4], [0.35], [0.8]])
        >>> fitted = fit_label_calibration(scores, np.array([[0], [0], [1], [1]]), np.ones(4))
        >>> bool(fitted.slope[0] > 0), [round(float(p), 1) for p in expit(fitted.apply(scores))[:, 0]]
        (True, [0.3, 0.5, 0.5, 0.7])
    """
    weights = np.repeat(np.asarray(counting, dtype=np.float64)[:, None], values.shape[1], axis=1)
    positive, total = (weights * values).sum(axis=0), weights.sum(axis=0)
    negative = total - positive
    share = np.clip(positive / total, 1 / (total + 2), 1 - 1 / (total + 2))
    truth = np.where(values > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    if is_balanced:
        weights = weights * np.where(
            values > 0, total / (2 * np.maximum(positive, 1)), total / (2 * np.maximum(negative, 1))
        )
    centre, unit = np.average(scores, axis=0, weights=np.asarray(counting)), share * (1 - share)
    scaled = (scores - centre) / unit
    common, bias = _fit_common(scaled, truth, weights)
    slope, bias = _fit_each(scaled, truth, weights, common, bias)
    slope = np.maximum(slope, 0.05 * common) / unit
    return LabelCalibration(slope, bias - slope * centre)


def _fit_common(scaled: Array, truth: Array, weights: Array) -> tuple[float, Array]:
    """One slope for all labels, and a bias for each, by Newton's method; the system has the shape of an arrow."""
    slope, bias = 0.1, np.zeros(scaled.shape[1])
    for _ in range(STEPS):
        chance = expit(slope * scaled + bias)
        residual, curvature = weights * (chance - truth), weights * chance * (1 - chance)
        by_bias, by_slope = residual.sum(axis=0), float((residual * scaled).sum())
        diagonal = curvature.sum(axis=0) + DAMPING
        cross, corner = (curvature * scaled).sum(axis=0), float((curvature * scaled**2).sum()) + DAMPING
        step = (by_slope - float((cross / diagonal) @ by_bias)) / max(
            corner - float((cross / diagonal) @ cross), DAMPING
        )
        step = float(np.clip(step, -max(1.0, abs(slope)), max(1.0, abs(slope))))
        change = np.clip((by_bias - cross * step) / diagonal, -2, 2)
        slope, bias = slope - step, bias - change
        if abs(step) < 1e-8 * max(1.0, abs(slope)) and np.abs(change).max() < 1e-8:
            break
    return max(slope, 1e-3), bias


def _fit_each(scaled: Array, truth: Array, weights: Array, common: float, bias: Array) -> tuple[Array, Array]:
    """A slope and a bias for each label, slopes pulled to the common one."""
    slope = np.full(scaled.shape[1], common)
    pull = TRUST / common**2
    for _ in range(STEPS):
        chance = expit(slope * scaled + bias)
        residual, curvature = weights * (chance - truth), weights * chance * (1 - chance)
        by_bias, by_slope = residual.sum(axis=0), (residual * scaled).sum(axis=0) + pull * (slope - common)
        one = curvature.sum(axis=0) + DAMPING
        cross, two = (curvature * scaled).sum(axis=0), (curvature * scaled**2).sum(axis=0) + pull
        determinant = np.maximum(one * two - cross**2, DAMPING)
        step = np.clip((one * by_slope - cross * by_bias) / determinant, -common, common)
        change = np.clip((by_bias - cross * step) / one, -2, 2)
        slope, bias = slope - step, bias - change
        if np.abs(step).max() < 1e-8 * common and np.abs(change).max() < 1e-8:
            break
    return slope, bias


def calibrate_labels(
    logits: npt.NDArray[np.floating], values: npt.NDArray[np.floating], counting: npt.NDArray[np.floating]
) -> float:
    """The T > 0 for which sigmoid(logits / T) has the lowest loss: one for all labels.

    Args:
        logits: (N, T) held-back ones.
        values: (N, T) 0 or 1.
        counting: (N,) >= 0, weight of each image.
    """
    from scipy.optimize import minimize_scalar

    weights = np.asarray(counting, dtype=np.float64)[:, None]
    positive, negative = (weights * values).sum(axis=0), (weights * (1 - values)).sum(axis=0)
    # Platt's targets: what separates a few images is not certain of all others.
    truth = np.where(values > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(log_temperature: float) -> float:
        return label_loss(logits / np.exp(log_temperature), truth, counting)

    best = minimize_scalar(loss, bounds=(np.log(1e-2), np.log(1e2)), method="bounded")
    return float(np.exp(best.x))


def label_loss(
    logits: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    counting: npt.NDArray[np.floating] | None = None,
) -> float:
    """Binary cross-entropy in nats, mean over images and labels; lower is better.

    Args:
        logits: (N, T).
        values: (N, T) in [0, 1].
        counting: (N,) >= 0, weight of each image; None for equal weights.

    Example:
        >>> round(label_loss(np.zeros((2, 3)), np.ones((2, 3))), 4)
        0.6931
    """
    wide = np.asarray(logits, dtype=np.float64)
    losses = np.logaddexp(0, wide) - values * wide
    return float(np.average(losses.mean(axis=1), weights=counting))


def choose_thresholds(
    probabilities: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    counting: npt.NDArray[np.floating] | None = None,
) -> Array:
    """The probability from which on each label is given: that with the highest F1 on held-back images.

    Args:
        probabilities: (N, T) held-back ones.
        values: (N, T) 0 or 1.
        counting: (N,) >= 0, weight of each image; None for equal weights.

    Returns:
        (T,) in (0, 1); 0.5 for labels on fewer than `MIN_POSITIVES` of the images, or off fewer.

    Example:
        >>> truth = np.repeat([[0.0], [1.0]], 20, axis=0)
        >>> choose_thresholds(np.where(truth > 0, 0.3, 0.1), truth).tolist()
        [0.2]
    """
    weights = np.ones(len(values)) if counting is None else np.asarray(counting, dtype=np.float64)
    return np.array([_threshold(probabilities[:, k], values[:, k], weights) for k in range(values.shape[1])])


def _threshold(chances: npt.NDArray[np.floating], values: npt.NDArray[np.floating], weights: Array) -> float:
    on = (values > 0) & (weights > 0)
    if min(int(on.sum()), int(((values == 0) & (weights > 0)).sum())) < MIN_POSITIVES:
        return 0.5
    order = np.argsort(-chances, kind="stable")
    sorted_chances = chances[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(sorted_chances)), len(order) - 1)
    hits = np.cumsum(weights[order] * values[order])[ends]
    f1 = 2 * hits / (np.cumsum(weights[order])[ends] + float(weights @ values))
    best = int(ends[int(f1.argmax())])
    below = sorted_chances[best + 1] if best + 1 < len(order) else 0.0
    return float(np.clip((sorted_chances[best] + below) / 2, 1e-6, 1 - 1e-6))
