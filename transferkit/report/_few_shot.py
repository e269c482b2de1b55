"""What the page of few-shot episodes says: a `FewShotRecord` in; sentences and rows out."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import FewShotRecord, FewShotScore
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import as_typed, format_count, format_percent, format_range, format_seconds, plural
from transferkit.report.charts.axes import Axis, share_axis

__all__ = ["FewShotPage", "write_few_shot"]


@dataclass(frozen=True, kw_only=True)
class FewShotPage:
    """Everything the page says."""

    title: str
    figure: str
    what: str
    sentences: tuple[str, ...]
    axis: Axis
    accuracies: tuple[IntervalRow, ...]
    methods: tuple[tuple[str, ...], ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_few_shot(record: FewShotRecord) -> FewShotPage:
    """The page of few-shot episodes."""
    axis = share_axis([share for one in record.scores for share in (one.low, one.high)])
    best = record.best
    return FewShotPage(
        title=f"{record.backbone} on {record.data.origin}",
        figure=format_percent(best.accuracy),
        what=f"with {plural(record.shots, 'labelled image')} per class ({best.method})",
        sentences=record.sentences,
        axis=axis,
        accuracies=tuple(_row(one, axis, chosen=one is best) for one in record.scores),
        methods=tuple(_cells(one) for one in record.scores),
        facts=(
            ("Images", format_count(record.images)),
            ("Classes", format_count(record.data.num_classes)),
            ("Views averaged", ", ".join(record.views) or "1"),
            ("Seed", str(record.seed)),
            ("Total time", format_seconds(sum(record.seconds.values()))),
        ),
        command=as_typed(record.command),
    )


def _row(one: FewShotScore, axis: Axis, *, chosen: bool) -> IntervalRow:
    return IntervalRow(
        name=one.method,
        chosen=chosen,
        value=format_percent(one.accuracy),
        interval=format_range(one.low, one.high),
        at=axis.place(one.accuracy),
        low=axis.place(one.low),
        high=axis.place(one.high),
    )


def _cells(one: FewShotScore) -> tuple[str, ...]:
    return (
        one.method,
        one.sentence,
        "yes" if one.transductive else "no",
        f"{100 * one.gain:+.1f} ({100 * one.gain_low:+.1f} to {100 * one.gain_high:+.1f})",
        f"{1000 * one.seconds:.1f} ms",
    )
