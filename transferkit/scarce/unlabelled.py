"""Unlabelled images beside labelled ones: used if held-back accuracy says that they help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import OptionError
from transferkit.core.timing import timed
from transferkit.data.unlabelled import UnlabelledImages
from transferkit.features import FeatureTable
from transferkit.measure import fitting_threads, select_features
from transferkit.measure.scaled_rows import ScaledRows, scale_rows
from transferkit.measure.unlabelled import UNLABELLED_METHODS, DualProbe, best_penalty, learn_from_unlabelled
from transferkit.nn import TransferModel
from transferkit.records import Folds
from transferkit.result import Ensemble, Result, load_predictor
from transferkit.strategies import Plan
from transferkit.workflow.fit import Outcome
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import Session
from transferkit.workflow.unlabelled_pictures import open_beside

__all__ = ["UnlabelledGain", "measure_unlabelled", "use_unlabelled"]

MOST_LABELLED = 2048
"""Labelled images above which unlabelled ones are not tried: they are for those who have few labels."""

N_SPLITS = 5

Single = npt.NDArray[np.float32]


@dataclass(frozen=True)
class UnlabelledGain:
    """What unlabelled images bring on labelled ones that were held back.

    Args:
        plain: Accuracy of a ridge probe without them, in [0, 1].
        gains: Method -> accuracy gained, in [-1, 1].
        errors: Method -> standard error of that.
    """

    plain: float
    gains: Mapping[str, float]
    errors: Mapping[str, float]

    @property
    def best(self) -> str | None:
        """The method with the largest gain, if that is more than one standard error; else None."""
        method = max(self.gains, key=lambda name: self.gains[name])
        return method if self.gains[method] > self.errors[method] else None


@dataclass(frozen=True)
class _Features:
    """Scaled features of labelled images, which come first, and unlabelled ones."""

    rows: ScaledRows
    raw: Single
    blocks: Mapping[str, slice]
    labelled: int

    def products(self, emphasis: npt.NDArray[np.floating] | None) -> Single:
        """(N, N) inner products."""
        values = self.rows.values if emphasis is None else self.rows.values * emphasis.astype(np.float32)
        return values @ values.T


def measure_unlabelled(
    features: Single,
    blocks: Mapping[str, slice],
    folds: Folds,
    *,
    classes: int,
    selected: bool,
    answers: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> UnlabelledGain:
    """What each method brings, fitted without the labels of the images that it is scored on.

    Args:
        features: (N, D) raw, of the n labelled images, then of the unlabelled ones.
        blocks: Stage -> its columns.
        folds: Labels of the n images, and which are held back together.
        classes: K.
        selected: Whether features are selected and weighted, by the labels of each fold's own images.
        answers: (N - n, K) of a teacher, which is tried then; None tries `UNLABELLED_METHODS`.
        seed: Of the splits.
    """
    together = _together(features, blocks, len(folds))
    splits = folds.assign_splits(N_SPLITS, seed=seed)
    counting = folds.counting(splits)
    unlabelled = np.arange(len(folds), len(features))
    methods = UNLABELLED_METHODS if answers is None else ("teacher",)
    right: dict[str | None, npt.NDArray[np.float64]]
    right = {method: np.zeros(len(folds)) for method in (None, *methods)}
    for split in range(N_SPLITS):
        train, held_back = np.flatnonzero(splits != split), np.flatnonzero(splits == split)
        if not counting[held_back].any():
            continue
        products = together.products(_emphasis(together, folds.take(train), train, classes, seed) if selected else None)
        for method, found in right.items():
            probe = learn_from_unlabelled(
                products, train, folds.labels[train], unlabelled, classes=classes, method=method, answers=answers
            )
            found[held_back] = probe.scores(products[held_back]).argmax(axis=1) == folds.labels[held_back]
    total = max(float(counting.sum()), 1e-9)
    changes = {name: right[name] - right[None] for name in methods}
    return UnlabelledGain(
        plain=float(counting @ right[None]) / total,
        gains={name: float(counting @ change) / total for name, change in changes.items()},
        errors={name: folds.standard_error(change, counting) for name, change in changes.items()},
    )


def _together(features: Single, blocks: Mapping[str, slice], labelled: int) -> _Features:
    images = len(features)
    rows = scale_rows(lambda: [features], blocks, np.arange(images), weights=np.ones(images))
    return _Features(rows, features, blocks, labelled)


def _emphasis(
    together: _Features, folds: Folds, rows: npt.NDArray[np.int64], classes: int, seed: int
) -> npt.NDArray[np.floating]:
    """(D,) weights of the features by the labels of these images alone."""
    own = together.raw[rows]
    chosen = select_features(lambda: [own], folds.labels, together.blocks, classes=classes, folds=folds, seed=seed)
    return chosen.emphasis


def use_unlabelled(
    session: Session,
    plan: Plan,
    fitted: Outcome,
    source: Any,
    *,
    teacher: Result | Ensemble | str | Path | None = None,
) -> Outcome:
    """The fitted probe, or one that learnt from unlabelled images too, whichever held-back accuracy advises.

    Args:
        session: Backbone, labelled images, and what the frozen pass measured.
        plan: Of the fitted model.
        fitted: The model without unlabelled images.
        source: The unlabelled images, as for `open_unlabelled`.
        teacher: A finished run or ensemble, or its folder, whose answers they get; None: answers of the probe itself.

    Returns:
        The outcome, with a reason that says what became of the unlabelled images.

    Raises:
        OptionError: The teacher has other classes.
    """
    if plan.further_loss:
        return fitted  # they were trained on
    folds = session.measured.folds
    if not fitted.is_probe or not plan.closed_form:
        return _unchanged(fitted, "Unlabelled images are used by strategy=linear_probe, fixmatch and dann only.")
    if len(folds) > MOST_LABELLED:
        return _unchanged(
            fitted, f"Unlabelled images were not tried: there are more than {MOST_LABELLED:,} labelled ones."
        )
    if not folds.complete:
        return _unchanged(fitted, "Unlabelled images were not tried: each class needs two labelled images to tell.")
    with timed(session.seconds, "unlabelled images"), fitting_threads(len(folds)):
        images = open_beside(session, source)
        features, blocks = _features(session, plan, images)
        classes = session.data.summary.num_classes
        answers = None if teacher is None else _ask(teacher, images, session)
        gain = measure_unlabelled(
            features, blocks, folds, classes=classes, selected=plan.selected, answers=answers, seed=session.options.seed
        )
        said = _describe(gain, images)
        method = gain.best
        if method is None:
            return _unchanged(fitted, said)
        together = _together(features, blocks, len(folds))
        emphasis = session.measured.selection.emphasis if plan.selected else None
        products, labelled = together.products(emphasis), np.arange(len(folds))
        unlabelled = np.arange(len(folds), len(features))
        probe = learn_from_unlabelled(
            products, labelled, folds.labels, unlabelled, classes=classes, method=method, answers=answers
        )
        _, temperature = best_penalty(products, labelled, folds.labels, classes=classes)
        model = _as_model(session, plan, together, emphasis, probe, temperature)
    accuracy = fitted.held_back.accuracy
    if accuracy is not None:
        accuracy = min(1.0, accuracy + gain.gains[method])
    return replace(
        fitted, model=model, reasons=(*fitted.reasons, said), held_back=replace(fitted.held_back, accuracy=accuracy)
    )


def _ask(
    teacher: Result | Ensemble | str | Path, images: UnlabelledImages, session: Session
) -> npt.NDArray[np.float32]:
    """(m, K) what the teacher says about the unlabelled images."""
    knows = load_predictor(teacher) if isinstance(teacher, (str, Path)) else teacher
    if knows.classes != session.data.summary.classes:
        differing = sorted(set(knows.classes) ^ set(session.data.summary.classes))
        shown = ", ".join(differing[:5]) or "the same ones in another order"
        raise OptionError(f"The teacher has other classes than the images: {shown}. Leave teacher out.")
    options = session.options
    return knows.predict(list(images.names), max_pixels=options.max_pixels, device=options.device).probabilities


def _unchanged(fitted: Outcome, reason: str) -> Outcome:
    return replace(fitted, reasons=(*fitted.reasons, reason))


def _features(session: Session, plan: Plan, images: UnlabelledImages) -> tuple[Single, dict[str, slice]]:
    """(n + m, D) raw features of the plan's stages, and their columns."""
    options, measured = session.options, session.measured
    unlabelled: FeatureTable = read_features(
        session.backbone,
        images,
        bank=session.bank,
        pooling=options.pooling,
        device=options.device,
        batch_size=options.batch_size,
        engines=session.engines,
        progress=options.progress,
    ).table
    labelled = measured.features(measured.train)
    blocks, _ = labelled.select(plan.stages)
    return np.concatenate([labelled.load(plan.stages), unlabelled.load(plan.stages)]), blocks


