"""Babysitting: one training, read at checkpoints as the doctor reads curves, and changed where that asks for it.

A change is tried on the segment in which its symptom was read, from the checkpoint before it, and kept if the held-back
loss is lower after as many epochs (of a rate that is far off: unless it is far higher). At the end the network is
trained once more on the folds with what was kept from the beginning, as `adapt` would do it, and compared with the
settings as they were: the better one is the outcome.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from transferkit.core.errors import TransferkitError
from transferkit.core.progress import announce
from transferkit.core.provenance import environment
from transferkit.features import choose_device
from transferkit.finetune.checkpoint import CHECKPOINT, RunCheckpoint
from transferkit.finetune.fold_runs import FoldRun, run_fold
from transferkit.finetune.task import FineTuneTask
from transferkit.finetune.watching import MakeWatch
from transferkit.nn import StandardisedLinear
from transferkit.records import Epoch, Fold, Intervention, MonitorRecord, Symptom, TuningRecord, TuningTrial
from transferkit.strategies import TUNABLE
from transferkit.tuning.interventions import (
    FROM_THE_BEGINNING,
    MOST_INTERVENTIONS,
    Change,
    Limits,
    choose_change,
    is_kept,
    key_of,
)
from transferkit.tuning.objective import HeldBackAccuracy, score_run
from transferkit.tuning.points import with_point
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.space import Point
from transferkit.tuning.stages import SearchStage
from transferkit.workflow.decide import decide_session
from transferkit.workflow.finetune_run import FineTuneRun, build_task
from transferkit.workflow.fit import plan_decision
from transferkit.workflow.picture_feed import choose_augmentation
from transferkit.workflow.session import Session

__all__ = ["ReadSegment", "babysit", "plan_checkpoints"]

FEWEST = 5
"""Epochs below which the shape of a curve says little."""


CHECKPOINTS = 4
"""About as many segments are read in a training."""

SOLVED = 1e-3
"""Held-back loss below which nothing is left to mend."""

MONITORED_EVERY = 5
"""Steps between two that the monitor sees: a segment is short."""

FULL = SearchStage(name="full", trials=1, share=1.0, source="best")


def plan_checkpoints(epochs: int) -> tuple[int, ...]:
    """Epochs after which a training is read, the last one included: the first ones as soon as curves have a shape.

    Example:
        >>> plan_checkpoints(16), plan_checkpoints(8), plan_checkpoints(3)
        ((5, 9, 13, 16), (5, 8), (3,))
    """
    each = max(2, math.ceil((epochs - FEWEST) / (CHECKPOINTS - 1)))
    return tuple(dict.fromkeys([*range(min(FEWEST, epochs), epochs - 1, each), epochs]))


class ReadSegment(Protocol):
    """What reads a training up to a checkpoint; the doctor's is passed down from above."""

    def __call__(
        self,
        epochs: Sequence[Epoch],
        record: MonitorRecord | None,
        *,
        classes: int,
        held_back: int,
        planned: int,
        start: float | None,
    ) -> tuple[Symptom, ...]:
        """Symptoms, alarms first."""
        ...


@dataclass(frozen=True)
class Segment:
    """A training up to a checkpoint.

    Args:
        epochs: Trained, from the beginning.
        fold: What was measured.
        folder: Its checkpoint's; None before the first epoch.
        point: Settings that the last part was trained with.
        seconds: Wall-clock of the last part.
        images: Held-back images.
    """

    epochs: int
    fold: FoldRun
    folder: Path
    point: Point
    seconds: float
    images: int

    @property
    def checkpoint(self) -> RunCheckpoint:
        """Curves, and whether it ended."""
        return self.fold.checkpoint

    @property
    def loss(self) -> float:
        """Held-back loss at the checkpoint; infinite where it is not finite, or the training ended before it."""
        loss = self.checkpoint.epochs[-1].val_loss
        reached = len(self.checkpoint.epochs) >= self.epochs
        return loss if reached and loss is not None and math.isfinite(loss) else math.inf

    @property
    def accuracy(self) -> float | None:
        """Held-back accuracy of the last epoch."""
        return self.checkpoint.epochs[-1].val_accuracy


