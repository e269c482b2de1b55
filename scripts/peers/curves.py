"""Accuracy against seconds as an SVG, drawn with the report's own charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from peers.outcomes import common_runs, latest, mean_curves
from peers.roster import OURS, ROSTER
from transferkit.report.charts.axes import log_axis, share_axis
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Element, Line, Point, Tone

MOMENTS = 120
"""Points of a curve, equally far apart on the log axis of seconds."""

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#59626b}.ink{fill:#1c2126}.middle{text-anchor:middle}"
    ".end{text-anchor:end}.strong{font-weight:700}.grid{stroke:#dedad2}.line{fill:none;stroke-linejoin:round}"
    ".line.in-accent{stroke:#0b6e5f}.line.in-warm{stroke:#b5541c}.line.in-quiet{stroke:#59626b}"
    "text.in-accent{fill:#0b6e5f}text.in-warm{fill:#b5541c}text.in-quiet{fill:#59626b}"
)
"""Colours of the report's light page: a picture in a document cannot read its style sheet."""


def draw(records: Sequence[Mapping[str, Any]]) -> str:
    """The SVG: a curve per contestant, its mean accuracy over the runs that all of them finished.

    Before its first model a contestant has the accuracy of guessing.

    Raises:
        ValueError: No run was finished by all contestants.
    """
    done = [record for record in latest(records) if not record["error"] and record["points"]]
    names = [name for name in ROSTER if any(record["contestant"] == name for record in done)]
    shared = common_runs(done, names)
    if not shared:
        raise ValueError("No run was finished by all contestants; there is no curve to draw.")
    times = [point["seconds"] for record in done for point in record["points"]]
    moments = np.geomspace(min(times), max(times), MOMENTS).tolist()
    curves = mean_curves(records, moments)
    chart = Chart(
        title="Mean test accuracy of each contestant against seconds of training",
        x=log_axis(moments, name="Seconds since the libraries, files and pretrained network were ready (log scale)"),
        y=share_axis([value for curve in curves.values() for value in curve], name="Mean test accuracy"),
        marks=tuple(_line(name, moments, curves[name]) for name in sorted(names, key=lambda name: name in OURS)),
        across=560,
        down=360,
    )
    return to_svg(chart)


def tone_of(name: str) -> Tone:
    """Ours green, peers that train the network orange, peers on a frozen one grey."""
    if name in OURS:
        return "accent"
    return "quiet" if name in ("lightning_frozen", "sklearn") else "warm"


def _line(name: str, moments: Sequence[float], curve: Sequence[float]) -> Line:
    points = [Point(x=x, y=y) for x, y in zip(moments, curve, strict=True)]
    ours = name in OURS
    return Line(points=points, tone=tone_of(name), weight=2.5 if ours else 1.25, label=name, strong=ours)


def to_svg(chart: Chart) -> str:
    """A chart as a document of its own."""
    inside = "\n".join(markup(one) for one in chart.elements())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {chart.width} {chart.height}" '
        f'width="{chart.width}" height="{chart.height}" role="img">\n<title>{escape(chart.title)}</title>\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
    )


def markup(element: Element) -> str:
    """An element and its children as SVG.

    Example:
        >>> markup(Element(tag="text", attributes={"x": 1.5}, text="a < b"))
        '<text x="1.5">a &lt; b</text>'
    """
    told = "".join(f' {name}="{escape(str(value))}"' for name, value in element.attributes.items())
    title = f"<title>{escape(element.title)}</title>" if element.title else ""
    inside = title + "".join(markup(child) for child in element.children) + escape(element.text)
    return f"<{element.tag}{told}>{inside}</{element.tag}>"
