"""Until when a run may train: a budget of seconds, kept by ending at an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from transferkit.core.distributed import broadcast

__all__ = ["NEVER", "Deadline"]


@dataclass(frozen=True)
class Deadline:
    """A moment after which no further epoch is begun.

    What has been trained until then is used, so a run exceeds its deadline by at most an epoch and the fit of a head.

    Args:
        at: Reading of the clock; infinite for no deadline.
        clock: Seconds from any start.

    Example:
        >>> Deadline(at=10.0, clock=lambda: 4.0).allows(5.0)
        True
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @property
    def is_set(self) -> bool:
        """Whether there is a deadline."""
        return self.at < math.inf

    def allows(self, seconds: float) -> bool:
        """Whether work of about so many seconds would be finished in time; all processes must ask, and get the answer
        of the first."""
        return not self.is_set or broadcast(self.clock() + seconds <= self.at)


NEVER = Deadline()
"""No deadline."""
