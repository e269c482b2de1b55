"""What is searched: hyperparameters with their ranges, drawn at random or laid on a grid.

A hyperparameter has the name that it has on the command line ("train.lr"), so that a point of the space is a set of
settings of `adapt`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from transferkit.core.errors import OptionError, list_problems, problem_of

__all__ = ["Choices", "Dimension", "Point", "Range", "Space", "draw_points", "lay_grid", "narrow", "read_space"]

Point = Mapping[str, Any]
"""Name -> value."""

NARROWED = 0.3
"""Share of its width that a range keeps around the best points, unless these are further apart."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers between two bounds.

    Args:
        low, high: The bounds, which belong to it; low < high.
        log: Whether all orders of magnitude are equally probable, which is right for whatever acts by its factor:
            learning rates, weight decay. Needs low > 0.
        whole: Whether they are whole numbers.

    Raises:
        OptionError: The bounds do not fit.

    References:
        Bergstra & Bengio, Random search for hyper-parameter optimization, JMLR 2012.

    Example:
        >>> Range(low=1e-4, high=1e-2, log=True).at(0.5)
        0.001
        >>> Range(low=1, high=8, log=True, whole=True).at(0.999)
        8
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise OptionError(f"A range needs finite bounds with low < high, got {self.low!r} and {self.high!r}.")
        if self.log and self.low <= 0:
            raise OptionError(
                f"A range with log=true needs low > 0, got {self.low!r}; a value of 0 (off) can be a choice of its own."
            )
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise OptionError(f"A range of whole numbers needs whole bounds, got {self.low!r} and {self.high!r}.")

    def at(self, share: float) -> float | int:
        """The value at this share of the way, in [0, 1], from low to high; significant to four digits."""
        low, high = self._ends()
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return float(min(max(float(f"{value:.4g}"), self.low), self.high))

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at low to 1 at high; the reverse of `at`."""
        low, high = self._ends()
        return ((math.log(value) if self.log else value) - low) / (high - low)

    def around(self, values: Sequence[float], *, width: float = NARROWED) -> Range:
        """The part of the range around these values: from the lowest to the highest, at least `width` of it.

        Example:
            >>> Range(low=1e-5, high=1e-1, log=True).around([1e-3, 2e-3], width=0.5)
            Range(low=0.0001414, high=0.01414, log=True, whole=False)
        """
        shares = [min(max(self.share(value), 0.0), 1.0) for value in values]
        middle, half = (min(shares) + max(shares)) / 2, max(max(shares) - min(shares), width) / 2
        # A range that would stand out keeps its width inside.
        middle = min(max(middle, min(half, 0.5)), max(1 - half, 0.5))
        low, high = self.at(max(middle - half, 0.0)), self.at(min(middle + half, 1.0))
        return replace(self, low=low, high=high) if low < high else self

    def spread(self, count: int) -> list[Any]:
        """Values in even steps from low to high."""
        return list(dict.fromkeys(self.at(share) for share in np.linspace(0, 1, max(count, 2)).tolist()))

    def _ends(self) -> tuple[float, float]:
        if not self.whole:
            return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        # Half a step more at both ends, or these would be drawn half as often as the others.
        low, high = self.low - 0.5, self.high + 0.5
        return (math.log(max(low, 0.5)), math.log(high)) if self.log else (low, high)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Values of which one is taken, all equally probable; two are a coin (Bernoulli).

    Args:
        values: Strings, numbers, flags or None, at least one, no two alike.

    Raises:
        OptionError: There is none, or one is there twice.

    Example:
        >>> Choices(values=("cosine", "constant")).at(0.7)
        'constant'
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise OptionError("A choice needs at least one value.")
        keys = [(type(value), value) for value in self.values]
        if twice := next((value for value in keys if keys.count(value) > 1), None):
            raise OptionError(f"The choice {twice[1]!r} is there twice.")

    def at(self, share: float) -> Any:
        """The value at this share, in [0, 1], of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def around(self, values: Sequence[Any]) -> Choices:
        """Those that are among these values."""
        return Choices(values=tuple(value for value in self.values if value in values) or self.values)

    def spread(self, count: int) -> list[Any]:
        """All of them, whatever the count."""
        return list(self.values)


Dimension = Range | Choices
Space = Mapping[str, Dimension]
"""Name -> its range, the most important first."""


