"""Accuracy on every split, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import wilson_interval
from transferkit.records import HeldOut, Metrics, RunRecord
from transferkit.report._predictions import (
    ConfusedPair,
    class_recalls,
    confusion_counts,
    most_confused,
    name_classes,
)
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
from transferkit.report.charts.heat_map import MAX_CLASSES

__all__ = ["Quality", "describe_untested", "write_quality"]

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
    confused_with: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Metrics, confusions and recalls."""

    metrics: tuple[tuple[str, ...], ...]
    untested: str
    split: str
    sentence: str
    pairs: tuple[tuple[str, str, str, str], ...]
    recalls: tuple[RecallRow, ...]
    more_recalls: int
    folded: bool


def write_quality(record: RunRecord, held_out: HeldOut | None) -> Quality:
    """The metrics of every split, and the confusions on the held-out one."""
    known = {split: found for split, found in record.metrics.items() if isinstance(found, Metrics)}
    metrics = tuple(_write_metrics_row(split, known[split]) for split in order_splits(known))
    if held_out is None:
        return Quality(
            metrics=metrics,
            untested=describe_untested(record),
            split="",
            sentence="",
            pairs=(),
            recalls=(),
            more_recalls=0,
            folded=False,
        )
    names = name_classes(record, held_out)
    counts = confusion_counts(held_out.labels, held_out.probabilities.argmax(axis=1), classes=len(names))
    pairs = most_confused(counts, limit=MAX_PAIRS)
    recalls = _write_recalls(counts, names)
    return Quality(
        metrics=metrics,
        untested=describe_untested(record),
        split=name_split(held_out.split),
        sentence=_describe_errors(counts, held_out.split, pairs, names),
        # With few classes the heat map shows them.
        pairs=() if len(names) <= MAX_CLASSES else tuple(_write_pair(pair, names) for pair in pairs),
        recalls=recalls[:MAX_RECALLS],
        more_recalls=max(0, len(recalls) - MAX_RECALLS),
        folded=len(recalls) > OPEN_RECALLS,
    )


def describe_untested(record: RunRecord) -> str:
    """A sentence on how to score the test images, if that was not done; else empty."""
    if not record.untested_images:
        return ""
    return (
        f"The {plural(record.untested_images, 'test image')} were not scored in this run: transferkit evaluate run=DIR "
        "scores them, where DIR is the folder of this page."
    )


def _write_pair(pair: ConfusedPair, names: Sequence[str]) -> tuple[str, str, str, str]:
    return names[pair.true], names[pair.predicted], format_count(pair.count), format_percent(pair.share)


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
    what = f"{quote(names[worst.true])} is classified as {quote(names[worst.predicted])}"
    return f"{text} The most frequent mistake: {what} ({plural(worst.count, 'time')})."


def _write_recalls(counts: Counts, names: Sequence[str]) -> tuple[RecallRow, ...]:
    recalls, totals = class_recalls(counts), counts.sum(axis=1)
    # Worst first; of equal recalls the one over more images, which is the more certain; classes without images last.
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
        confused_with=f"{names[rival]} ({format_count(int(errors[rival]))})" if errors[rival] else "–",
    )
