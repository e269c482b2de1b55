"""Threads that read images and run batches, and the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from transferkit.core.distributed import local_rank_and_world_size

__all__ = ["default_workers", "in_order", "worker_pool"]


def default_workers() -> int:
    """One per core, where several processes share the machine of its share."""
    return max(1, (os.cpu_count() or 1) // local_rank_and_world_size()[1])


@contextmanager
def worker_pool(workers: int, *, on_one_core_each: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that have all ended afterwards."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=_use_one_thread if on_one_core_each else None)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if on_one_core_each:  # only now: a worker that starts late sets the number for the whole process
            torch.set_num_threads(before)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def in_order(pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Results in order; at most `ahead` batches are running or waiting to be used, so that memory stays constant."""
    waiting: deque[Future[Any]] = deque()
    for batch in batches:
        waiting.append(pool.submit(work, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
