"""A row of an interval plot: a value with its interval on an axis that all rows share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IntervalRow"]


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """A named value with its interval; positions in % of the axis.

    Args:
        name: Beside it, on the left.
        value, interval: In words.
        at, low, high: Positions of the value and of the ends of its interval.
        note: On the right, after the value; the interval if empty.
        chosen: Whether the row is highlighted.
        tag: Says after the name why it is.
        apart: Whether there is room between it and the row above.
        diamond: Whether it has a hollow diamond instead of a dot.
    """

    name: str
    value: str
    interval: str
    at: float
    low: float
    high: float
    note: str = ""
    chosen: bool = False
    tag: str = ""
    apart: bool = False
    diamond: bool = False
