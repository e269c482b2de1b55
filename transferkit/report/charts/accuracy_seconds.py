"""Expected accuracy of each strategy against the seconds until its model would be ready."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from transferkit.records import Alternative, RunRecord
from transferkit.report._words import format_measure, format_measure_range, format_seconds, name_stage, name_strategy
from transferkit.report.charts.axes import log_axis, measure_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Dots, Line, Mark, Point, ReferenceLine, Tone

__all__: list[str] = []


@CHARTS.register("accuracy_seconds")
def accuracy_seconds(record: RunRecord) -> Figure | None:
    """The best option of each strategy, over the seconds of the measurement and its own; None with fewer than two."""
    before = math.fsum(value for value in record.evidence.seconds.values() if math.isfinite(value))
    options = _best_of_each(record)
    if len(options) < 2 or before <= 0:
        return None
    measure = record.evidence.data.measure
    seconds = [before + option.cost_seconds for option in options]
    named = [_point(record, one, at) for one, at in zip(options, seconds, strict=True)]
    chart = Chart(
        title=f"Expected {measure} of each option by seconds from the start; the table has the same numbers",
        x=log_axis(seconds, name="Seconds from the start (log scale)"),
        y=measure_axis(
            [end for one in options for end in (one.low, one.high)], measure, slack=0.02, name=f"Expected {measure}"
        ),
        marks=tuple(_marks(record, options, named)),
        down=240.0,
    )
    return Figure(
        section="decision",
        heading="What more time would bring",
        caption="The best option of each strategy, when its model would be ready on this machine: after "
        f"{format_seconds(before)} of measuring, and its own fit. Coloured: the chosen one. Line: the highest expected "
        f"{measure} up to that time; bars: 95 % intervals. budget=SECONDS limits the time after the measurement.",
        charts=(chart,),
    )


def _best_of_each(record: RunRecord) -> list[Alternative]:
    """One option of each strategy, the one that was chosen or else the best, by their cost."""
    best: dict[str, Alternative] = {}
    for option in sorted(record.decision.options, key=lambda one: (_is_chosen(record, one), one.expected_accuracy)):
        best[option.strategy] = option
    return sorted(best.values(), key=lambda option: option.cost_seconds)


def _marks(record: RunRecord, options: Sequence[Alternative], points: Sequence[Point]) -> Iterator[Mark]:
    for option, point in zip(options, points, strict=True):
        tone: Tone = "accent" if _is_chosen(record, option) else "quiet"
        yield ReferenceLine(at=point.x, axis="x", label=option.strategy, tone=tone, weight=0.75)
    highest = list(accumulate((point.y for point in points), max))
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
        title=f"{name_strategy(option.strategy, option.measure)}, {where}: "
        f"{format_measure(option.expected_accuracy, option.measure)} "
        f"({format_measure_range(option.low, option.high, option.measure)}) after {format_seconds(at)}",
    )
