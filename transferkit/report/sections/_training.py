"""How the network was fine-tuned: epoch by epoch, what learnt, and what is worth knowing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.records import Epoch, TrainingRecord
from transferkit.report._epochs import EpochPanel, EpochPhase, draw_epochs, find_phases
from transferkit.report._words import (
    MISSING,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    plural,
)
from transferkit.report.sections._kept import find_probe, name_held_back
from transferkit.report.sections._learning import Learning, write_learning

__all__ = ["TrainingSection", "write_training"]

MAX_EPOCH_ROWS = 200
"""Of more epochs, the table shows evenly spread ones."""


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How the network was fine-tuned.

    Args:
        panels: Small multiples over the epochs.
        lines: Kinds of lines in them that need a legend.
        has_probe: Whether the probe is drawn for comparison.
        phases: In order; empty if there is but one.
        rows: Texts of each epoch: number, phase, losses, accuracy, rate, time; and whether it is the best.
        more: What the rows leave out, as a sentence.
    """

    sentence: str
    panels: tuple[EpochPanel, ...]
    lines: tuple[str, ...]
    has_probe: bool
    phases: tuple[EpochPhase, ...]
    rows: tuple[tuple[tuple[str, ...], bool], ...]
    more: str
    learning: Learning | None
    notes: tuple[str, ...]


def write_training(training: TrainingRecord | None) -> TrainingSection | None:
    """Sentences, small multiples and tables; None where nothing but a head was fitted."""
    if training is None:
        return None
    epochs, best = training.epochs, _best(training)
    probe = find_probe(training.candidates)
    panels = draw_epochs(
        epochs, best=None if best is None else best.number, probe=None if probe is None else probe.accuracy
    )
    phases = find_phases(epochs)
    rows, more = _write_rows(epochs, best)
    found = {line.kind for panel in panels for line in panel.lines}
    return TrainingSection(
        sentence=_describe(training, best, phases),
        panels=panels,
        lines=tuple(kind for kind in ("train", "held-back") if kind in found),
        has_probe=any(panel.probe is not None for panel in panels),
        phases=phases if len(phases) > 1 else (),
        rows=rows,
        more=more,
        learning=write_learning(training.claims),
        notes=training.notes,
    )


def _best(training: TrainingRecord) -> Epoch | None:
    """The best epoch; None where nothing held back could tell."""
    epoch = next((epoch for epoch in training.epochs if epoch.number == training.best_epoch), None)
    return None if epoch is None or (epoch.val_loss is None and epoch.val_accuracy is None) else epoch


def _describe(training: TrainingRecord, best: Epoch | None, phases: Sequence[EpochPhase]) -> str:
    if not training.epochs:
        return "No epochs were recorded."
    several = f" in {plural(len(phases), 'phase')}" if len(phases) > 1 else ""
    took = format_seconds(math.fsum(epoch.seconds for epoch in training.epochs))
    text = f"{plural(len(training.epochs), 'epoch')}{several}, {took}."
    lost = sum(not math.isfinite(epoch.train_loss) for epoch in training.epochs)
    if lost:
        text += f" The training loss was not finite in {format_count(lost)} of them."
    if best is None:
        return f"{text} Nothing was held back to tell the epochs apart."
    said = [
        *([] if best.val_accuracy is None else [f"accuracy {format_percent(best.val_accuracy)}"]),
        *([] if best.val_loss is None else [f"loss {format_number(best.val_loss)}"]),
    ]
    return f"{text} Epoch {best.number + 1} did best on the {name_held_back(training.held_back)}: {', '.join(said)}."


def _write_rows(epochs: Sequence[Epoch], best: Epoch | None) -> tuple[tuple[tuple[tuple[str, ...], bool], ...], str]:
    step = -(-len(epochs) // MAX_EPOCH_ROWS)
    shown = [epoch for n, epoch in enumerate(epochs, start=1) if n % step == 0 or epoch is best or n == len(epochs)]
    rows = tuple((_write_row(epoch), epoch is best) for epoch in shown)
    return rows, f"Every {step}th epoch, the best and the last one." if step > 1 else ""


def _write_row(epoch: Epoch) -> tuple[str, ...]:
    return (
        format_count(epoch.number + 1),
        epoch.phase,
        format_number(epoch.train_loss),
        MISSING if epoch.val_loss is None else format_number(epoch.val_loss),
        MISSING if epoch.val_accuracy is None else format_percent(epoch.val_accuracy),
        format_number(epoch.lr),
        format_seconds(epoch.seconds),
    )
