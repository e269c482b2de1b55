"""Marks in a plot area: lines, dots with error bars, boxes, bands and rules, in the units of the axes.

Colours are names (`Tone`) for CSS variables, so that one drawing serves the light page, the dark one and paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transferkit.report.charts.axes import LETTER, Axis, text_width

__all__ = ["Band", "Box", "Boxes", "Dots", "Element", "Line", "Mark", "Plot", "Point", "ReferenceLine", "Tone", "text"]

Tone = Literal["ink", "quiet", "accent", "warm"]
"""Colour of a mark: the page's text, its quiet text, its accent, its warnings."""

BAND_ROW, RULE_ROW = 6.0, 22.0
"""Baselines of the labels of bands and upright rules, px above the plot area."""

HEADER = 24.0
"""Height of both rows, px."""


@dataclass(frozen=True, kw_only=True)
class Element:
    """An SVG element: `title` is its tooltip."""

    tag: str
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    title: str = ""
    text: str = ""
    children: tuple[Element, ...] = ()


def text(words: str, x: float, y: float, *, style: str = "", full: str = "", turn: int = 0) -> Element:
    """A label; `style` holds CSS classes ("middle", "end", "strong"), `turn` is in degrees."""
    x, y = round(x, 2), round(y, 2)
    at = {"transform": f"translate({x} {y}) rotate({turn})"} if turn else {"x": x, "y": y}
    return Element(tag="text", attributes={**({"class": style} if style else {}), **at}, title=full, text=words)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The plot area, px, with its axes: turns values into positions."""

    left: float
    top: float
    across: float
    down: float
    x_axis: Axis
    y_axis: Axis

    @property
    def right(self) -> float:
        return self.left + self.across

    @property
    def bottom(self) -> float:
        return self.top + self.down

    def x(self, value: float) -> float:
        return self.x_at(self.x_axis.place(value))

    def y(self, value: float) -> float:
        return self.y_at(self.y_axis.place(value))

    def x_at(self, percent: float) -> float:
        return round(self.left + self.across * percent / 100, 2)

    def y_at(self, percent: float) -> float:
        return round(self.top + self.down * (1 - percent / 100), 2)


class Mark:
    """Something drawn in a plot area.

    Attributes:
        tone: Its colour.
        legend: Its text in the legend of the figure; empty if it needs none.
    """

    tone: Tone
    legend: str = ""

    def has_header(self) -> bool:
        """Whether it writes above the plot area."""
        return False

    def backdrop(self, plot: Plot) -> Iterator[Element]:
        """Elements below the grid."""
        return iter(())

    def elements(self, plot: Plot) -> Iterator[Element]:
        """Elements above the grid."""
        raise NotImplementedError

    def swatch(self) -> Element:
        """A sample for the legend, 20 px wide and 12 px high."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value, with its interval if both ends are given.

    Args:
        x, y: The value.
        low, high: Ends of its interval along y.
        title: Its tooltip.
        radius: Overrides that of its `Dots`, px.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    radius: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line(Mark):
    """A line through points; `label` names it at its right end.

    Args:
        points: From left to right.
        weight: px.
        dashes: Lengths of strokes and gaps, "" for an unbroken line.
        strong: Whether its label is in bold.
    """

    points: Sequence[Point]
    tone: Tone = "accent"
    weight: float = 2.25
    dashes: str = ""
    label: str = ""
    strong: bool = False
    legend: str = ""

    def elements(self, plot: Plot) -> Iterator[Element]:
        if self.points:
            yield self._path("M" + " L".join(f"{plot.x(one.x)} {plot.y(one.y)}" for one in self.points))

    def swatch(self) -> Element:
        return self._path("M0 6 H20")

    def _path(self, course: str) -> Element:
        dashes = {"stroke-dasharray": self.dashes} if self.dashes else {}
        return Element(
            tag="path", attributes={"class": _style("line", self.tone), "d": course, **_weight(self), **dashes}
        )


@dataclass(frozen=True, kw_only=True)
class Dots(Mark):
    """Dots, with error bars where the points have intervals."""

    points: Sequence[Point]
    tone: Tone = "accent"
    radius: float = 4
    weight: float = 1.5
    legend: str = ""

    def elements(self, plot: Plot) -> Iterator[Element]:
        for one in self.points:
            x, children = plot.x(one.x), []
            if one.low is not None and one.high is not None:
                span = {"x1": x, "x2": x, "y1": plot.y(one.low), "y2": plot.y(one.high)}
                children.append(Element(tag="line", attributes={"class": "whisker", **span, **_weight(self)}))
            children.append(self._dot(x, plot.y(one.y), self.radius if one.radius is None else one.radius))
            yield Element(
                tag="g", attributes={"class": _style("", self.tone)}, title=one.title, children=tuple(children)
            )

    def swatch(self) -> Element:
        return Element(tag="g", attributes={"class": _style("", self.tone)}, children=(self._dot(10, 6, self.radius),))

    def _dot(self, x: float, y: float, radius: float) -> Element:
        return Element(tag="circle", attributes={"class": "dot", "cx": x, "cy": y, "r": radius})


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle between two corners.

    Args:
        x, y: Its two ends along each axis.
        text: Written in its middle.
        strength: Depth of its colour, in [0, 1].
        tone: Overrides that of its `Boxes`.
        outlined: Whether it has a border.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    text: str = ""
    title: str = ""
    strength: float = 1.0
    tone: Tone | None = None
    outlined: bool = False


