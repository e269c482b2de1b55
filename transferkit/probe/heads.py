"""The linear heads of a plan, each fitted to banked features and scored on held-back images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.core.errors import OptionError, unknown_name
from transferkit.features import FeatureTable
from transferkit.measure import (
    Selection,
    fit_logistic,
    fit_ridge,
    fit_temperature,
    fitting_threads,
    log_loss,
    select_features,
)
from transferkit.probe.head_fit import HeadFit
from transferkit.probe.target_heads import check_target_head, fit_target_head
from transferkit.probe.weighting import class_weights
from transferkit.records import Folds
from transferkit.strategies import Plan

__all__ = ["HEADS", "HeadFit", "choose_head", "fit_heads"]

HEADS = ("auto", "ridge", "logistic", "average")

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Task:
    """Features, labels, weights and folds that the heads are fitted to."""

    table: FeatureTable
    columns: npt.NDArray[np.int64]
    blocks: Mapping[str, slice]
    labels: npt.NDArray[np.int64]
    classes: int
    weights: npt.NDArray[np.float64] | None
    folds: Folds
    seed: int

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        return self.table.chunks(self.columns)


def choose_head(fits: Sequence[HeadFit]) -> HeadFit:
    """The better of two heads if its lead in held-back accuracy is clear; else their average.

    Clear is more than one standard error of an accuracy.

    Args:
        fits: From `fit_heads`: one head, or ridge, logistic and average.
    """
    if len(fits) == 1:
        return fits[0]
    *single, average = fits
    best, other = sorted(single, key=lambda fit: (-fit.accuracy, fit.log_loss))
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.counting.sum())
    return best if best.accuracy - other.accuracy > error else average


def fit_heads(
    plan: Plan,
    table: FeatureTable,
    labels: npt.NDArray[np.int64],
    *,
    classes: int,
    head: str = "auto",
    class_weight: str = "none",
    selection: Selection | None = None,
    folds: Folds | None = None,
    seed: int = 0,
) -> list[HeadFit]:
    """The requested heads, on the plan's stages.

    Args:
        plan: A closed-form plan.
        table: Rows of the N training images.
        labels: (N,) int in [0, K).
        classes: K.
        head: "ridge", "logistic", "average" of both, or "auto" for all three, if every class has the two
            independent images that a logistic fit needs.
        class_weight: "none" or "balanced".
        selection: For a plan of selected features, if computed already from the same rows and labels.
        folds: Which images are held back together; None: each image is independent of all others. With `targets` there
            is one head for these, by ridge regression.
        seed: Of the folds, of the logistic head and of the selection.

    Raises:
        OptionError: If `head` or `class_weight` is unknown, or a logistic head lacks images.
    """
    if head not in HEADS:
        raise OptionError(unknown_name("head", head, HEADS))
    folds = Folds.alone(labels) if folds is None else folds
    if folds.targets is not None:
        check_target_head(head)
        return [fit_target_head(plan, table, folds, class_weight=class_weight, selection=selection, seed=seed)]
    weights = class_weights(labels, class_weight)
    blocks, columns = table.select(plan.stages)
    task = _Task(table, columns, blocks, labels, classes, weights, folds, seed)
    # A logistic fit cannot hold back a class's only image; exact cross-validation of ridge can.
    if head == "auto" and (not folds.complete or np.bincount(labels, minlength=classes).min() == 0):
        head = "ridge"
    with fitting_threads(len(labels)):
        fits = _fit(task, plan, head, selection)
    if head in BOTH:
        fits.append(_average(fits[0], fits[1], labels))
    return fits[-1:] if head == "average" else fits


UNKNOWN_TEMPERATURE = 0.2
"""Temperature of one-hot regression scores if none can be held back. With one image per class (Lite0, 96 px) the best
one on the test images was 0.17, 0.19 and 0.23 for textures, digits and hand signs."""

BOTH = ("auto", "average")
"""Values of `head` that need both single heads."""


def _fit(task: _Task, plan: Plan, head: str, selection: Selection | None) -> list[HeadFit]:
    if not plan.selected:
        return [fit(task) for name, fit in (("ridge", _ridge), ("logistic", _logistic)) if head in (name, *BOTH)]
    if selection is None:
        selection = select_features(
            task.chunks,
            task.labels,
            task.blocks,
            classes=task.classes,
            weights=task.weights,
            folds=task.folds,
            seed=task.seed,
        )
    return _selected(task, selection, head)


def _selected(task: _Task, selection: Selection, head: str) -> list[HeadFit]:
    """Heads on weighted features, whose held-back accuracy is biased because the weights used all labels.

    The bias is the same for both heads. It is estimated from the true gain of a ridge head over one on the unweighted
    features, cross-validated with features weighted inside each fold.
    """
    ridge, plain = _ridge(task, selection.emphasis), _ridge(task)
    how = f"{selection.kept:,} of {len(task.columns):,} features, cross-validated"
    if not selection.known and head == "ridge":
        return [replace(ridge, how=f"{selection.kept:,} of {len(task.columns):,} features")]
    optimism = ridge.accuracy - (plain.accuracy + selection.gain)
    temperature = fit_temperature(selection.scores, selection.labels, selection.counting)
    loss = log_loss(softmax(selection.scores / temperature, axis=1), selection.labels, selection.counting)
    too_low = loss - ridge.log_loss
    fits = [ridge] if head in ("ridge", *BOTH) else []
    if head in ("logistic", *BOTH):
        fits.append(_logistic(task, selection.emphasis))
    bias = _selection_bias(ridge, selection, len(task.labels))
    return [
        replace(
            fit,
            accuracy=min(1.0, max(0.0, fit.accuracy - optimism)),
            log_loss=max(0.0, fit.log_loss + too_low),
            how=how,
            unbiased=fit.logits - bias[fit.rows],
        )
        for fit in fits
    ]


def _selection_bias(ridge: HeadFit, selection: Selection, images: int) -> Array:
    """(N, K) logits of the ridge head minus those with features selected inside each fold; NaN where unknown."""
    bias, ours = np.full((images, ridge.logits.shape[1]), np.nan), np.full(images, -1)
    ours[ridge.rows] = np.arange(len(ridge.rows))
    known = (selection.counting > 0) & (ours[selection.rows] >= 0)
    rows, scores = selection.rows[known], selection.scores[known] / ridge.temperature
    bias[rows] = ridge.logits[ours[rows]] - (scores - scores.mean(axis=1, keepdims=True))
    return bias


def _average(ridge: HeadFit, logistic: HeadFit, labels: npt.NDArray[np.int64]) -> HeadFit:
    """The head with the mean of the logits; bias corrections of the single heads are applied to it too."""
    # Either may have held back only some of the images.
    rows, ours, theirs = np.intersect1d(ridge.rows, logistic.rows, return_indices=True)
    logits, counting = (ridge.logits[ours] + logistic.logits[theirs]) / 2, logistic.counting[theirs]
    weight, bias = (ridge.weight + logistic.weight) / 2, (ridge.bias + logistic.bias) / 2
    fit = _judge("average", weight, bias, rows, logits, labels, counting)
    plain = _judge("logistic", logistic.weight, logistic.bias, rows, logistic.logits[theirs], labels, counting)
    return replace(
        fit,
        accuracy=min(1.0, max(0.0, fit.accuracy + logistic.accuracy - plain.accuracy)),
        log_loss=max(0.0, fit.log_loss + logistic.log_loss - plain.log_loss),
        how=logistic.how,
        unbiased=None
        if ridge.unbiased is None or logistic.unbiased is None
        else (ridge.unbiased[ours] + logistic.unbiased[theirs]) / 2,
    )


def _judge(
    name: str,
    weight: Array,
    bias: Array,
    rows: npt.NDArray[np.int64],
    logits: Array,
    labels: npt.NDArray[np.int64],
    counting: npt.NDArray[np.float64],
) -> HeadFit:
    truth, known = labels[rows], bool(counting.any())
    right = logits.argmax(axis=1) == truth
    return HeadFit(
        name=name,
        weight=weight - weight.mean(axis=0),
        bias=bias - bias.mean(),
        rows=rows,
        logits=logits - logits.mean(axis=1, keepdims=True),
        counting=counting,
        accuracy=float(np.average(right, weights=counting)) if known else math.nan,
        log_loss=log_loss(softmax(logits, axis=1), truth, counting) if known else math.nan,
        how="",
    )


def _ridge(task: _Task, emphasis: Array | None = None) -> HeadFit:
    order = task.folds.order
    ordered, labels = task.table.take(order), task.labels[order]
    fit = fit_ridge(
        lambda: ordered.chunks(task.columns),
        labels,
        task.blocks,
        classes=task.classes,
        weights=None if task.weights is None else task.weights[order],
        folds=task.folds.take(order),
        emphasis=emphasis,
    )
    counting = fit.path.counting[fit.rows]
    temperature = fit_temperature(fit.held_back, labels[fit.rows], counting) if fit.path.known else UNKNOWN_TEMPERATURE
    weight, bias, logits = (part / temperature for part in (fit.weight, fit.bias, fit.held_back))
    judged = _judge("ridge", weight, bias, order[fit.rows], logits, task.labels, counting)
    # The path's accuracy does not count predictions that are correct only by rounding, with uninformative features.
    how = "exact cross-validation" if fit.path.known else "no image can be held back without its class"
    return replace(judged, accuracy=float(fit.path.accuracy[fit.path.best]), how=how, temperature=temperature)


def _logistic(task: _Task, emphasis: Array | None = None) -> HeadFit:
    fit = fit_logistic(
        task.chunks,
        task.labels,
        task.blocks,
        weights=task.weights,
        folds=task.folds,
        emphasis=emphasis,
        seed=task.seed,
    )
    logits = np.log(np.maximum(fit.probabilities, np.finfo(np.float32).tiny))
    judged = _judge("logistic", fit.weight, fit.bias, fit.held_back, logits, task.labels, fit.counting)
    sampled = f", fitted to {fit.fitted:,} images" if fit.fitted < len(task.labels) else ""
    return replace(judged, how=f"held-back folds{sampled}")
