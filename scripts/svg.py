"""Charts of the report as SVG documents of their own, for the pages in docs/."""

from __future__ import annotations

from html import escape

from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Element

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#59626b}.ink{fill:#1c2126}.middle{text-anchor:middle}"
    ".end{text-anchor:end}.strong{font-weight:700}.grid{stroke:#dedad2}.line{fill:none;stroke-linejoin:round}"
    ".line.in-accent{stroke:#0b6e5f}.line.in-warm{stroke:#b5541c}.line.in-quiet{stroke:#59626b}"
    ".dot{stroke:#fff}.in-accent .dot{fill:#0b6e5f}.in-warm .dot{fill:#b5541c}.in-quiet .dot{fill:#59626b}"
    ".whisker{stroke-width:1.5}.in-accent .whisker{stroke:#0b6e5f}.in-warm .whisker{stroke:#b5541c}"
    ".in-quiet .whisker{stroke:#59626b}"
    "text.in-accent{fill:#0b6e5f}text.in-warm{fill:#b5541c}text.in-quiet{fill:#59626b}"
)
"""Colours of the report's light page: a picture in a document cannot read its style sheet."""


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
