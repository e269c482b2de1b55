"""Accuracy against seconds as an SVG, drawn with the report's own charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from svg import to_svg

from peers.outcomes import common_runs, latest, mean_curves
from peers.roster import OURS, ROSTER
from transferkit.report.charts.axes import log_axis, share_axis
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Line, Point, Tone

MOMENTS = 120
"""Points of a curve, equally far apart on the log axis of seconds."""


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