def _describe(gain: UnlabelledGain, images: UnlabelledImages) -> str:
    names = {"pseudo_labels": "pseudo-labels", "label_spreading": "label spreading", "teacher": "the teacher's answers"}
    listed = ", ".join(
        f"{names[name]} {100 * value:+.1f} ± {100 * gain.errors[name]:.1f}" for name, value in gain.gains.items()
    )
    verdict = "none helps beyond noise, so the plain probe is returned"
    if gain.best is not None:
        verdict = f"{names[gain.best]} {'is' if gain.best == 'label_spreading' else 'are'} used"
    return (
        f"With {len(images):,} unlabelled images, held-back accuracy of a ridge probe "
        f"({100 * gain.plain:.1f} %) changes by: {listed} points; {verdict}."
    )


def _as_model(
    session: Session,
    plan: Plan,
    together: _Features,
    emphasis: npt.NDArray[np.floating] | None,
    probe: DualProbe,
    temperature: float,
) -> TransferModel:
    factor = np.ones(together.rows.values.shape[1]) if emphasis is None else np.asarray(emphasis, dtype=np.float64)
    weight = (probe.coefficients.T @ together.rows.values[probe.rows]) * factor**2 * together.rows.scale
    bias = (probe.base - weight @ together.rows.mean) / temperature
    weight = weight / temperature
    model = TransferModel(
        session.backbone, stages=plan.stages, pooling=session.options.pooling, classes=session.data.summary.classes
    )
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(weight - weight.mean(axis=0)))
        model.linear.bias.copy_(torch.from_numpy(bias - bias.mean()))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    return model.eval()
