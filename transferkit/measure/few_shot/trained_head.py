"""Linear heads that are trained on the shots: to the optimum, or a few steps from the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.few_shot.shots import Rows, Shots

__all__ = ["few_shot_logistic", "fine_tuned_head"]

PENALTY = 0.03
"""On the squared weights, per shot, for rows of length 1. Not tuned."""

TEMPERATURE = 10.0
"""Logits of the start per unit of squared distance."""

STEPS, RATE = 20, 2.0
"""Full-batch gradient steps, and their length: with rows of length 1, and a 1 for the bias, the loss has
curvature 1 at most, so that it falls at every step up to 2. Not tuned."""


def few_shot_logistic(shots: Shots, queries: npt.NDArray[Any], *, penalty: float = PENALTY) -> Rows:
    """Logits of multinomial logistic regression on the shots; higher is likelier.

    Args:
        shots: Rows of length about 1.
        queries: (Q, D), prepared like the shots.
        penalty: > 0, on the squared weights, per shot.

    Returns:
        (Q, K).

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Tian et al., "Rethinking few-shot image classification", ECCV 2020. Deviation: weights are found in the span of
        the shots, where the optimum lies, so D does not matter.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> int(few_shot_logistic(shots, np.array([[0.8, 0.6]])).argmax())
        1
    """
    wide = shots.check_queries(queries)
    kernel, target = shots.rows @ shots.rows.T, shots.one_hot
    share = 1 / (target.shape[1] * shots.counts[shots.labels])

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        duals, bias = np.split(flat, [target.size])
        duals = duals.reshape(target.shape)
        probabilities, entropy = _softmax(kernel @ duals + bias, target)
        error = (probabilities - target) * share[:, None]
        value = float(share @ entropy) + penalty / 2 * float((duals * (kernel @ duals)).sum())
        return value, np.concatenate([(kernel @ (error + penalty * duals)).ravel(), error.sum(axis=0)])

    from scipy.optimize import minimize  # here: importing transferkit stays light

    found = minimize(loss, np.zeros(target.size + target.shape[1]), jac=True, method="L-BFGS-B")
    duals, bias = np.split(found.x, [target.size])
    return np.asarray(wide @ shots.rows.T @ duals.reshape(target.shape) + bias)


def fine_tuned_head(shots: Shots, queries: npt.NDArray[Any], *, steps: int = STEPS, rate: float = RATE) -> Rows:
    """Logits of a linear head that starts as the nearest mean and takes gradient steps on the cross-entropy.

    Args:
        shots: Rows of length about 1.
        queries: (Q, D), prepared like the shots.
        steps: >= 0; 0 is the nearest mean.
        rate: > 0.

    Returns:
        (Q, K).

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Dhillon et al., "A baseline for few-shot image classification", ICLR 2020 (support-based initialisation).
        Deviations: the head alone is trained, by plain gradient descent, and its bias starts as -|m|^2.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> int(fine_tuned_head(shots, np.array([[0.8, 0.6]])).argmax())
        1
    """
    wide, means, target = shots.check_queries(queries), shots.means, shots.one_hot
    weight, bias = 2 * TEMPERATURE * means, -TEMPERATURE * (means**2).sum(axis=1)
    share = 1 / (target.shape[1] * shots.counts[shots.labels])
    for _ in range(steps):
        probabilities, _ = _softmax(shots.rows @ weight.T + bias, target)
        error = (probabilities - target) * share[:, None]
        weight = weight - rate * error.T @ shots.rows
        bias = bias - rate * error.sum(axis=0)
    return np.asarray(wide @ weight.T + bias)


def _softmax(logits: Rows, target: Rows) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Probabilities, and minus the log probability of each row's own class."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(shifted - total), np.asarray(-((shifted - total) * target).sum(axis=1))