class FoldTraining:
    """Trains the first fold by segments, from any checkpoint, with any settings.

    Args:
        session: Opened and measured.
        options: Of the training.
        folder: For checkpoints.
        epochs: Of the whole training.
        watch: Makes what watches a fit.

    Attributes:
        start: Held-back accuracy before the first step; None of a new head, or before the first segment.
    """

    def __init__(
        self, session: Session, options: TuneOptions, folder: Path, *, epochs: int, watch: MakeWatch | None
    ) -> None:
        self._session, self._options, self._folder, self._epochs = session, options, folder, epochs
        self._watch = watch
        self.start: float | None = None
        self._probe: Any = None
        self._made = 0

    def train(self, point: Point, *, start: Segment | None, until: int) -> Segment:
        """A training continued with a point's settings, from a checkpoint or the beginning."""
        began = time.perf_counter()
        options = with_point(self._options, point)
        # Who ends a training early is the one who reads it.
        recipe = replace(options.recipe, epochs=self._epochs, patience=self._epochs)
        options = replace(options, train=recipe, out=None, progress=False)
        decided = decide_session(self._session, options)
        plan = plan_decision(decided.session, decided.decision)
        images, task, runner = build_task(decided.session, plan, options, watch=self._watch)
        fold, name = images.folds[0], f"segment-{self._made}"
        self._made += 1
        if start is not None:
            _branch(start.folder, self._folder / name, task, fold)
        runner = replace(runner, folder=self._folder, logs=False)
        found = run_fold(task, fold, runner, name, epochs=until, probe=self._probe)
        if self._probe is None:
            self._probe, self.start = found.probe, _first_accuracy(task, fold)
        return Segment(until, found, self._folder / name, point, time.perf_counter() - began, len(fold.held_back))


def _first_accuracy(task: FineTuneTask, fold: Fold) -> float | None:
    """Held-back accuracy of the network before its first step; None if its head is a new one."""
    if task.plan.start == "zero":
        return None
    classifier = task.network(fold.train).model.classifier
    assert isinstance(classifier, StandardisedLinear)
    head = classifier.folded()
    features = task.training_table.take(fold.held_back).load(task.plan.stages)
    logits = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    return float((logits.argmax(axis=1) == task.labels[fold.held_back]).mean())


def _branch(source: Path, target: Path, task: FineTuneTask, fold: Fold) -> None:
    """A checkpoint to continue from with other settings.

    Rates follow from the schedule, which is not in a checkpoint; weight decay is, with the optimizer's groups.
    """
    target.mkdir(parents=True)
    saved = torch.load(source / CHECKPOINT, map_location="cpu", weights_only=True)
    groups = task.network(fold.train).freeze_plan.groups()
    for state in saved["optimizer_states"]:
        for kept, new in zip(state["param_groups"], groups, strict=True):
            kept["weight_decay"] = new["weight_decay"]
    torch.save(saved, target / CHECKPOINT)