def draw_points(space: Space, count: int, *, seed: int, first: int = 0) -> list[dict[str, Any]]:
    """Points drawn at random, independently; point i is the same however many are drawn.

    Args:
        space: With at least one dimension.
        count: How many, >= 0.
        seed: Of all of them.
        first: Number of the first one.

    Example:
        >>> space = {"train.lr": Range(low=1e-4, high=1e-1, log=True)}
        >>> draw_points(space, 3, seed=0)[2:] == draw_points(space, 1, seed=0, first=2)
        True
    """
    points = []
    for number in range(first, first + count):
        shares = np.random.default_rng([seed, number]).random(len(space)).tolist()
        points.append({name: one.at(share) for (name, one), share in zip(space.items(), shares, strict=True)})
    return points


def lay_grid(space: Space, count: int) -> list[dict[str, Any]]:
    """The points of a grid over the space, of at most `count` points if that leaves two values for each range.

    All ranges get equally many values; choices all of theirs.

    Example:
        >>> lay_grid({"a": Range(low=0, high=1), "b": Choices(values=(True, False))}, 5)
        [{'a': 0.0, 'b': True}, {'a': 0.0, 'b': False}, {'a': 1.0, 'b': True}, {'a': 1.0, 'b': False}]
    """
    fixed = math.prod(len(one.values) for one in space.values() if isinstance(one, Choices))
    ranges = sum(isinstance(one, Range) for one in space.values())
    # 1e-9: the third root of 27 is 3, not 2.9999999999999996.
    each = math.floor((count / fixed) ** (1 / ranges) + 1e-9) if ranges else 1
    values = [one.spread(max(each, 2)) for one in space.values()]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]


def narrow(space: Space, best: Sequence[Point]) -> dict[str, Dimension]:
    """The region around the best points: of each range the part that they span, at least 30 % of it.

    Args:
        space: The whole of it.
        best: Points of it, at least one.
    """
    return {name: one.around([point[name] for point in best]) for name, one in space.items()}


def read_space(given: Mapping[str, Any]) -> dict[str, Dimension]:
    """A space from plain values, as in a YAML file.

    Args:
        given: Name -> {"low": ..., "high": ..., "log": ..., "whole": ...}, or a list of choices, or a `Dimension`; None
            leaves that name out.

    Raises:
        OptionError: It is no mapping, something is no range and no list, or nothing is left; all that is wrong is said.

    Example:
        >>> read_space({"train.lr": {"low": 1e-4, "high": 0.1, "log": True}, "train.schedule": ["cosine", "constant"]})
        {'train.lr': Range(low=0.0001, high=0.1, log=True, whole=False), 'train.schedule': Choices(values=('cosine', \
'constant'))}
    """
    if not isinstance(given, Mapping):
        raise OptionError(
            f"The space must give names their ranges, such as {{'train.lr': {{'low': 1e-4, 'high': 0.1}}}}, got "
            f"{given!r}. On the command line a file DIR/tune/NAME.yaml of your own is --config-dir=DIR tune=NAME."
        )
    flat = dict(_flat(given))
    found = {name: problem_of(partial(_dimension, one)) for name, one in flat.items()}
    problems = [f"{name}: {error}" for name, error in found.items() if error is not None]
    if not flat:
        problems = ["It is empty; give it at least one name, such as {'train.lr': {'low': 1e-4, 'high': 0.1}}."]
    if problems:
        raise OptionError(list_problems("The space cannot be searched:", problems))
    return {name: _dimension(one) for name, one in flat.items()}


def _flat(given: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots, where groups are nested."""
    for name, one in given.items():
        if isinstance(one, Mapping) and not set(one) & {"low", "high", "values"}:
            yield from _flat(one, f"{before}{name}.")
        elif one is not None:
            yield f"{before}{name}", one


def _dimension(one: Any) -> Dimension:
    if isinstance(one, (Range, Choices)):
        return one
    if isinstance(one, Mapping) and set(one) == {"values"}:
        one = one["values"]
    if isinstance(one, (list, tuple)):
        return Choices(values=tuple(one))
    known = {"low", "high", "log", "whole"}
    if not isinstance(one, Mapping) or not {"low", "high"} <= set(one) <= known:
        raise OptionError(f"Expected a list of values, or low and high (and log: true, whole: true), got {one!r}.")
    for end in ("low", "high"):
        if isinstance(one[end], bool) or not isinstance(one[end], (int, float)):
            raise OptionError(f"{end} must be a number, got {one[end]!r}. YAML reads 1e-4 as text: write 1.0e-4.")
    return Range(**one)
