"""How long the phases of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["timed"]


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds that the block takes to `seconds[phase]`.

    Example:
        >>> seconds = {}
        >>> with timed(seconds, "probe"):
        ...     pass
        >>> list(seconds)
        ['probe']
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
