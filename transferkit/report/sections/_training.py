"""How the network was fine-tuned: epochs, which parameters were trained, notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.records import Epoch, TrainingRecord
from transferkit.report._fine_tuning import EpochRange, find_best_epoch, find_phases, name_held_back
from transferkit.report._words import (
    MISSING,
    format_count,
    format_measure,
    format_number,
    format_seconds,
    plural,
)
from transferkit.report.sections._learning import Learning, write_learning

__all__ = ["TrainingSection", "write_training"]

FEWEST = 5
"""Epochs below which a curve has no shape, as in `doctor.read_curves`."""

MAX_EPOCH_ROWS = 200
"""Of more epochs, the table shows evenly spaced ones."""


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How the network was fine-tuned.

    Args:
        rows: Texts of each epoch: number, phase, losses, accuracy, rate, time; and whether it is the best.
        more: Which epochs the rows show, if not all.
        learning: Which parameters were trained.
        notes: Further facts, a sentence each.
        symptoms: What curves and monitor say is wrong: severity, cause in words, evidence, remedy.
        reassurance: What was looked at and found well; empty if there are symptoms, or nothing was looked at.
    """

    sentence: str
    rows: tuple[tuple[tuple[str, ...], bool], ...]
    more: str
    learning: Learning | None
    notes: tuple[str, ...]
    symptoms: tuple[tuple[str, str, str, str], ...]
    reassurance: str


def write_training(training: TrainingRecord | None) -> TrainingSection | None:
    """Sentences and tables; None if only a head was fitted."""
    if training is None:
        return None
    best = find_best_epoch(training)
    rows, more = _write_rows(training.epochs, best, _measure(training))
    return TrainingSection(
        sentence=_describe(training, best, find_phases(training.epochs)),
        rows=rows,
        more=more,
        learning=write_learning(training.claims),
        notes=(*training.notes, *(() if training.monitor is None else training.monitor.missing)),
        symptoms=tuple(
            (one.severity, one.cause.replace("_", " "), one.evidence, one.remedy) for one in training.symptoms or ()
        ),
        reassurance=_reassure(training),
    )


def _reassure(training: TrainingRecord) -> str:
    """One paragraph for a run without symptoms."""
    if training.symptoms is None or training.symptoms or not training.epochs:
        return ""
    first, last = training.epochs[0].train_loss, training.epochs[-1].train_loss
    if len(training.epochs) > 1:
        text = f"No sign of trouble. The training loss goes from {format_number(first)} to {format_number(last)}"
    else:
        text = f"No sign of trouble. The training loss is {format_number(last)}"
    shown = len(training.epochs) >= FEWEST
    shape = (
        ", and neither it nor the held-back loss has a shape that means something."
        if shown
        else f"; fewer than {FEWEST} epochs show no shape."
    )
    if training.monitor is None:
        return f"{text}{shape}"
    steps = plural(len(training.monitor.steps), "step")
    return (
        f"{text}{shape} In {steps} looked at from inside, updates, gradients and units were sound, and every loss and "
        "gradient of the first fold was finite."
    )


def _describe(training: TrainingRecord, best: Epoch | None, phases: Sequence[EpochRange]) -> str:
    if not training.epochs:
        return "No epochs were recorded."
    several = f" in {plural(len(phases), 'phase')}" if len(phases) > 1 else ""
    took = format_seconds(math.fsum(epoch.seconds for epoch in training.epochs))
    text = f"{plural(len(training.epochs), 'epoch')}{several}, {took}."
    lost = sum(not math.isfinite(epoch.train_loss) for epoch in training.epochs)
    if lost:
        text += f" The training loss was not finite in {format_count(lost)} of them."
    if best is None:
        if any(epoch.val_loss is not None for epoch in training.epochs):
            return f"{text} No epoch ended with a finite held-back loss."
        return f"{text} No images were held back to compare the epochs on."
    said = [
        *(
            []
            if best.val_accuracy is None
            else [f"{_measure(training)} {format_measure(best.val_accuracy, _measure(training))}"]
        ),
        *([] if best.val_loss is None else [f"loss {format_number(best.val_loss)}"]),
    ]
    return f"{text} Epoch {best.number + 1} was best on the {name_held_back(training.held_back)}: {', '.join(said)}."


def _measure(training: TrainingRecord) -> str:
    return training.kept.measure


def _write_rows(
    epochs: Sequence[Epoch], best: Epoch | None, measure: str
) -> tuple[tuple[tuple[tuple[str, ...], bool], ...], str]:
    step = -(-len(epochs) // MAX_EPOCH_ROWS)
    shown = [epoch for n, epoch in enumerate(epochs, start=1) if n % step == 0 or epoch is best or n == len(epochs)]
    rows = tuple((_write_row(epoch, measure), epoch is best) for epoch in shown)
    nth = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
    return rows, f"Every {nth} epoch, the best and the last one." if step > 1 else ""


def _write_row(epoch: Epoch, measure: str) -> tuple[str, ...]:
    return (
        format_count(epoch.number + 1),
        epoch.phase,
        format_number(epoch.train_loss),
        MISSING if epoch.val_loss is None else format_number(epoch.val_loss),
        MISSING if epoch.val_accuracy is None else format_measure(epoch.val_accuracy, measure),
        format_number(epoch.lr),
        format_seconds(epoch.seconds),
    )
