"""Axes with round ticks: shares, plain values, logarithms, whole numbers and classes. Numbers in, positions out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from transferkit.core.errors import OptionError
from transferkit.report._words import format_number, format_percent, shorten

__all__ = [
    "LETTER",
    "LINE",
    "LONGEST",
    "Axis",
    "Label",
    "class_axis",
    "count_axis",
    "log_axis",
    "measure_axis",
    "share_axis",
    "text_width",
    "value_axis",
]

SHARE_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Round distances between ticks, as shares."""

ROUND = (1, 2, 5, 10)
"""Round distances between ticks, in units of a power of ten."""

MAX_TICKS = 6
"""More collide on a phone."""

SHIFT = 1e-9
"""Keeps 0.6 / 0.2 = 2.9999999999999996 from opening one more step."""

TINY = 1e-12
"""Values that differ by less, in whatever unit, or by less than 1000 times this share of them, are drawn as equal."""

LETTER = 6.6
"""Average width of a letter of the 12 px labels, px."""

LINE = 14.0
"""Height of a line of them, px."""

LONGEST = 16
"""Letters of a class or series name in a label; the tooltip has all of it."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text at a position; `full` is the text before it was shortened."""

    at: float
    text: str
    full: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values along one side of a plot.

    Args:
        low, high: Values at its start (left or bottom) and its end; `low` above `high` reverses it.
        ticks: Labels, positions in % of its length.
        name: What it measures, with the unit.
        kind: "linear", "log", or "classes": one slot per class, every label drawn, grid lines between the slots.
        grid: Positions of the grid lines, in %.

    Raises:
        OptionError: If the ends are equal, not finite, or not positive on a log axis.
    """

    low: float
    high: float
    ticks: tuple[Label, ...]
    name: str = ""
    kind: Literal["linear", "log", "classes"] = "linear"
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low != self.high):
            raise OptionError(f"Axis needs two different finite ends, got {self.low!r} and {self.high!r}.")
        if self.kind == "log" and min(self.low, self.high) <= 0:
            raise OptionError(f"A log axis needs ends above 0, got {self.low!r} and {self.high!r}.")

    def place(self, value: float) -> float:
        """Position of a value in % of the length; a value outside is put on the edge.

        Example:
            >>> Axis(low=0.5, high=1.0, ticks=()).place(0.75), Axis(low=1, high=100, ticks=(), kind="log").place(10)
            (50.0, 50.0)
        """
        if self.kind == "log":
            share = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else 0.0
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)


def share_axis(values: Iterable[float], *, slack: float = 0.0, name: str = "") -> Axis:
    """The shortest axis of percentages with round ends that holds all values.

    Args:
        values: Shares in [0, 1], one or more.
        slack: Room to leave beyond them, as a share.
        name: What it measures.
    """
    shares = list(values)
    least, most = max(0.0, min(shares) - slack), min(1.0, max(shares) + slack)
    for step in SHARE_STEPS:
        first, last = math.floor(least / step + SHIFT), math.ceil(most / step - SHIFT)
        if last == first:
            first, last = (first - 1, last) if first > 0 else (first, last + 1)
        if last - first < MAX_TICKS:
            break
    return _stepped(first, last, step, name, lambda share: format_percent(round(share, 6), digits=0))


def measure_axis(values: Iterable[float], measure: str, *, slack: float = 0.0, name: str = "") -> Axis:
    """The axis of a score: percentages, or plain numbers for R2, which may lie below 0."""
    found = list(values)
    return value_axis(found, name=name) if measure == "R2" else share_axis(found, slack=slack, name=name)


def value_axis(values: Iterable[float], *, name: str = "") -> Axis:
    """A linear axis with round ends that holds all values; it starts at 0 unless they all lie far above it.

    Args:
        values: Finite, one or more.
        name: What it measures, with the unit.

    Example:
        >>> [tick.text for tick in value_axis([0.31, 1.9]).ticks]
        ['0', '0.5', '1', '1.5', '2']
    """
    found = list(values)
    least, most = min(found), max(found)
    # A loss that fell by less than a half would be a flat line above an empty half of the plot.
    base = least if 0 < most / 2 < least < most else min(least, 0.0)
    reach = next(size for size in (most - base, abs(most), 1.0) if size > TINY * max(1.0, 1000 * abs(most)))
    power = 10.0 ** math.floor(math.log10(reach / (MAX_TICKS - 1)))
    for unit in ROUND:
        step = unit * power
        first, last = math.floor(base / step + SHIFT), math.ceil((base + reach) / step - SHIFT)
        if last - first < MAX_TICKS:
            break
    return _stepped(first, last, step, name, lambda value: format_number(float(f"{value:.6g}")))


def _stepped(first: int, last: int, step: float, name: str, write: Callable[[float], str]) -> Axis:
    ticks = tuple(
        Label(at=round(100 * (n - first) / (last - first), 3), text=write(n * step)) for n in range(first, last + 1)
    )
    return Axis(low=first * step, high=last * step, ticks=ticks, name=name, grid=tuple(tick.at for tick in ticks))


def log_axis(values: Iterable[float], *, name: str = "", ticks: Sequence[float] = ()) -> Axis:
    """A logarithmic axis that holds all values; its ends are 1, 2 or 5 times a power of ten.

    Args:
        values: Positive and finite, one or more.
        name: What it measures, with the unit.
        ticks: If given, only these are marked, without grid lines, and the axis ends at the outermost of them and of
            the values.

    Raises:
        OptionError: If a value is not positive and finite.

    Example:
        >>> [tick.text for tick in log_axis([0.003, 0.04]).ticks]
        ['0.002', '0.005', '0.01', '0.02', '0.05']
    """
    found = [*values, *ticks]
    if not all(0 < value < math.inf for value in found):
        raise OptionError(f"A log axis needs finite values above 0, got {min(found)!r} to {max(found)!r}.")
    low, high = _own_ends(found) if ticks else _round_ends(found)
    axis = Axis(low=low, high=high, ticks=(), name=name, kind="log")
    marks = sorted(set(ticks)) or _round_marks(low, high)
    labels = tuple(Label(at=axis.place(mark), text=format_number(mark)) for mark in marks)
    grid = () if ticks else tuple(label.at for label in labels)
    return Axis(low=low, high=high, ticks=labels, name=name, kind="log", grid=grid)


def _round_values(low: float, high: float) -> list[float]:
    """All values of the form 1, 2 or 5 times a power of ten, from the last one <= low to the first one >= high."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{unit}e{power}") for power in powers for unit in ROUND[:3]]
    first = max(n for n, mark in enumerate(marks) if mark <= low * (1 + SHIFT))
    last = min(n for n, mark in enumerate(marks) if mark >= high * (1 - SHIFT))
    return marks[first : last + 1]


