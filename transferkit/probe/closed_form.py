"""Closed-form fit of the classifier from the feature bank, without running the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from transferkit.features import FeatureTable
from transferkit.measure import Selection
from transferkit.nn import Backbone, TransferModel
from transferkit.probe.heads import HeadFit, choose_head, fit_heads
from transferkit.records import Folds, HeldBackScores
from transferkit.strategies import Plan

__all__ = ["Fitted", "fit_closed_form"]


@dataclass(frozen=True)
class Fitted:
    """A fitted model and how its head was chosen.

    Args:
        model: In evaluation mode, on the CPU.
        head: "ridge", "logistic" or "average".
        accuracy, log_loss: Of that head on held-back training images; NaN if nothing can be held back. Of labels and
            numbers as for `HeadFit`.
        held_back: Number of these images.
        reason: A sentence with the held-back numbers.
        scores: Logits of the images that were held back.
        interval: 95 % interval of the score of labels or numbers; None for an accuracy.
    """

    model: TransferModel
    head: str
    accuracy: float
    log_loss: float
    held_back: int
    reason: str
    scores: HeldBackScores | None = None
    interval: tuple[float, float] | None = None


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
    selection: Selection | None = None,
    folds: Folds | None = None,
    seed: int = 0,
) -> Fitted:
    """The plan's classifier fitted to banked features; the backbone's parameters are set to requires_grad=False.

    Args:
        plan: A closed-form plan; names the stages.
        backbone: The backbone of the features.
        table: Rows of the N training images.
        labels: (N,) int in [0, K).
        classes: K names.
        pooling: Of the features.
        head: "ridge", "logistic", their "average", or "auto": the average, unless one has clearly better held-back
            accuracy.
        class_weight: "none" or "balanced".
        selection: For a plan of selected features, if computed already.
        folds: Which images are held back together; None: each image is independent of all others.
        seed: Of the folds, of the logistic head and of the selection.

    Raises:
        OptionError: If `head` or `class_weight` is unknown, or a logistic head lacks images.
    """
    fits = fit_heads(
        plan,
        table,
        labels,
        classes=len(classes),
        head=head,
        class_weight=class_weight,
        selection=selection,
        folds=folds,
        seed=seed,
    )
    best = choose_head(fits)
    task = "single_label" if folds is None or folds.targets is None else folds.targets.task
    model = TransferModel(backbone, stages=plan.stages, pooling=pooling, classes=classes, task=task)
    model.thresholds = best.thresholds
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(best.weight))
        model.linear.bias.copy_(torch.from_numpy(best.bias))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    return Fitted(
        model=model.eval(),
        head=best.name,
        accuracy=best.accuracy,
        log_loss=best.log_loss,
        held_back=best.held_back,
        reason=_reason(best, fits),
        scores=best.scores(labels) if best.measure == "accuracy" else None,
        interval=best.interval,
    )


def _reason(best: HeadFit, fits: Sequence[HeadFit]) -> str:
    methods = {fit.how for fit in fits}
    if len(fits) == 1:
        return f"Head: {best}; {best.how}."
    single = {"ridge": "ridge leads logistic clearly", "logistic": "logistic leads ridge clearly"}
    why = single.get(best.name, "neither ridge nor logistic leads clearly")
    how = f" ({methods.pop()})" if len(methods) == 1 else ""
    return f"Head by held-back accuracy{how}: {best.name}, from {', '.join(map(str, fits))}; {why}."