@dataclass(frozen=True, kw_only=True)
class Boxes(Mark):
    """Cells of a heat map or bars of a histogram; `gap` px are left free around each."""

    boxes: Sequence[Box]
    tone: Tone = "accent"
    gap: float = 1.0
    legend: str = ""

    def elements(self, plot: Plot) -> Iterator[Element]:
        for one in self.boxes:
            (left, right), (top, bottom) = sorted(map(plot.x, one.x)), sorted(map(plot.y, one.y))
            size = {
                "width": round(max(0.0, right - left - 2 * self.gap), 2),
                "height": round(max(0.0, bottom - top - 2 * self.gap), 2),
            }
            corner = {"x": round(left + self.gap, 2), "y": round(top + self.gap, 2)}
            children = [self._rect(one, {**corner, **size})]
            if one.text:
                children.append(text(one.text, (left + right) / 2, (top + bottom) / 2 + 4, style="middle inside"))
            yield Element(tag="g", title=one.title, children=tuple(children))

    def swatch(self) -> Element:
        whole = Box(x=(0, 1), y=(0, 1))
        return self._rect(whole, {"x": 1, "y": 1, "width": 18, "height": 10})

    def _rect(self, one: Box, place: Mapping[str, float]) -> Element:
        style = _style("box outlined" if one.outlined else "box", one.tone or self.tone)
        return Element(
            tag="rect", attributes={"class": style, "style": f"--strength:{one.strength:g}", **place, "rx": 2}
        )


@dataclass(frozen=True, kw_only=True)
class Band(Mark):
    """A shaded stretch of one axis, right across the plot.

    Args:
        low, high: Its ends.
        axis: The axis that it is a stretch of.
        labels: Written above a stretch of the x axis: the first that fits.
        shaded: False leaves it white: only its label and its tooltip remain.
    """

    low: float
    high: float
    axis: Literal["x", "y"] = "x"
    labels: tuple[str, ...] = ()
    title: str = ""
    shaded: bool = True
    tone: Tone = "quiet"
    legend: str = ""

    def has_header(self) -> bool:
        return bool(self.labels)

    def backdrop(self, plot: Plot) -> Iterator[Element]:
        x, y = self._ends(plot)
        size = {"x": x[0], "width": round(x[1] - x[0], 2), "y": y[0], "height": round(y[1] - y[0], 2)}
        yield Element(tag="rect", attributes={"class": self._style(), **size}, title=self.title)

    def elements(self, plot: Plot) -> Iterator[Element]:
        (left, right), _ = self._ends(plot)
        label = next((one for one in self.labels if text_width([one]) + LETTER <= right - left), "")
        if label:
            yield text(label, round((left + right) / 2, 2), plot.top - BAND_ROW, style="middle cover")

    def swatch(self) -> Element:
        return Element(tag="rect", attributes={"class": self._style(), "width": 20, "height": 12})

    def _style(self) -> str:
        return "band shaded" if self.shaded else "band"

    def _ends(self, plot: Plot) -> tuple[list[float], list[float]]:
        if self.axis == "x":
            return sorted((plot.x(self.low), plot.x(self.high))), [plot.top, plot.bottom]
        return [plot.left, plot.right], sorted((plot.y(self.low), plot.y(self.high)))


@dataclass(frozen=True, kw_only=True)
class ReferenceLine(Mark):
    """A reference line right across the plot, at one value of an axis; on the x axis its label stands above."""

    at: float
    axis: Literal["x", "y"] = "y"
    label: str = ""
    tone: Tone = "warm"
    weight: float = 1.5
    dashes: str = ""
    legend: str = ""

    def has_header(self) -> bool:
        return self.axis == "x" and bool(self.label)

    def elements(self, plot: Plot) -> Iterator[Element]:
        if self.axis == "y":
            y = plot.y(self.at)
            yield self._line({"x1": plot.left, "x2": plot.right, "y1": y, "y2": y})
            return
        x = plot.x(self.at)
        yield self._line({"x1": x, "x2": x, "y1": plot.top - (RULE_ROW - 4 if self.label else 0), "y2": plot.bottom})
        late = x > plot.left + 0.8 * plot.across
        style = _style("strong end" if late else "strong middle", self.tone)
        if self.label:
            yield text(self.label, x + 8 if late else x, plot.top - RULE_ROW, style=style)

    def swatch(self) -> Element:
        return self._line({"x1": 0, "x2": 20, "y1": 6, "y2": 6})

    def _line(self, ends: Mapping[str, float]) -> Element:
        dashes = {"stroke-dasharray": self.dashes} if self.dashes else {}
        return Element(tag="line", attributes={"class": _style("rule", self.tone), **ends, **_weight(self), **dashes})


def _style(kind: str, tone: Tone) -> str:
    return f"{kind} in-{tone}".strip()


def _weight(mark: Line | Dots | ReferenceLine) -> dict[str, float]:
    return {"stroke-width": mark.weight}
