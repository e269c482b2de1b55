"""Predicted labels: precision against recall. Predicted numbers: against the truth, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transferkit.records import HeldOut, RunRecord, Targets
from transferkit.report._predictions import find_held_out
from transferkit.report._words import format_number, name_split, plural, shorten
from transferkit.report.charts.axes import LONGEST, Axis, share_axis, value_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Box, Boxes, Dots, Line, Mark, Point, ReferenceLine

__all__ = ["draw_errors", "draw_precision_recall"]

MAX_CURVES = 30
"""Labels with a curve each; of more, only that of all decisions together is drawn."""

MAX_NAMED = 6
"""Curves named in the plot; of more, tooltips tell."""

MAX_DOTS = 1200
"""Images drawn in a scatter plot: evenly spaced ones of more."""

MAX_NUMBERS = 6
"""Numbers with charts of their own."""

CURVE_POINTS = 120
BINS = 15

Array = npt.NDArray[np.float64]


@CHARTS.register("precision_recall")
def precision_recall(record: RunRecord) -> Figure | None:
    """Precision and recall of each label on the held-out images; None for another task."""
    held_out = find_held_out(record)
    if held_out is None or held_out.targets is None or not held_out.targets.is_labels:
        return None
    return Figure(
        section="quality",
        heading=f"Precision and recall, {name_split(held_out.split)} images",
        caption="Going right, a lower threshold finds more of the images with a label (recall), at the cost of wrong "
        "ones among those found (precision). Bold: all decisions together. Each thin line is a label.",
        charts=(draw_precision_recall(held_out, held_out.targets),),
    )


def draw_precision_recall(held_out: HeldOut, targets: Targets) -> Chart:
    """A curve per label, and one of all decisions together."""
    truth, chances = targets.values, held_out.probabilities.astype(np.float64)
    marks: list[Mark] = []
    shown = [at for at in range(len(targets.names)) if truth[:, at].any()]
    for at in shown if len(shown) <= MAX_CURVES else ():
        name = targets.names[at]
        label = shorten(name, length=LONGEST) if len(shown) <= MAX_NAMED else ""
        marks.append(
            Line(points=list(_curve(truth[:, at], chances[:, at], name)), tone="quiet", weight=1.25, label=label)
        )
    if truth.any():
        marks.append(Line(points=list(_curve(truth.ravel(), chances.ravel(), "all")), tone="accent", weight=2.5))
    return Chart(
        title="Precision against recall of each label; the table below has the average precisions",
        x=share_axis([0.0, 1.0], name="Recall"),
        y=share_axis([0.0, 1.0], name="Precision"),
        marks=tuple(marks),
        across=360.0,
        down=300.0,
    )


def _curve(truth: Array, chances: Array, name: str) -> Iterator[Point]:
    order = np.argsort(-chances, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    rising = np.maximum.accumulate(precision[::-1])[::-1]
    kept = np.unique(np.linspace(0, len(ends) - 1, CURVE_POINTS).round().astype(int))
    yield Point(x=0.0, y=float(rising[0]))
    for at in kept:
        yield Point(x=float(recall[at]), y=float(rising[at]), title=name)


@CHARTS.register("predicted_numbers")
def predicted_numbers(record: RunRecord) -> Figure | None:
    """Predicted against true numbers, and the errors, on the held-out images; None for another task."""
    held_out = find_held_out(record)
    if held_out is None or held_out.targets is None or held_out.targets.is_labels:
        return None
    names = held_out.targets.names
    shown = range(min(len(names), MAX_NUMBERS))
    more = f" The first {MAX_NUMBERS} of {len(names)} numbers are drawn." if len(names) > MAX_NUMBERS else ""
    return Figure(
        section="quality",
        heading=f"Predicted and true, {plural(len(held_out.labels), f'{name_split(held_out.split)} image')}",
        caption="Left: each dot is an image; on the dashed line the prediction is right. Middle: its error, predicted "
        "minus true, over the prediction: a slope or a funnel shows what the model has not learned. Right: how often "
        f"errors of each size occur.{more}",
        charts=tuple(chart for at in shown for chart in draw_errors(held_out, held_out.targets, at)),
    )


def draw_errors(held_out: HeldOut, targets: Targets, at: int) -> tuple[Chart, Chart, Chart]:
    """Scatter plot, errors over predictions, and a histogram of the errors of one number."""
    truth, predicted = targets.values[:, at], held_out.probabilities[:, at].astype(np.float64)
    name = shorten(targets.names[at], length=LONGEST)
    rows = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), MAX_DOTS)).round().astype(int))
    error = predicted - truth
    both = _tight([*truth.tolist(), *predicted.tolist()])
    diagonal = [Point(x=end, y=end) for end in (both.low, both.high)]
    radius = 3.5 if len(rows) <= 200 else 2.5
    dots = [
        Point(
            x=float(truth[row]),
            y=float(predicted[row]),
            title=f"{held_out.items[row]}: true {format_number(truth[row])}, predicted {format_number(predicted[row])}",
        )
        for row in rows
    ]
    errors = [
        Point(x=float(predicted[row]), y=float(error[row]), title=f"{held_out.items[row]}: {format_number(error[row])}")
        for row in rows
    ]
    size = {"across": 226.0, "down": 226.0, "indent": 46.0}
    return (
        Chart(
            title=f"Predicted {targets.names[at]} against the true one",
            heading=f"{name}: predicted and true",
            x=replace(both, name="True"),
            y=replace(both, name="Predicted"),
            marks=(Line(points=diagonal, tone="quiet", weight=1.5, dashes="5 4"), Dots(points=dots, radius=radius)),
            **size,
        ),
        Chart(
            title=f"Error of {targets.names[at]} over the prediction",
            heading=f"{name}: error",
            x=replace(_tight(predicted.tolist()), name="Predicted"),
            y=replace(_tight([0.0, *error.tolist()]), name="Predicted minus true"),
            marks=(ReferenceLine(at=0.0, tone="quiet", dashes="5 4"), Dots(points=errors, radius=radius)),
            **size,
        ),
        _histogram(targets.names[at], name, error, size),
    )


def _histogram(full: str, name: str, error: Array, size: dict[str, float]) -> Chart:
    reach = max(float(np.abs(error).max()), 1e-12)
    counts, edges = np.histogram(error, bins=BINS, range=(-reach, reach))
    boxes = [
        Box(
            x=(float(edges[n]), float(edges[n + 1])),
            y=(0.0, float(count)),
            title=f"{format_number(edges[n])} to {format_number(edges[n + 1])}: {plural(int(count), 'image')}",
        )
        for n, count in enumerate(counts)
        if count
    ]
    return Chart(
        title=f"Histogram of the errors of {full}",
        heading=f"{name}: size of errors",
        x=replace(_tight([-reach, reach]), name="Predicted minus true"),
        y=value_axis([0.0, float(counts.max())], name="Images"),
        marks=(Boxes(boxes=boxes), ReferenceLine(at=0.0, axis="x", tone="quiet", dashes="5 4")),
        **size,
    )


def _tight(values: list[float]) -> Axis:
    """A linear axis with round ends around values of either sign, not drawn from 0 on."""
    return value_axis(values)
