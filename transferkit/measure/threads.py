"""How many threads linear algebra gets: by the number of images alone, never by the load of the machine.

Sums over other numbers of threads round differently, so a race between them would make a run depend on what else the
machine does. Threads of a BLAS wait for each other by spinning: where another process holds a core, closed forms of 600
images took seven seconds on two threads and 0.7 on one. Where there are several of the same kind to be solved, a thread
each (`in_parallel`) is what helps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["fitting_threads", "in_parallel"]

T = TypeVar("T")
U = TypeVar("U")

SMALL = 2048
"""Images up to which one thread does best: of 1,600 images on two quiet cores, probes took as long on two threads as on
one, selecting features and learning curves twice as long."""


@contextmanager
def fitting_threads(images: int) -> Iterator[None]:
    """One thread for closed forms of few images, else all; as it was before, afterwards.

    Example:
        >>> with fitting_threads(100):
        ...     pass
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1 if images <= SMALL else None, user_api="blas"):
        yield


def in_parallel(work: Callable[[T], U], jobs: Iterable[T]) -> list[U]:
    """The results in order, as many jobs at once as there are cores; linear algebra runs on one thread in each.

    Example:
        >>> in_parallel(lambda number: number**2, range(4))
        [0, 1, 4, 9]
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, jobs))
