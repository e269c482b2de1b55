"""What a point of the space is worth: the held-back accuracy of what `adapt` would make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.core.errors import DataError
from transferkit.core.frameworks import lightning
from transferkit.finetune import fit_recipe
from transferkit.finetune.watching import FitWatch
from transferkit.options import AdaptOptions
from transferkit.probe import choose_head, fit_heads
from transferkit.records import MonitorRecord
from transferkit.tuning.points import PROBE, with_point
from transferkit.tuning.space import Point
from transferkit.tuning.stages import SearchStage
from transferkit.tuning.study import Report, Score
from transferkit.workflow.decide import decide_session
from transferkit.workflow.finetune_run import FineTuneRun, begin_run
from transferkit.workflow.fit import plan_decision
from transferkit.workflow.session import Session

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["HeldBackAccuracy", "score_run"]

TIE = 0.5
"""Share of an image that a lower held-back loss is worth at most: it decides between equal accuracies."""

FINAL_FOLDS = 3
"""Folds that the best points are compared on, unless train.folds says how many."""


class HeldBackAccuracy:
    """An objective: accuracy on images held back in turn, of a network trained on the others.

    The test images are never looked at. All trials share what was opened and measured, the feature bank, and cached
    activations of frozen stages.

    Args:
        session: Opened and measured.
        options: Of all trials, with the name of a strategy that trains a network.
        by_fold: Report the accuracy of each fold; else of each epoch of the first one.
    """

    def __init__(self, session: Session, options: AdaptOptions, *, by_fold: bool = False) -> None:
        self._session, self._options, self._by_fold = session, options, by_fold

    def __call__(self, point: Point, stage: SearchStage, report: Report) -> Score:
        options = with_point(self._options, point)
        if options.strategy == PROBE:
            return score_probe(self._session, options)
        return score_run(self.train(point, stage, report))

    def train(self, point: Point, stage: SearchStage, report: Report) -> FineTuneRun:
        """The folds, trained with a point and judged."""
        options = with_point(self._options, point)
        full = fit_recipe(options.recipe, self._session.data.summary.train_images)
        folds = options.recipe.folds
        if folds is None and stage.is_decider:
            folds = max(full.folds or 1, FINAL_FOLDS)
        epochs = stage.epochs(full.epochs or 1)
        recipe = replace(options.recipe, epochs=epochs, folds=folds, monitor=0)
        options = replace(options, train=recipe, out=None, progress=False)
        decided = decide_session(self._session, options)
        reporter = _Reporter(report, by_fold=self._by_fold)
        plan = plan_decision(decided.session, decided.decision)
        return begin_run(decided.session, plan, options, watch=reporter.next_fold)


def score_run(run: FineTuneRun) -> Score:
    """What a trained point is worth."""
    probe, *_, tuned = run.judged.verdict.candidates
    images = run.images.held_back
    return Score(
        value=tuned.accuracy + TIE / images / (1 + tuned.log_loss),
        details={
            "accuracy": tuned.accuracy,
            "log_loss": tuned.log_loss,
            "probe": probe.accuracy,
            "kept": run.judged.verdict.kept.accuracy,
            "epochs": run.images.recipe.epochs,
            "best_epoch": run.judged.best + 1,
            "images": images,
        },
    )


def score_probe(session: Session, options: AdaptOptions) -> Score:
    """What a linear probe is worth, which is solved for on the session's features."""
    measured = session.measured
    decision = decide_session(session, options).decision
    fits = fit_heads(
        plan_decision(session, decision),
        measured.features(measured.train),
        measured.labels,
        classes=len(session.data.summary.classes),
        head=options.head,
        class_weight=options.class_weight,
        selection=measured.selection,
        folds=measured.folds,
        seed=options.seed,
    )
    best = choose_head(fits)
    if not best.known:
        raise DataError("No image can be held back to measure a probe: every class needs two independent images.")
    known = [probe.accuracy for probe in measured.evidence.probes if probe.accuracy is not None]
    return Score(
        value=best.accuracy + TIE / best.held_back / (1 + best.log_loss),
        details={
            "accuracy": best.accuracy,
            "log_loss": best.log_loss,
            "probe": max(known, default=None),
            "kept": best.accuracy,
            "images": best.held_back,
        },
    )


class _Reporter:
    """Tells the study how a trial is doing while its folds are trained."""

    def __init__(self, report: Report, *, by_fold: bool) -> None:
        self._report, self._by_fold = report, by_fold
        self._fold = -1

    def next_fold(self, folder: Path | None) -> FitWatch:
        """What watches the next fold."""
        self._fold += 1
        return _FoldWatch(self._report, fold=self._fold, by_fold=self._by_fold)


class _FoldWatch(FitWatch):
    """Reports each epoch of the first fold, or each fold's best epoch; what the report raises ends the fit."""

    def __init__(self, report: Report, *, fold: int, by_fold: bool) -> None:
        self._report, self._fold, self._by_fold = report, fold, by_fold
        self._best = 0.0

    def record(self) -> MonitorRecord | None:
        """Nothing is kept."""
        return None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the accuracy, and report it in the first fold."""
        found = trainer.callback_metrics.get("val_accuracy")
        accuracy = 0.0 if found is None else float(found)
        self._best = max(self._best, accuracy)
        if not self._by_fold and self._fold == 0:
            self._report(trainer.current_epoch + 1, accuracy)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the fold."""
        if self._by_fold:
            self._report(self._fold, self._best)
