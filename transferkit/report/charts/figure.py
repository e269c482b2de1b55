"""Figures of the report, each of one or more charts, and the registry of the functions that draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.registry import Registry
from transferkit.records import RunRecord
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Element

__all__ = ["CHARTS", "SECTIONS", "Figure", "draw_figures"]

SECTIONS = (
    "decision",
    "stages",
    "views",
    "similarity",
    "data",
    "training",
    "kept",
    "quality",
    "mistakes",
    "calibration",
    "timings",
    "reproduce",
)
"""Sections of the report by their anchors, in the order of the page."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart, or several side by side, with heading, legend and caption.

    Args:
        section: The section it appears in, one of `SECTIONS`.
        charts: One or more. Their legend is collected from their marks.
        heading: Above it; empty where the section's own heading says enough.
        caption: Below it, how to read it.

    Raises:
        OptionError: If there is no such section, or no chart.
    """

    section: str
    charts: Sequence[Chart]
    heading: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise OptionError(unknown_name("section", self.section, SECTIONS))
        if not self.charts:
            raise OptionError("A Figure needs at least one chart; return None where there is nothing to show.")

    @property
    def legend(self) -> Mapping[str, Element]:
        """Text -> sample, of every mark that has a legend, in the order of drawing."""
        marks = [mark for chart in self.charts for mark in chart.marks if mark.legend]
        return {mark.legend: mark.swatch() for mark in marks}


CHARTS: Registry[Callable[[RunRecord], Figure | None]] = Registry("chart")
"""Name -> the function that draws it, or returns None where the run has nothing to show."""


def draw_figures(record: RunRecord, *, sections: Sequence[str]) -> dict[str, dict[str, Figure]]:
    """Section -> name -> figure, for every registered chart that has something to show.

    Args:
        record: The run.
        sections: Those that the report of this run has.

    Raises:
        OptionError: If a figure belongs in a section that this report does not have.
    """
    figures: dict[str, dict[str, Figure]] = {section: {} for section in SECTIONS}
    for name, draw in CHARTS.items():
        figure = draw(record)
        if figure is None:
            continue
        if figure.section not in sections:
            raise OptionError(
                f"The chart {name!r} belongs in section {figure.section!r}, which the report of this run does not "
                f"have. Let it return None for such a run, or choose another section: {', '.join(sections)}."
            )
        figures[figure.section][name] = figure
    return figures
