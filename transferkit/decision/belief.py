"""A normal distribution over an accuracy, and the Bayesian combination of two."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.core.intervals import TWO_SIDED
from transferkit.records import Alternative

__all__ = ["Belief", "update"]


@dataclass(frozen=True, kw_only=True)
class Belief:
    """A normal distribution.

    Args:
        mean: Its centre.
        error: Its standard deviation, >= 0.
    """

    mean: float
    error: float

    def alternative(self, strategy: str, stage: str, *, cost_seconds: float) -> Alternative:
        """The `Alternative` of a strategy with this accuracy: mean and 95 % interval, clipped to [0, 1].

        Example:
            >>> plain = Belief(mean=0.9, error=0.1).alternative("linear_probe", "top", cost_seconds=1.0)
            >>> plain.expected_accuracy, round(plain.low, 3), plain.high
            (0.9, 0.704, 1.0)
        """
        margin = TWO_SIDED * self.error
        return Alternative(
            strategy=strategy,
            stage=stage,
            expected_accuracy=_within_unit(self.mean),
            low=_within_unit(self.mean - margin),
            high=_within_unit(self.mean + margin),
            cost_seconds=cost_seconds,
        )


def _within_unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def update(prior: Belief, measured: Belief) -> Belief:
    """The combination of prior and measurement, weighted by precision.

    Example:
        >>> update(Belief(mean=0.0, error=1.0), Belief(mean=1.0, error=1.0)).mean
        0.5
    """
    if prior.error == 0:
        return prior
    trust = prior.error**2 / (prior.error**2 + measured.error**2)
    return Belief(mean=prior.mean + trust * (measured.mean - prior.mean), error=math.sqrt(trust) * measured.error)
