"""Reliability diagram: confidence against accuracy on equal axes, so that the diagonal is exact calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transferkit.records import RunRecord
from transferkit.report._predictions import ReliabilityBin, find_held_out, reliability_bins
from transferkit.report._words import format_percent, format_range, plural
from transferkit.report.charts.axes import share_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Dots, Line, Point

__all__ = ["draw_reliability"]


@CHARTS.register("reliability")
def reliability(record: RunRecord) -> Figure | None:
    """Calibration on the held-out images; None without them."""
    held_out = find_held_out(record)
    if held_out is None or held_out.targets is not None:
        return None
    return Figure(
        section="calibration",
        caption="Each point is a bin of images of similar confidence, with its 95 % interval. On the dashed line, "
        "confidence equals accuracy; below it, confidence is too high.",
        charts=(draw_reliability(reliability_bins(held_out.labels, held_out.probabilities)),),
    )


def draw_reliability(bins: Sequence[ReliabilityBin]) -> Chart:
    """One or more bins as points."""
    # Intervals may leave the frame; the points themselves must not.
    axis = share_axis([1.0, *(share for one in bins for share in (one.confidence, one.accuracy))], slack=0.04)
    diagonal = [Point(x=end, y=end) for end in (axis.low, axis.high)]
    points = [
        Point(
            x=one.confidence,
            y=one.accuracy,
            low=one.low,
            high=one.high,
            title=f"{plural(one.count, 'image')}: confidence {format_percent(one.confidence)}, "
            f"accuracy {format_percent(one.accuracy)} ({format_range(one.low, one.high)})",
        )
        for one in bins
    ]
    return Chart(
        title="Reliability diagram: confidence against accuracy",
        x=replace(axis, name="Confidence"),
        y=replace(axis, name="Accuracy"),
        marks=(Line(points=diagonal, tone="quiet", weight=1.5, dashes="5 4"), Dots(points=points, radius=6)),
        across=300.0,
        down=300.0,
    )