def _own_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low / 2, high * 2)


def _round_ends(values: Sequence[float]) -> tuple[float, float]:
    marks = _round_values(min(values), max(values))
    if len(marks) == 1:
        marks = _round_values(0.99 * marks[0], 1.01 * marks[0])
    return marks[0], marks[-1]


def _round_marks(low: float, high: float) -> list[float]:
    """At most `MAX_TICKS` round values: 1, 2, 5 times powers of ten, else 1, 5, else 1, else every second of those."""
    marks = _round_values(low, high)
    leading = {mark: f"{mark:e}"[0] for mark in marks}
    decades = [mark for mark in marks if leading[mark] == "1"]
    halves = [mark for mark in marks if leading[mark] in "15"]
    choices = itertools.chain([marks, halves], (decades[::step] for step in itertools.count(1)))
    return next(choice for choice in choices if len(choice) <= MAX_TICKS)


def count_axis(first: int, last: int, *, name: str = "") -> Axis:
    """Whole numbers, each in the middle of a slot of its own; round ones are labelled.

    Args:
        first, last: The smallest and the largest number, `first` <= `last`.
        name: What is counted.

    Example:
        >>> [tick.text for tick in count_axis(1, 11).ticks]
        ['2', '4', '6', '8', '10']
    """
    axis = Axis(low=first - 0.5, high=last + 0.5, ticks=(), name=name)
    steps = (unit * 10**power for power in itertools.count() for unit in ROUND[:3])
    step = next(step for step in steps if last // step - (first - 1) // step <= MAX_TICKS)
    marks = range(-(-first // step) * step, last + 1, step)
    return Axis(
        low=axis.low,
        high=axis.high,
        ticks=tuple(Label(at=axis.place(mark), text=format_number(mark)) for mark in marks),
        name=name,
    )


def class_axis(names: Sequence[str], *, name: str = "", downwards: bool = False) -> Axis:
    """One slot per class: class k lies at k, in the middle of its slot.

    Args:
        names: K class names; long ones are shortened.
        name: What the classes are.
        downwards: Whether class 0 is at the end of the axis, so that rows read from the top.
    """
    low, high = -0.5, len(names) - 0.5
    if downwards:
        low, high = high, low
    axis = Axis(low=low, high=high, ticks=(), kind="classes")
    return Axis(
        low=low,
        high=high,
        ticks=tuple(
            Label(at=axis.place(k), text=shorten(one, length=LONGEST), full=one) for k, one in enumerate(names)
        ),
        name=name,
        kind="classes",
        grid=tuple(axis.place(k - 0.5) for k in range(len(names) + 1)),
    )


def text_width(texts: Iterable[str]) -> float:
    """Width of the longest of these labels, px."""
    return max((len(text) for text in texts), default=0) * LETTER
