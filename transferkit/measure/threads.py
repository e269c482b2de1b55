"""Number of threads for linear algebra, by the number of images alone, never by the load of the machine.

Results depend on the number of threads by rounding, so choosing it by load would make a run depend on other processes.
BLAS threads wait for each other by spinning: with another process on a core, closed-form fits to 600 images took seven
seconds on two threads and 0.7 on one. Several independent solutions are faster with one thread each (`in_parallel`).
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
"""Images up to which one thread is fastest: with 1,600 images on two idle cores, probes took as long on two threads as
on one, feature selection and learning curves twice as long."""


@contextmanager
def fitting_threads(images: int) -> Iterator[None]:
    """Inside the block: one BLAS thread for few images, else all; restored afterwards.

    Example:
        >>> with fitting_threads(100):
        ...     pass
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1 if images <= SMALL else None, user_api="blas"):
        yield


def in_parallel(work: Callable[[T], U], jobs: Iterable[T]) -> list[U]:
    """The results in order, computed in as many threads as there are cores, with one BLAS thread in each.

    Example:
        >>> in_parallel(lambda number: number**2, range(4))
        [0, 1, 4, 9]
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, jobs))
