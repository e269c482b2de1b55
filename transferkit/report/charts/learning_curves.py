"""Accuracy by number of training images: a curve per stage over a log axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from transferkit.core.intervals import TWO_SIDED
from transferkit.records import JOINED, CurvePoint, DataNeed, RunRecord
from transferkit.report._words import capitalise, format_measure, format_percent, plural
from transferkit.report.charts.axes import log_axis, measure_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Dots, Line, Mark, Point, Tone

__all__ = ["MAX_LABELLED", "best_stage", "draw_curves"]

MAX_LABELLED = 14
"""With more curves than this only the two highlighted ones are named: more labels would fill the plot."""

DRAWN_MULTIPLE = 4
"""Of today's number of images, up to which forecasts are drawn: farther, the measured curve would be squeezed."""


@CHARTS.register("learning_curves")
def learning_curves(record: RunRecord) -> Figure | None:
    """Learning curves of the frozen stages; None unless two or more numbers of images were tried."""
    points = record.evidence.curves
    if len({point.images for point in points}) < 2:
        return None
    kind = "classifiers" if points[0].measure == "accuracy" else "regressions"
    best, need = best_stage(points), record.evidence.data_need
    return Figure(
        section="stages",
        heading="What more images would bring",
        caption=f"Ridge {kind} fitted to random subsets of the training images and tested on the rest, mean over "
        "the draws; at the right end all images, as above. Bold: all stages joined"
        f"{f' and, coloured, the best single stage, {best}' if best else ''}. Bars: 95 % "
        f"interval.{_describe_need(need)}",
        charts=(draw_curves(points, need),),
    )


def _describe_need(need: DataNeed | None) -> str:
    if need is None:
        return ""
    drawn = " Dashed: the curve of all stages joined, extrapolated, with its 80 % interval." if _is_drawn(need) else ""
    return f"{drawn} {' '.join(need.sentences)}"


def _is_drawn(need: DataNeed) -> bool:
    return not need.problem and bool(need.forecasts)


def draw_curves(points: Sequence[CurvePoint], need: DataNeed | None = None) -> Chart:
    """Curves named at their right ends; the best single stage and all stages joined are highlighted, on top.

    Args:
        points: One or more sizes for each stage, and two or more different sizes in all.
        need: What more images would bring, to go on with the curve it belongs to.
    """
    further = _extrapolate(points, need) if need is not None and _is_drawn(need) else []
    measure = points[0].measure
    sizes = [point.images for point in points]
    stages = {point.stage: [one for one in points if one.stage == point.stage] for point in points}
    return Chart(
        title=f"{capitalise(measure)} of each stage by number of training images",
        x=log_axis(sizes, ticks=[*sizes, *(one.x for one in further)], name="Training images (log scale)"),
        y=measure_axis(
            [*(point.accuracy for point in points), *(one.y for one in further)],
            measure,
            slack=0.02,
            name=capitalise(measure),
        ),
        marks=(*_marks(stages, best_stage(points)), *_forecast_marks(further)),
    )


def _extrapolate(points: Sequence[CurvePoint], need: DataNeed) -> list[Point]:
    """The last measured point of a curve, then its forecasts."""
    last = max((point for point in points if point.stage == need.stage), key=lambda point: point.images)
    return [
        Point(x=last.images, y=last.accuracy),
        *(
            Point(
                x=one.images,
                y=one.accuracy,
                low=max(0.0, one.accuracy - (one.gain - one.gain_low)),
                high=min(1.0, one.accuracy + (one.gain_high - one.gain)),
                title=f"forecast, {plural(one.images, 'image')}: {format_percent(one.accuracy)}",
            )
            for one in need.forecasts
            if one.images <= DRAWN_MULTIPLE * need.images
        ),
    ]


def _forecast_marks(further: Sequence[Point]) -> Iterator[Mark]:
    if further:
        yield Line(points=further, tone="ink", weight=1.25, dashes="4 4")
        yield Dots(points=further[1:], tone="ink", radius=3)


def best_stage(points: Sequence[CurvePoint]) -> str:
    """The single stage with the highest accuracy on all images; empty if only joined stages were measured."""
    ends = {point.stage: point.accuracy for point in sorted(points, key=lambda point: point.images)}
    ends.pop(JOINED, None)
    return max(ends, key=ends.__getitem__, default="")


def _marks(stages: Mapping[str, Sequence[CurvePoint]], best: str) -> Iterator[Mark]:
    tones: dict[str, Tone] = {best: "accent", JOINED: "ink"}
    for stage in sorted(stages, key=lambda stage: (stage in tones, stage == JOINED)):
        strong, tone = stage in tones, tones.get(stage, "quiet")
        points = [_point(one, interval=strong) for one in sorted(stages[stage], key=lambda one: one.images)]
        label = stage if strong or len(stages) <= MAX_LABELLED else ""
        yield Line(points=points, tone=tone, weight=2.5 if strong else 1.25, label=label, strong=strong)
        yield Dots(points=points, tone=tone, radius=4 if strong else 3)


def _point(one: CurvePoint, *, interval: bool) -> Point:
    margin = TWO_SIDED * one.error
    return Point(
        x=one.images,
        y=one.accuracy,
        low=one.accuracy - margin if interval else None,
        high=one.accuracy + margin if interval else None,
        title=f"{one.stage}, {plural(one.images, 'image')}: {format_measure(one.accuracy, one.measure)}",
    )
