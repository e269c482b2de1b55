"""Where things lie in a plot: scales, heat map, reliability diagram, learning curves. Numbers in, positions out.

The templates draw; colours are CSS variables there, so that one drawing serves the light page, the dark one and paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import TWO_SIDED
from transferkit.records import JOINED, CurvePoint
from transferkit.report._answers import ReliabilityBin
from transferkit.report._words import format_count, format_percent, format_range, plural, shorten

__all__ = [
    "Cell",
    "CurvePlot",
    "HeatMap",
    "Label",
    "ReliabilityPlot",
    "Axis",
    "draw_curves",
    "draw_heat_map",
    "draw_reliability",
    "fit_scale",
]

STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Distances between ticks that people read at ease, as shares."""

MAX_TICKS = 6
"""More collide on a phone."""

LETTER = 6.6
"""Width of an average letter of the 12 px labels, in px."""

LINE = 14.0
"""Height of a line of them, in px."""

LABELLED = 14
"""With more curves than this only those that matter most are named: their labels would fill the plot."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text at a place; `full` is what it was before it was cut."""

    at: float
    text: str
    full: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A stretch of numbers, shares mostly, laid out over 0 to 100 % of a plot's width."""

    low: float
    high: float
    ticks: tuple[Label, ...]

    def place(self, share: float) -> float:
        """Position of a share, in % of the width; what lies outside is put on the edge.

        Example:
            >>> Axis(low=0.5, high=1.0, ticks=()).place(0.75)
            50.0
        """
        return round(100 * min(1.0, max(0.0, (share - self.low) / (self.high - self.low))), 3)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the heat map.

    Args:
        x, y: Upper left corner, px.
        text: The count, short enough for the cell.
        title: What it means, in words.
        strength: Depth of the colour, in [0, 1].
        right: Whether the cell lies on the diagonal.
    """

    x: float
    y: float
    text: str
    title: str
    strength: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Confusion counts as a drawing; lengths in px. Cells without images are left out."""

    width: float
    height: float
    left: float
    top: float
    side: float
    classes: int
    upright: bool
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class ReliabilityPoint:
    """One bin of the reliability diagram; positions in px."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, kw_only=True)
class ReliabilityPlot:
    """Confidence against accuracy on equal axes; lengths in px."""

    width: float
    height: float
    left: float
    top: float
    side: float
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    points: tuple[ReliabilityPoint, ...]


@dataclass(frozen=True, kw_only=True)
class CurveDot:
    """One point of a learning curve with its 95 % interval; positions in px."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One stage's accuracy by number of images.

    Args:
        kind: "joined", "best" (of the single stages) or "stage".
        path: SVG path through its dots.
        dots: From few images to all.
        label: Its name beside the last dot, `at` px from the top; None where there are too many to name.
    """

    kind: str
    path: str
    dots: tuple[CurveDot, ...]
    label: Label | None


@dataclass(frozen=True, kw_only=True)
class CurvePlot:
    """Accuracy by number of training images, log scale, a curve per stage; lengths in px."""

    width: float
    height: float
    left: float
    top: float
    across: float
    down: float
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    curves: tuple[Curve, ...]
    best: str


def fit_scale(values: Iterable[float], *, slack: float = 0.0) -> Axis:
    """The shortest scale with round ends that holds all values.

    Args:
        values: Shares in [0, 1], one or more.
        slack: Room to leave beyond them, as a share.
    """
    shares = list(values)
    least, most = max(0.0, min(shares) - slack), min(1.0, max(shares) + slack)
    for step in STEPS:
        # The small shift keeps 0.6 / 0.2 = 2.9999999999999996 from opening one more step.
        first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
        if last == first:
            first, last = (first - 1, last) if first > 0 else (first, last + 1)
        if last - first < MAX_TICKS:
            break
    low, high = first * step, last * step
    marks = [n * step for n in range(first, last + 1)]
    ticks = tuple(
        Label(at=round(100 * (mark - low) / (high - low), 3), text=format_percent(round(mark, 6), digits=0))
        for mark in marks
    )
    return Axis(low=low, high=high, ticks=ticks)


def draw_heat_map(counts: npt.NDArray[np.int64], names: Sequence[str]) -> HeatMap:
    """Confusion counts as coloured cells: rows are true classes, columns predicted ones.

    Args:
        counts: (K, K) counts.
        names: K class names.
    """
    classes = len(names)
    side = 40.0 if classes <= 12 else 31.0 if classes <= 20 else 26.0
    short = [shorten(name, length=16) for name in names]
    longest = max(len(name) for name in short)
    upright = longest * LETTER <= side - 4
    left = 34 + longest * LETTER
    # Slanted labels stand at 45 degrees, hence sqrt(1/2) of their length upwards and to the right.
    reach = 0.0 if upright else longest * LETTER * math.sqrt(0.5)
    top = 46 + reach
    totals = counts.sum(axis=1)
    worst = max(1, int((counts - np.diag(np.diagonal(counts))).max()))
    cells = []
    for t, p in np.argwhere(counts):
        count = int(counts[t, p])
        strength = count / float(totals[t]) if t == p else math.sqrt(count / worst)
        what = f"{names[t]}: {format_count(count)} of {plural(int(totals[t]), 'image')} "
        cells.append(
            Cell(
                x=left + float(p) * side,
                y=top + float(t) * side,
                text=format_count(count) if count < 1000 else f"{count / 1000:.1f}k",
                title=what + ("classified correctly" if t == p else f"taken for {names[p]}"),
                strength=round(strength, 3),
                right=bool(t == p),
            )
        )
    middles = [(n + 0.5) * side for n in range(classes)]
    return HeatMap(
        width=round(left + classes * side + max(8.0, reach - side / 2), 1),
        height=round(top + classes * side + 8, 1),
        left=left,
        top=top,
        side=side,
        classes=classes,
        upright=upright,
        rows=tuple(
            Label(at=top + middle, text=text, full=name)
            for middle, text, name in zip(middles, short, names, strict=True)
        ),
        columns=tuple(
            Label(at=left + middle, text=text, full=name)
            for middle, text, name in zip(middles, short, names, strict=True)
        ),
        cells=tuple(cells),
    )


def draw_reliability(bins: Sequence[ReliabilityBin], *, side: float = 300.0) -> ReliabilityPlot:
    """Bins as points over equal axes, so that the diagonal is exact calibration.

    Args:
        bins: One or more.
        side: Side of the plotting square, px.
    """
    left, top = 58.0, 12.0
    # Intervals may leave the frame; the points themselves must not.
    scale = fit_scale([1.0, *(value for one in bins for value in (one.confidence, one.accuracy))], slack=0.04)

    def across(share: float) -> float:
        return round(left + side * scale.place(share) / 100, 2)

    def down(share: float) -> float:
        return round(top + side * (1 - scale.place(share) / 100), 2)

    points = tuple(
        ReliabilityPoint(
            x=across(one.confidence),
            y=down(one.accuracy),
            low=down(one.low),
            high=down(one.high),
            title=f"{plural(one.count, 'image')}: confidence {format_percent(one.confidence)}, "
            f"right {format_percent(one.accuracy)} ({format_range(one.low, one.high)})",
        )
        for one in bins
    )
    return ReliabilityPlot(
        width=left + side + 24,
        height=top + side + 50,
        left=left,
        top=top,
        side=side,
        columns=tuple(Label(at=round(left + side * tick.at / 100, 2), text=tick.text) for tick in scale.ticks),
        rows=tuple(Label(at=round(top + side * (1 - tick.at / 100), 2), text=tick.text) for tick in scale.ticks),
        points=points,
    )


def draw_curves(points: Sequence[CurvePoint], *, across: float = 430.0, down: float = 330.0) -> CurvePlot:
    """Learning curves over a log scale, each named at its right end, the best single stage set off.

    Args:
        points: One or more sizes for each stage, and two or more different sizes in all.
        across, down: Size of the plotting area, px.
    """
    left, top = 52.0, 12.0
    stages: dict[str, list[CurvePoint]] = {}
    for point in points:
        stages.setdefault(point.stage, []).append(point)
    single = {stage: found for stage, found in stages.items() if stage != JOINED}
    best = max(single, key=lambda stage: single[stage][-1].accuracy) if single else ""
    kinds = {stage: "joined" if stage == JOINED else "best" if stage == best else "stage" for stage in stages}
    sizes = sorted({point.images for point in points})
    scale = fit_scale([point.accuracy for point in points], slack=0.02)
    reach = math.log(sizes[-1] / sizes[0])

    def place(images: int) -> float:
        return round(left + across * math.log(images / sizes[0]) / reach, 2)

    def lower(share: float) -> float:
        return round(top + down * (1 - scale.place(share) / 100), 2)

    dots = {
        stage: tuple(
            CurveDot(
                x=place(point.images),
                y=lower(point.accuracy),
                low=lower(point.accuracy - TWO_SIDED * point.error),
                high=lower(point.accuracy + TWO_SIDED * point.error),
                title=f"{stage}, {plural(point.images, 'image')}: {format_percent(point.accuracy)}",
            )
            for point in sorted(found, key=lambda point: point.images)
        )
        for stage, found in stages.items()
    }
    named = [stage for stage in stages if len(stages) <= LABELLED or kinds[stage] != "stage"]
    labels = _spread({stage: dots[stage][-1].y for stage in named}, top=top, down=down)
    curves = tuple(
        Curve(
            kind=kinds[stage],
            path="M" + " L".join(f"{dot.x} {dot.y}" for dot in dots[stage]),
            dots=dots[stage],
            label=labels.get(stage),
        )
        # What matters most is drawn last, on top.
        for stage in sorted(stages, key=lambda stage: ("stage", "best", "joined").index(kinds[stage]))
    )
    longest = max(len(label.text) for label in labels.values())
    return CurvePlot(
        width=round(left + across + 14 + longest * LETTER, 1),
        height=top + down + 46,
        left=left,
        top=top,
        across=across,
        down=down,
        columns=tuple(Label(at=place(size), text=format_count(size)) for size in _apart(sizes, place)),
        rows=tuple(Label(at=round(top + down * (1 - tick.at / 100), 2), text=tick.text) for tick in scale.ticks),
        curves=curves,
        best=best,
    )


def _apart(sizes: Sequence[int], place: Callable[[int], float]) -> list[int]:
    """The sizes whose labels do not touch, the last one first."""
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or place(kept[-1]) - place(size) >= 5 * LETTER:
            kept.append(size)
    return kept[::-1]


def _spread(heights: Mapping[str, float], *, top: float, down: float) -> dict[str, Label]:
    """Labels as near to their heights as they can be a line apart."""
    order = sorted(heights, key=heights.__getitem__)
    # Less n lines, the places must only not fall: runs that would are pooled to their mean (isotonic regression).
    runs: list[list[float]] = []
    for n, stage in enumerate(order):
        runs.append([heights[stage] - n * LINE])
        while len(runs) > 1 and sum(runs[-2]) / len(runs[-2]) >= sum(runs[-1]) / len(runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
    pooled = [sum(run) / len(run) for run in runs for _ in run]
    most = top + down - (len(order) - 1) * LINE
    return {
        stage: Label(at=round(min(max(y, top), most) + n * LINE, 2), text=shorten(stage, length=16), full=stage)
        for n, (stage, y) in enumerate(zip(order, pooled, strict=True))
    }
