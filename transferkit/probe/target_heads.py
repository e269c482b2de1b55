"""The linear head for several labels per image, or for numbers: ridge regression, calibrated on held-back images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from transferkit.core.errors import OptionError
from transferkit.core.intervals import TWO_SIDED
from transferkit.features import FeatureTable
from transferkit.measure import (
    RidgeHead,
    Selection,
    choose_thresholds,
    fit_label_calibration,
    fit_ridge,
    fitting_threads,
    label_loss,
    resample_score,
    select_features,
    target_units,
)
from transferkit.probe.head_fit import HeadFit
from transferkit.probe.weighting import choose_weighting, image_weights
from transferkit.records import Folds, Targets
from transferkit.strategies import Plan

__all__ = ["check_target_head", "fit_target_head"]

TARGET_HEADS = ("auto", "ridge")

UNKNOWN_SLOPE = 8.0
"""Slope of a label's logit in units of p (1 - p) where nothing could be held back; 4 to 12 on our tasks."""


def check_target_head(head: str) -> None:
    """Raise `OptionError` unless it is a kind of head that labels and numbers can have."""
    if head not in TARGET_HEADS:
        raise OptionError(
            f"head={head} is for one class per image; labels and numbers have a ridge head. Leave head out."
        )


def fit_target_head(
    plan: Plan,
    table: FeatureTable,
    folds: Folds,
    *,
    class_weight: str = "none",
    selection: Selection | None = None,
    seed: int = 0,
) -> HeadFit:
    """Ridge regression of the targets, its penalty chosen by exact cross-validation.

    Numbers are predicted in their own units. Scores of labels are calibrated with the exactly held-back ones, and the
    calibration is part of the weights: a sigmoid of the outputs is a probability.

    Args:
        plan: A closed-form plan.
        table: Rows of the N training images.
        folds: Their targets, and which images are held back together.
        class_weight: "balanced" calibrates each label as if half of the images had it; "auto" is "none": thresholds are
            chosen for each label anyway.
        selection: For a plan of selected features, if computed already from the same rows.
        seed: Of the selection.
    """
    assert folds.targets is not None
    image_weights(folds, class_weight)
    is_balanced = folds.targets.is_labels and choose_weighting([], class_weight) == "balanced"
    blocks, columns = table.select(plan.stages)
    order = folds.order
    ordered, sorted_folds = table.take(order), folds.take(order)
    targets = folds.targets

    def fit(emphasis: npt.NDArray[np.floating] | None) -> HeadFit:
        found = fit_ridge(
            lambda: ordered.chunks(columns),
            sorted_folds.labels,
            blocks,
            classes=len(targets.names),
            folds=sorted_folds,
            emphasis=emphasis,
        )
        return _judged(found, targets.take(order), sorted_folds, order, is_balanced=is_balanced)

    with fitting_threads(len(folds)):
        if not plan.selected:
            return fit(None)
        if selection is None:
            selection = select_features(
                lambda: table.chunks(columns), folds.labels, blocks, classes=len(targets.names), folds=folds, seed=seed
            )
        return _with_selection(fit(selection.emphasis), fit(None), selection, len(columns))


def _judged(
    found: RidgeHead,
    targets: Targets,
    folds: Folds,
    order: npt.NDArray[np.int64],
    *,
    is_balanced: bool,
) -> HeadFit:
    """The head with its scores on held-back images; all in the order of the fit."""
    counting, held_back = found.path.counting[found.rows], found.held_back
    truth, known = targets.take(found.rows), found.path.known
    score = resample_score(truth, held_back, folds.take(found.rows), counting=counting)
    weight, bias, logits, loss = found.weight, found.bias, held_back, math.nan
    thresholds: tuple[float, ...] = ()
    if targets.is_labels:
        weight, bias, logits, thresholds = _calibrated(found, truth, counting, is_balanced=is_balanced)
        loss = label_loss(logits, truth.values, counting) if known else math.nan
    elif known:
        unit = target_units(targets, np.ones(len(targets)))
        loss = float(np.average((((held_back - truth.values) / unit) ** 2).mean(axis=1), weights=counting))
    return HeadFit(
        name="ridge",
        weight=weight,
        bias=bias,
        rows=order[found.rows],
        logits=logits,
        counting=counting,
        accuracy=score.score if known else math.nan,
        log_loss=loss,
        how="exact cross-validation" if known else "no image can be held back",
        measure=targets.measure,
        thresholds=thresholds,
        interval=score.interval if score.known else None,
    )


def _calibrated(
    found: RidgeHead, truth: Targets, counting: npt.NDArray[np.float64], *, is_balanced: bool
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], npt.NDArray[np.floating], tuple[float, ...]]:
    """Weight, bias and held-back scores as logits, and thresholds."""
    if not found.path.known:
        share = np.clip(truth.values.mean(axis=0), 1 / (len(truth) + 2), 1 - 1 / (len(truth) + 2))
        slope = UNKNOWN_SLOPE / (share * (1 - share)) / 4
        bias = np.log(share / (1 - share)) - slope * share
        return found.weight * slope[:, None], found.bias * slope + bias, found.held_back * slope + bias, ()
    fitted = fit_label_calibration(found.held_back, truth.values, counting, is_balanced=is_balanced)
    logits = fitted.apply(found.held_back)
    thresholds = choose_thresholds(expit(logits), truth.values, counting)
    return (
        found.weight * fitted.slope[:, None],
        found.bias * fitted.slope + fitted.bias,
        logits,
        tuple(thresholds.tolist()),
    )


def _with_selection(fit: HeadFit, plain: HeadFit, selection: Selection, features: int) -> HeadFit:
    """The head on selected features with an unbiased score: that on all features, plus the gain by selection where both
    are cross-validated."""
    how = f"{selection.kept:,} of {features:,} features, cross-validated"
    if not selection.known:
        return replace(fit, how=how)
    score, margin = min(1.0, plain.accuracy + selection.gain), TWO_SIDED * selection.gain_error
    interval = None
    if plain.interval is not None:
        below, above = plain.accuracy - plain.interval[0], plain.interval[1] - plain.accuracy
        interval = score - math.hypot(below, margin), min(1.0, score + math.hypot(above, margin))
    loss = fit.log_loss if fit.measure != "R2" else max(0.0, plain.log_loss * _ratio(selection))
    return replace(fit, accuracy=score, log_loss=loss, interval=interval, how=how)


def _ratio(selection: Selection) -> float:
    """Squared error with selection over that without, in the same folds."""
    without = selection.squared_error - selection.error_gain
    return selection.squared_error / without if without > 0 else 1.0
