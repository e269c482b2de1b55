"""Expected accuracy of each option against the seconds after which it would be there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from transferkit.records import Alternative, RunRecord
from transferkit.report._words import format_percent, format_range, format_seconds, name_stage, name_strategy
from transferkit.report.charts.axes import log_axis, share_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Dots, Line, Mark, Point, ReferenceLine, Tone

__all__ = ["best_by_then"]


@CHARTS.register("accuracy_seconds")
def accuracy_seconds(record: RunRecord) -> Figure | None:
    """The best option of each strategy, over the seconds of the measurement and its own; None with fewer than two."""
    before = math.fsum(value for value in record.evidence.seconds.values() if math.isfinite(value))
    options = _best_of_each(record)
    if len(options) < 2 or before <= 0:
        return None
    seconds = [before + option.cost_seconds for option in options]
    named = [_point(record, one, at) for one, at in zip(options, seconds, strict=True)]
    chart = Chart(
        title="Expected accuracy of each option by seconds from the start; the table has the same numbers",
        x=log_axis(seconds, name="Seconds from the start (log scale)"),
        y=share_axis([end for one in options for end in (one.low, one.high)], slack=0.02, name="Expected accuracy"),
        marks=tuple(_marks(record, options, named)),
        down=240.0,
    )
    return Figure(
        section="decision",
        heading="What more time would bring",
        caption="The best option of each strategy at the time when it would be there: after "
        f"{format_seconds(before)} of measuring, and what it takes itself on this machine. Coloured: the chosen one. "
        "The line is the best that could be had by then; bars are 95 % intervals. budget=SECONDS limits what may "
        "follow the measurement.",
        charts=(chart,),
    )


def _best_of_each(record: RunRecord) -> list[Alternative]:
    """One option of each strategy, the one that was chosen or else the best, by their cost."""
    best: dict[str, Alternative] = {}
    for option in sorted(record.decision.options, key=lambda one: (_is_chosen(record, one), one.expected_accuracy)):
        best[option.strategy] = option
    return sorted(best.values(), key=lambda option: option.cost_seconds)


def best_by_then(accuracies: Sequence[float]) -> list[float]:
    """The highest value so far.

    Example:
        >>> best_by_then([0.7, 0.6, 0.8])
        [0.7, 0.7, 0.8]
    """
    return [max(accuracies[: count + 1]) for count in range(len(accuracies))]


def _marks(record: RunRecord, options: Sequence[Alternative], points: Sequence[Point]) -> Iterator[Mark]:
    for option, point in zip(options, points, strict=True):
        tone: Tone = "accent" if _is_chosen(record, option) else "quiet"
        yield ReferenceLine(at=point.x, axis="x", label=option.strategy, tone=tone, weight=0.75)
    highest = best_by_then([point.y for point in points])
    yield Line(points=list(_steps([point.x for point in points], highest)), tone="quiet", weight=1.5, dashes="5 4")
    for option, point in zip(options, points, strict=True):
        chosen = _is_chosen(record, option)
        yield Dots(points=[point], tone="accent" if chosen else "quiet", radius=6 if chosen else 4)


def _is_chosen(record: RunRecord, option: Alternative) -> bool:
    return (option.strategy, option.stage) == (record.decision.strategy, record.decision.stage)


def _steps(seconds: Sequence[float], highest: Sequence[float]) -> Iterator[Point]:
    """A staircase: level until something better is there."""
    for count, (at, value) in enumerate(zip(seconds, highest, strict=True)):
        if count:
            yield Point(x=at, y=highest[count - 1])
        yield Point(x=at, y=value)


def _point(record: RunRecord, option: Alternative, at: float) -> Point:
    where = name_stage(option.stage, record.evidence.backbone)
    return Point(
        x=at,
        y=option.expected_accuracy,
        low=option.low,
        high=option.high,
        title=f"{name_strategy(option.strategy)}, {where}: {format_percent(option.expected_accuracy)} "
        f"({format_range(option.low, option.high)}) after {format_seconds(at)}",
    )
