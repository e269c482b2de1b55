"""Charts of the report: a function each, registered under a name, from a `RunRecord` to a `Figure`.

A chart is a file that registers one function in `CHARTS`, and the line that imports it here. It says what is drawn, in
the units of its axes; `frame` adds margins, grid, ticks, labels and legend, and one template macro draws the result.

Example:
    >>> from transferkit.report.charts import Chart, Line, Point, log_axis, value_axis
    >>> points = [Point(x=10**n, y=n) for n in range(4)]
    >>> chart = Chart(
    ...     title="Digits of a number",
    ...     x=log_axis([point.x for point in points], name="Number"),
    ...     y=value_axis([point.y for point in points], name="Zeros"),
    ...     marks=[Line(points=points)],
    ... )
    >>> [chart.plot.x(value) - chart.plot.left for value in (1, 1000)]
    [0.0, 430.0]
"""

from transferkit.report.charts import (
    accuracy_seconds,
    epochs,
    heat_map,
    inside_network,
    learning_curves,
    reliability,
    targets,
)
from transferkit.report.charts.axes import Axis, class_axis, count_axis, log_axis, measure_axis, share_axis, value_axis
from transferkit.report.charts.figure import CHARTS, SECTIONS, Figure, draw_figures
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Band, Box, Boxes, Dots, Line, Mark, Plot, Point, ReferenceLine, Tone

__all__ = [
    "CHARTS",
    "SECTIONS",
    "Axis",
    "Band",
    "Box",
    "Boxes",
    "Chart",
    "Dots",
    "Figure",
    "Line",
    "Mark",
    "Plot",
    "Point",
    "ReferenceLine",
    "Tone",
    "accuracy_seconds",
    "class_axis",
    "count_axis",
    "draw_figures",
    "epochs",
    "heat_map",
    "inside_network",
    "learning_curves",
    "log_axis",
    "measure_axis",
    "reliability",
    "share_axis",
    "targets",
    "value_axis",
]
