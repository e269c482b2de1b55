"""Solve for the classifier from the feature bank; the backbone is never run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from transferkit.errors import OptionError, unknown_name
from transferkit.features import FeatureTable
from transferkit.measure import fit_logistic, fit_ridge, fit_temperature, log_loss
from transferkit.nn import Backbone, TransferModel
from transferkit.strategies import Plan

__all__ = ["CLASS_WEIGHTS", "HEADS", "Fitted", "class_weights", "fit_closed_form"]

HEADS = ("auto", "ridge", "logistic")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class Fitted:
    """A fitted model and how its head was chosen.

    Args:
        model: In evaluation mode, on the CPU.
        head: "ridge" or "logistic".
        reason: A sentence with the held-back numbers.
    """

    model: TransferModel
    head: str
    reason: str


@dataclass(frozen=True)
class _Candidate:
    name: str
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any]
    accuracy: float
    log_loss: float
    how: str

    def __str__(self) -> str:
        return f"{self.name} {100 * self.accuracy:.1f} % ({self.how}; log loss {self.log_loss:.3f})"


def class_weights(labels: npt.NDArray[np.int64], scheme: str) -> npt.NDArray[np.float64] | None:
    """(N,) weight per image: None for "none"; for "balanced" such that every class weighs the same.

    Raises:
        OptionError: If the scheme is unknown.

    Example:
        >>> class_weights(np.array([0, 0, 0, 1]), "balanced").round(2).tolist()
        [0.67, 0.67, 0.67, 2.0]
    """
    if scheme not in CLASS_WEIGHTS:
        raise OptionError(unknown_name("class_weight", scheme, CLASS_WEIGHTS))
    if scheme == "none":
        return None
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def fit_closed_form(
    plan: Plan,
    backbone: Backbone,
    table: FeatureTable,
    labels: npt.NDArray[np.int64],
    *,
    classes: Sequence[str],
    pooling: str,
    head: str = "auto",
    class_weight: str = "none",
    seed: int = 0,
) -> Fitted:
    """The plan's classifier from banked features; the backbone's parameters no longer ask for gradients.

    Args:
        plan: A closed-form one; names the stages.
        backbone: What the features came from.
        table: Rows of the N training images.
        labels: (N,) int in [0, K).
        classes: K names.
        pooling: As the features were pooled.
        head: "ridge", "logistic", or "auto": the one with the higher held-back accuracy.
        class_weight: "none" or "balanced".
        seed: Of the logistic head's folds.

    Raises:
        OptionError: If `head` or `class_weight` is unknown, or a logistic head lacks images.
    """
    if head not in HEADS:
        raise OptionError(unknown_name("head", head, HEADS))
    weights = class_weights(labels, class_weight)
    blocks, columns = table.select(plan.stages)
    fits = []
    if head in ("auto", "ridge"):
        fits.append(_ridge(table, columns, labels, blocks, len(classes), weights))
    # A class of one cannot be held back from a logistic fit; exact leave-one-out ridge copes.
    if head == "logistic" or (head == "auto" and np.bincount(labels, minlength=len(classes)).min() >= 2):
        fits.append(_logistic(table, columns, labels, blocks, weights, seed))
    best = min(fits, key=lambda fit: (-fit.accuracy, fit.log_loss))
    model = TransferModel(backbone, stages=plan.stages, pooling=pooling, classes=classes)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(best.weight))
        model.classifier.bias.copy_(torch.from_numpy(best.bias))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    held_back = f"Head by held-back accuracy: {best.name}, from {' and '.join(map(str, fits))}."
    return Fitted(model.eval(), best.name, held_back)


def _ridge(
    table: FeatureTable,
    columns: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    blocks: dict[str, slice],
    classes: int,
    weights: npt.NDArray[np.float64] | None,
) -> _Candidate:
    fit = fit_ridge(lambda: table.chunks(columns), labels, blocks, classes=classes, weights=weights)
    temperature = fit_temperature(fit.loo_scores, labels)
    probabilities = softmax(fit.loo_scores / temperature, axis=1)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    loss = log_loss(probabilities, labels)
    return _Candidate("ridge", fit.weight / temperature, fit.bias / temperature, accuracy, loss, "leave-one-out")


def _logistic(
    table: FeatureTable,
    columns: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    blocks: dict[str, slice],
    weights: npt.NDArray[np.float64] | None,
    seed: int,
) -> _Candidate:
    fit = fit_logistic(lambda: table.chunks(columns), labels, blocks, weights=weights, seed=seed)
    truth = labels[fit.held_back]
    accuracy = float((fit.probabilities.argmax(axis=1) == truth).mean())
    loss = log_loss(fit.probabilities, truth)
    return _Candidate("logistic", fit.weight, fit.bias, accuracy, loss, "held-back folds")
