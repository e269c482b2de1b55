"""The frame that every chart is drawn in: margins, grid, ticks, names of axes and of series."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transferkit.report._words import shorten
from transferkit.report.charts.axes import LETTER, LINE, LONGEST, Axis, Label, text_width
from transferkit.report.charts.marks import HEADER, Element, Line, Mark, Plot, text

__all__ = ["Chart", "keep_apart"]

EDGE = 12.0
"""Free at the top and at the right where no label needs more, px."""

GAP = 7.0
"""Between the plot area and the labels of its axes, px."""

NAME = 18.0
"""Room for the name of an axis, px."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing: two axes and the marks between them.

    Args:
        title: What it shows, in a sentence: read out by a screen reader, and its tooltip.
        x, y: The axes; a class axis as `x` is labelled at the top.
        marks: In the order of drawing, so the most important come last.
        across, down: Size of the plot area, px; margins are added as its labels need them.
        heading: Written above it in a figure of several charts.
        indent: Room for the labels of the y axis, px, where more than they need: lines up charts of one figure.
    """

    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    across: float = 430.0
    down: float = 330.0
    heading: str = ""
    indent: float = 0.0

    @cached_property
    def plot(self) -> Plot:
        """The plot area inside its margins."""
        left = (NAME + 4 if self.y.name else 0) + text_width(tick.text for tick in self.y.ticks) + GAP
        above = HEADER if any(mark.has_header() for mark in self.marks) else 0.0
        if self.x.kind == "classes":
            above = NAME + LINE + self._reach
        return Plot(
            left=round(max(left, self.indent), 2),
            top=round(EDGE + above, 2),
            across=self.across,
            down=self.down,
            x_axis=self.x,
            y_axis=self.y,
        )

    @property
    def width(self) -> float:
        """Of the whole drawing, px."""
        ends = [LETTER * len(label.text) + 14 for label in self.series_labels.values()]
        if self.x.kind == "classes":
            ends.append(self._reach - self._slot / 2)
        else:
            ends += [self.across * (tick.at / 100 - 1) + LETTER * len(tick.text) / 2 + GAP for tick in self.x.ticks]
        return round(self.plot.right + max([EDGE, *ends]), 1)

    @property
    def height(self) -> float:
        """Of the whole drawing, px."""
        if self.x.kind == "classes":
            return round(self.plot.bottom + EDGE, 1)
        return round(self.plot.bottom + GAP + LINE + (NAME if self.x.name else 0), 1)

    @cached_property
    def series_labels(self) -> Mapping[int, Label]:
        """Index of a mark -> its name at its right end, px from the top, all of them a line apart."""
        ends = {
            n: (self.plot.y(mark.points[-1].y), mark.label)
            for n, mark in enumerate(self.marks)
            if isinstance(mark, Line) and mark.label and mark.points
        }
        heights = keep_apart([y for y, _ in ends.values()], top=self.plot.top, bottom=self.plot.bottom)
        return {
            n: Label(at=at, text=shorten(name, length=LONGEST), full=name)
            for (n, (_, name)), at in zip(ends.items(), heights, strict=True)
        }

    def elements(self) -> Iterator[Element]:
        """Everything inside the SVG, in the order of drawing."""
        for mark in self.marks:
            yield from mark.backdrop(self.plot)
        yield from self._grid()
        yield from self._x_labels()
        yield from self._y_labels()
        for n, mark in enumerate(self.marks):
            yield from mark.elements(self.plot)
            if n in self.series_labels:
                label = self.series_labels[n]
                style = f"in-{mark.tone} strong" if isinstance(mark, Line) and mark.strong else f"in-{mark.tone}"
                yield text(label.text, self.plot.right + 10, label.at + 4, style=style, full=label.full)

    @property
    def _slot(self) -> float:
        """Width of one class along the x axis, px."""
        return self.across / max(1, len(self.x.ticks))

    @property
    def _reach(self) -> float:
        """How far slanted class labels reach upwards and to the right, px; 0 if they fit horizontally."""
        longest = text_width(tick.text for tick in self.x.ticks)
        # Slanted labels stand at 45 degrees, hence sqrt(1/2) of their length.
        return 0.0 if longest <= self._slot - 4 else longest * math.sqrt(0.5)

    def _grid(self) -> Iterator[Element]:
        plot = self.plot
        for at in self.x.grid:
            x = plot.x_at(at)
            yield Element(tag="line", attributes={"class": "grid", "x1": x, "x2": x, "y1": plot.top, "y2": plot.bottom})
        for at in self.y.grid:
            y = plot.y_at(at)
            yield Element(tag="line", attributes={"class": "grid", "x1": plot.left, "x2": plot.right, "y1": y, "y2": y})

    def _x_labels(self) -> Iterator[Element]:
        plot = self.plot
        if self.x.kind == "classes":
            yield text(self.x.name, plot.left, LINE)
            for tick in self.x.ticks:
                turn, style = (-45, "ink") if self._reach else (0, "ink middle")
                yield text(tick.text, plot.x_at(tick.at), plot.top - 8, style=style, full=tick.full, turn=turn)
            return
        for tick in _thin_out(self.x.ticks, across=plot.across):
            yield text(tick.text, plot.x_at(tick.at), plot.bottom + GAP + LINE - 3, style="middle", full=tick.full)
        if self.x.name:
            yield text(self.x.name, plot.x_at(50), plot.bottom + GAP + LINE + NAME - 3, style="middle")

    def _y_labels(self) -> Iterator[Element]:
        plot, style = self.plot, "end ink" if self.y.kind == "classes" else "end"
        for tick in self.y.ticks:
            yield text(tick.text, plot.left - GAP, plot.y_at(tick.at) + 4, style=style, full=tick.full)
        if self.y.name:
            yield text(self.y.name, EDGE, plot.y_at(50), style="middle", turn=-90)


def _thin_out(ticks: Sequence[Label], *, across: float) -> list[Label]:
    """The labels along an x axis that do not touch, the last one first."""
    kept: list[Label] = []
    for tick in reversed(ticks):
        room = LETTER * ((len(tick.text) + len(kept[-1].text)) / 2 + 1.5) if kept else 0.0
        if not kept or across * (kept[-1].at - tick.at) / 100 >= room:
            kept.append(tick)
    return kept[::-1]


def keep_apart(heights: Sequence[float], *, top: float, bottom: float) -> list[float]:
    """Heights of labels, px from the top, moved as little as needed to be at least one line apart.

    Args:
        heights: Where the labels would be best.
        top, bottom: Where they have to stay, if there is room for all of them.

    Example:
        >>> keep_apart([50.0, 50.0], top=0, bottom=100)
        [43.0, 57.0]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Less n lines, the heights must only not fall: runs that would are pooled to their mean (isotonic regression).
    runs: list[list[float]] = []
    for n, one in enumerate(order):
        runs.append([heights[one] - n * LINE])
        while len(runs) > 1 and sum(runs[-2]) / len(runs[-2]) >= sum(runs[-1]) / len(runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
    pooled = [sum(run) / len(run) for run in runs for _ in run]
    most = bottom - (len(order) - 1) * LINE
    moved = {
        one: round(min(max(y, top), most) + n * LINE, 2) for n, (one, y) in enumerate(zip(order, pooled, strict=True))
    }
    return [moved[one] for one in range(len(heights))]
