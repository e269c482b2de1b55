"""How many threads linear algebra gets: one for small problems, and one on a machine that others keep busy.

Threads of a BLAS wait for each other by spinning. Where another process holds a core, closed forms of 600 images took
seven seconds on two threads and 0.7 on one, those of 1,400 images three minutes instead of ten seconds. Where there are
several of the same kind to be solved, a thread each (`in_parallel`) is what helps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

__all__ = ["fitting_threads", "in_parallel"]

T = TypeVar("T")
U = TypeVar("U")

SMALL = 2048
"""Images up to which one thread does best: of 1,600 images on two quiet cores, probes took as long on two threads as on
one, selecting features and learning curves twice as long."""

TRIAL_SIZE = 256
"""Side of the matrix that tells whether threads get in each other's way; 10 ms where they do not."""

CROWDED = 3.0
"""Times that all threads may be slower than one on it: idle ones gain nothing on so small a matrix, spinning ones lose
tenfold."""


@contextmanager
def fitting_threads(images: int) -> Iterator[None]:
    """One thread for closed forms of few images or on a busy machine, else all; as it was before, afterwards.

    Example:
        >>> with fitting_threads(100):
        ...     pass
    """
    from threadpoolctl import threadpool_limits

    limit = 1 if images <= SMALL or _seconds(None) > CROWDED * _seconds(1) else None
    with threadpool_limits(limits=limit, user_api="blas"):
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


def _seconds(threads: int | None) -> float:
    """For one eigendecomposition on so many threads; None takes all."""
    from scipy.linalg import eigh
    from threadpoolctl import threadpool_limits

    matrix = np.random.default_rng(0).normal(size=(TRIAL_SIZE, TRIAL_SIZE)).astype(np.float32)
    with threadpool_limits(limits=threads, user_api="blas"):
        start = time.perf_counter()
        eigh(matrix + matrix.T, driver="evd")
        return time.perf_counter() - start
