"""What more training images would bring: accuracies expected at other numbers of images, and numbers for accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.records._checks import require, require_share

__all__ = ["DataNeed", "Forecast", "WantedAccuracy"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected accuracy with a number of training images.

    Args:
        images: Training images in all, >= 1.
        accuracy: Median of the forecast, in [0, 1].
        gain, gain_low, gain_high: Median and 80 % interval of the gain over today's number of images.
    """

    images: int
    accuracy: float
    gain: float
    gain_low: float
    gain_high: float

    def __post_init__(self) -> None:
        require(self.images >= 1, f"Forecast.images must be >= 1, got {self.images!r}.")
        require_share("Forecast", "accuracy", self.accuracy)
        require(
            self.gain_low <= self.gain <= self.gain_high,
            f"Forecast.gain must lie in its interval, got {self.gain_low!r}, {self.gain!r}, {self.gain_high!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class WantedAccuracy:
    """Number of training images that an accuracy needs.

    Args:
        accuracy: In [0, 1].
        images: Median of the forecast; None if, by the curve, no number of images is more likely than not to reach it.
        low, high: 80 % interval; None for no such number.
    """

    accuracy: float
    images: int | None
    low: int | None
    high: int | None

    def __post_init__(self) -> None:
        require_share("WantedAccuracy", "accuracy", self.accuracy)
        known = [math.inf if one is None else one for one in (self.low, self.images, self.high)]
        require(
            known == sorted(known),
            f"WantedAccuracy.images must lie in its interval, got {[self.low, self.images, self.high]}.",
        )


@dataclass(frozen=True, kw_only=True)
class DataNeed:
    """The learning curve of one representation, extrapolated.

    Args:
        stage: Whose: a stage name, or "joined".
        images: Training images today.
        forecasts: For growing numbers of images; empty if nothing can be said.
        wanted: For growing accuracies above today's.
        problem: Why the curve is not well behaved, or too short, a sentence; "" if it is well behaved.
    """

    stage: str
    images: int
    forecasts: tuple[Forecast, ...]
    wanted: tuple[WantedAccuracy, ...]
    problem: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer in words: what doubling would bring, what an accuracy needs, and how far to trust both.

        Example:
            >>> gain = Forecast(images=600, accuracy=0.932, gain=0.018, gain_low=0.006, gain_high=0.031)
            >>> need = WantedAccuracy(accuracy=0.95, images=1100, low=800, high=None)
            >>> for line in DataNeed(stage="joined", images=300, forecasts=(gain,), wanted=(need,)).sentences:
            ...     print(line)
            With 600 images, 2 times as many: +1.8 points (80 % interval +0.6 to +3.1).
            95 % accuracy takes about 1,100 images (80 % interval 800 to more than can be told).
        """
        return (
            *((self.problem,) if self.problem else ()),
            *(_describe_gain(one, self.images) for one in self.forecasts),
            *(_describe_need(one) for one in self.wanted),
        )


def _describe_gain(one: Forecast, images: int) -> str:
    times = f"With {one.images:,} images, {one.images / images:.3g} times as many"
    return f"{times}: {_points(one.gain)} points (80 % interval {_points(one.gain_low)} to {_points(one.gain_high)})."


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _describe_need(one: WantedAccuracy) -> str:
    wanted = f"{100 * one.accuracy:.3g} % accuracy"
    if one.images is None:
        least = "" if one.low is None else f"; with luck {_round(one.low):,} images do"
        return f"{wanted} is unlikely to be reached by more images alone{least}."
    high = "more than can be told" if one.high is None else f"{_round(one.high):,}"
    assert one.low is not None
    return f"{wanted} takes about {_round(one.images):,} images (80 % interval {_round(one.low):,} to {high})."


def _round(images: int) -> int:
    """To two digits: more would be false precision."""
    return round(float(f"{images:.2g}"))
