"""How well the model does on every split, and which classes it confuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import wilson_interval
from transferkit.records import HeldOut, Metrics, RunRecord
from transferkit.report._answers import ConfusedPair, class_recalls, confusion_counts, most_confused
from transferkit.report._plots import HeatMap, draw_heat_map
from transferkit.report._words import (
    capitalise,
    format_count,
    format_number,
    format_percent,
    format_range,
    name_split,
    order_splits,
    plural,
    quote,
)

__all__ = ["Quality", "describe_untested", "write_quality"]

MAX_HEAT_CLASSES = 30
MAX_PAIRS = 20
MAX_RECALLS = 200
OPEN_RECALLS = 12
"""A table of recalls up to this length is shown at once; a longer one is folded."""
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """One class on the held-out split."""

    name: str
    images: str
    right: str
    recall: str
    interval: str
    taken_for: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well the model does."""

    metrics: tuple[tuple[str, ...], ...]
    untested: str
    split: str
    sentence: str
    heat_map: HeatMap | None
    pairs: tuple[tuple[str, str, str, str], ...]
    recalls: tuple[RecallRow, ...]
    more_recalls: int
    folded: bool


def write_quality(record: RunRecord, held_out: HeldOut | None) -> Quality:
    """The metrics of every split, and the confusions on the held-out one."""
    metrics = tuple(_write_metrics_row(split, record.metrics[split]) for split in order_splits(record.metrics))
    if held_out is None:
        return Quality(
            metrics=metrics,
            untested=describe_untested(record),
            split="",
            sentence="",
            heat_map=None,
            pairs=(),
            recalls=(),
            more_recalls=0,
            folded=False,
        )
    names = _class_names(record.evidence.data.classes, held_out)
    counts = confusion_counts(held_out.labels, held_out.probabilities.argmax(axis=1), classes=len(names))
    small = len(names) <= MAX_HEAT_CLASSES
    pairs = most_confused(counts, limit=MAX_PAIRS)
    recalls = _write_recalls(counts, names)
    return Quality(
        metrics=metrics,
        untested=describe_untested(record),
        split=name_split(held_out.split),
        sentence=_describe_errors(counts, held_out.split, pairs, names),
        heat_map=draw_heat_map(counts, names) if small else None,
        pairs=()
        if small
        else tuple(
            (names[pair.true], names[pair.predicted], format_count(pair.count), format_percent(pair.share))
            for pair in pairs
        ),
        recalls=recalls[:MAX_RECALLS],
        more_recalls=max(0, len(recalls) - MAX_RECALLS),
        folded=len(recalls) > OPEN_RECALLS,
    )


def describe_untested(record: RunRecord) -> str:
    """That there are test images whose accuracy is still to be measured, and how; empty if there are none."""
    if not record.untested_images:
        return ""
    return (
        f"The {plural(record.untested_images, 'test image')} were not scored in this run: transferkit evaluate run=DIR "
        "does it, DIR being the folder of this page."
    )


def _class_names(classes: Sequence[str], held_out: HeldOut) -> list[str]:
    # A head may have more outputs than the data has classes (a pretrained head kept as it was).
    extra = range(len(classes), held_out.probabilities.shape[1])
    return [*classes, *(f"output {k}" for k in extra)]


def _write_metrics_row(split: str, scores: Metrics) -> tuple[str, ...]:
    return (
        capitalise(name_split(split)),
        format_count(scores.images),
        format_percent(scores.accuracy),
        format_range(scores.low, scores.high),
        format_percent(scores.balanced_accuracy),
        format_number(scores.log_loss),
        format_percent(scores.calibration_error),
    )


def _describe_errors(counts: Counts, split: str, pairs: Sequence[ConfusedPair], names: Sequence[str]) -> str:
    total, right = int(counts.sum()), int(np.trace(counts))
    where = plural(total, f"{name_split(split)} image")
    if right == total:
        return f"Every one of {where} is classified correctly."
    text = f"{format_count(total - right)} of {where} {'is' if total - right == 1 else 'are'} misclassified."
    worst = pairs[0]
    what = f"{quote(names[worst.true])} is taken for {quote(names[worst.predicted])}"
    return f"{text} Most often, {what} ({plural(worst.count, 'time')})."


def _write_recalls(counts: Counts, names: Sequence[str]) -> tuple[RecallRow, ...]:
    recalls, totals = class_recalls(counts), counts.sum(axis=1)
    # Worst first; of equals the one with more images, which is the surer bad news; classes without images last.
    order = sorted(
        range(len(names)),
        key=lambda k: (math.isnan(recalls[k]), 0 if math.isnan(recalls[k]) else recalls[k], -totals[k]),
    )
    return tuple(_write_recall_row(counts, names, k, float(recalls[k])) for k in order)


def _write_recall_row(counts: Counts, names: Sequence[str], k: int, recall: float) -> RecallRow:
    total, right = int(counts[k].sum()), int(counts[k, k])
    errors = counts[k].copy()
    errors[k] = 0
    rival = int(errors.argmax())
    return RecallRow(
        name=names[k],
        images=format_count(total),
        right=format_count(right),
        recall=format_percent(recall),
        interval=format_range(*wilson_interval(right, total)) if total else "–",
        taken_for=f"{names[rival]} ({format_count(int(errors[rival]))})" if errors[rival] else "–",
    )