@dataclass
class Care:
    """One babysat training: where it is, what was changed, and what was tried.

    Args:
        training: Trains segments.
        read: Reads what was trained.
        settings: As they are, all that may be changed.
        limits: How far.
        classes: K.
        has_time: Whether another change may be tried, by the seconds that the last segment took.
        tell: Shows a sentence.
    """

    training: FoldTraining
    read: ReadSegment
    settings: dict[str, Any]
    limits: Limits
    classes: int
    has_time: Callable[[float], bool]
    tell: Callable[[str], None]
    interventions: list[Intervention] = field(default_factory=list)
    trials: list[TuningTrial] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)
    tried: set[tuple[str, str]] = field(default_factory=set)

    def run(self, checkpoints: tuple[int, ...]) -> None:
        """Train from checkpoint to checkpoint, and try what the curves ask for at each."""
        self.tried |= {key_of(name, value) for name, value in self.settings.items()}
        previous: Segment | None = None
        for until in checkpoints:
            current = self._train(previous, until)
            self.tell(f"epoch {until}: held-back accuracy {_percent(current.accuracy)}, loss {current.loss:.3g}")
            while (asked := self._asks(current, checkpoints[-1])) is not None:
                current = self._try(previous, current, *asked)
            if current.checkpoint.finished:
                return
            if previous is not None:
                shutil.rmtree(previous.folder, ignore_errors=True)
            previous = current

    def _point(self) -> dict[str, Any]:
        """What differs from the first settings, and the rate, which would be searched otherwise."""
        return {"train.lr": self.settings["train.lr"], **self.changed}

    def _train(self, start: Segment | None, until: int) -> Segment:
        found = self.training.train(self._point(), start=start, until=until)
        self.trials.append(_trial(found))  # not the segment, which has weights
        return found

    def _asks(self, current: Segment, epochs: int) -> tuple[Symptom, Change] | None:
        if current.loss < SOLVED or len(self.interventions) >= MOST_INTERVENTIONS or not self.has_time(current.seconds):
            return None
        watch = current.checkpoint.watch
        record = None if watch is None else watch.record()
        symptoms = self.read(
            current.checkpoint.epochs,
            record,
            classes=self.classes,
            held_back=current.images,
            planned=epochs,
            start=self.training.start,
        )
        return choose_change(symptoms, self.settings, self.limits, tried=self.tried)

    def _try(self, previous: Segment | None, current: Segment, symptom: Symptom, change: Change) -> Segment:
        """The segment with the change, if that is better."""
        self.tried.add(change.key)
        before = dict(self.settings), dict(self.changed)
        self.settings[change.setting] = self.changed[change.setting] = change.after
        # Another depth has other parameters in its optimizer.
        is_anew = change.setting == "unfreeze" or symptom.cause in FROM_THE_BEGINNING
        start = None if is_anew else previous
        began, error, other = time.perf_counter(), "", current
        try:
            other = self._train(start, current.epochs)
        except TransferkitError as problem:
            error = str(problem)
        helped = not error and is_kept(symptom.cause, current.loss, other.loss, guessing=math.log(self.classes))
        done = Intervention(
            back_to=0 if start is None else start.epochs,
            epoch=current.epochs,
            symptom=symptom.cause,
            evidence=symptom.evidence,
            setting=change.setting,
            before=change.before,
            after=change.after,
            loss_before=_finite(current.loss),
            loss_after=None if error else _finite(other.loss),
            accuracy_before=current.accuracy,
            accuracy_after=None if error else other.accuracy,
            is_kept=helped,
            seconds=time.perf_counter() - began,
            error=error,
        )
        self.interventions.append(done)
        self.tell(done.sentence)
        if helped:
            shutil.rmtree(current.folder, ignore_errors=True)
            return other
        if other is not current:
            shutil.rmtree(other.folder, ignore_errors=True)
        self.settings, self.changed = before
        return current


def babysit(
    session: Session,
    options: TuneOptions,
    *,
    watch: Callable[[int], MakeWatch | None],
    read: ReadSegment,
    why: str,
    command: str,
    begun: float,
) -> TuningRecord:
    """Babysit one training; its whole outcome as the record of a search.

    Args:
        session: Opened and measured.
        options: With the strategy to train.
        watch: Steps between two that are monitored -> what makes a watch of each fit.
        read: Reads a training up to a checkpoint.
        why: Why babysitting was chosen; "" if it was asked for.
        command: What makes it again.
        begun: Reading of the clock when the whole began.
    """

    def tell(said: str) -> None:
        announce(said, enabled=options.progress)

    trials = list[TuningTrial]()
    run, first = _train_whole(session, options, {}, "advised", trials)
    tell(f"as advised: held-back accuracy {_percent(first.accuracy)}")
    settings, limits = _first_settings(session, options, run)

    def has_time(seconds: float) -> bool:  # the last word has a whole training
        return options.seconds is None or time.perf_counter() + seconds + first.seconds < begun + options.seconds

    epochs = run.images.recipe.epochs or 1
    with tempfile.TemporaryDirectory(prefix="transferkit-") as made:
        training = FoldTraining(session, options, Path(made), epochs=epochs, watch=watch(MONITORED_EVERY))
        care = Care(training, read, dict(settings), limits, session.data.summary.num_classes, has_time, tell)
        care.run(plan_checkpoints(epochs))
    trials += [replace(one, number=place) for place, one in enumerate(care.trials, start=len(trials))]
    rate = {name: value for name, value in care.changed.items() if name == "train.lr"}
    # What helped one fold a little may be luck; a rate that was wrong is not. So it is measured alone as well.
    for name, point in {"all changes": care.changed, "rate alone": rate if rate != care.changed else {}}.items():
        if point and (options.seconds is None or time.perf_counter() < begun + options.seconds):
            _, last = _train_whole(session, options, point, name, trials)
            tell(f"{name}, from the beginning: held-back accuracy {_percent(last.accuracy)}")
    return TuningRecord(
        data=session.data.summary,
        backbone=session.backbone.spec.name,
        strategy=options.strategy,
        space=_space(settings, care.interventions, limits),
        log_scaled=("train.lr",),
        sampler="interventions",
        pruner="none",
        style="panda",
        why_style=why,
        interventions=tuple(care.interventions),
        trials=tuple(trials),
        probe=run.judged.verdict.candidates[0].accuracy,
        images=run.images.held_back,
        base=options.recipe.changed,
        shape=session.backbone.spec.preprocessing.height_width,
        command=command,
        environment=environment(seed=options.seed, device=str(choose_device(options.device))),
        seconds=time.perf_counter() - begun,
    )


