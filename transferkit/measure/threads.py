"""How many threads linear algebra gets: one for small problems.

Threads of a BLAS wait for each other by spinning. With another process on the machine, closed forms of 600 images took
seven seconds on two threads and 0.7 on one; alone on the machine the second thread saves a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fitting_threads"]

SMALL = 1024
"""Images up to which one thread is enough: an eigendecomposition of that size takes a third of a second on it."""


@contextmanager
def fitting_threads(images: int) -> Iterator[None]:
    """One thread for closed forms of few images, all of them for many; as it was before, afterwards.

    Example:
        >>> with fitting_threads(100):
        ...     pass
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1 if images <= SMALL else None, user_api="blas"):
        yield