def _train_whole(
    session: Session, options: TuneOptions, point: Point, name: str, trials: list[TuningTrial]
) -> tuple[FineTuneRun, TuningTrial]:
    """A training in full, on the folds; it is added to the trials."""
    began = time.perf_counter()
    run = HeldBackAccuracy(session, options).train(point, FULL, lambda step, value: None)
    known = score_run(run).details
    trial = TuningTrial(
        number=len(trials),
        stage=name,
        is_full=True,
        values=dict(point),
        state="complete",
        accuracy=known["accuracy"],
        log_loss=known["log_loss"],
        kept=known["kept"],
        epochs=known["epochs"],
        seconds=time.perf_counter() - began,
    )
    trials.append(trial)
    return run, trial


def _first_settings(session: Session, options: TuneOptions, run: FineTuneRun) -> tuple[dict[str, Any], Limits]:
    """What may be changed, as it is in a training in full, and how far."""
    recipe = run.images.recipe
    lr = float(f"{decide_session(session, options).decision.lr * run.judged.lr_factor:.3g}")
    settings: dict[str, Any] = {"train.lr": lr}
    settings["train.augment"] = choose_augmentation(session, run.images, []).preset
    settings["train.dropout"] = recipe.dropout
    if not recipe.l2_sp:  # weight decay acts without it only
        settings["train.weight_decay"] = recipe.weight_decay
    settings |= {"train.label_smoothing": recipe.label_smoothing, "train.schedule": recipe.schedule}
    stages = [stage.name for stage in session.backbone.stages]
    if options.strategy not in TUNABLE:
        return settings, Limits(lr=lr)
    phase = run.judged.task.plan.phases[-1].name
    claims = [one for one in run.judged.runs[0].claims if one.phase == phase and one.lr > 0]
    settings["unfreeze"] = len({one.stage for one in claims} & set(stages))
    return settings, Limits(lr=lr, stages=len(stages))


def _space(settings: dict[str, Any], interventions: list[Intervention], limits: Limits) -> dict[str, str]:
    """What was changed at least once -> its first value, in words."""
    names = dict.fromkeys(["train.lr", *(one.setting for one in interventions)])
    low, high = limits.rates
    bounds = {"train.lr": f", {low:.3g} to {high:.3g} allowed"}
    return {name: f"{settings[name]} at first{bounds.get(name, '')}" for name in names}


def _trial(one: Segment) -> TuningTrial:
    loss = _finite(one.loss)
    return TuningTrial(
        number=0,
        stage="babysat",
        is_full=False,
        values=dict(one.point),
        state="complete",
        accuracy=0.0 if one.accuracy is None or loss is None else one.accuracy,
        log_loss=loss,
        epochs=len(one.checkpoint.epochs),
        seconds=one.seconds,
    )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
