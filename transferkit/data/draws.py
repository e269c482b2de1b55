"""Randomness as a pure function of where it is used: the same seed, epoch and image draw the same.

torchvision's transforms draw from torch's global CPU generator, which all threads of a process share. `drawing` lends
it to one of them at a time and puts it back. A lock cannot keep out a network that trains in another thread and draws
from it as well, so pictures are augmented in the thread that trains or in worker processes, never in threads beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["drawing", "one_thread"]

_LOCK = threading.RLock()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Torch's global CPU generator starts at `seed`; afterwards it is where it was, also after an exception.

    Costs 6 microseconds. Other threads that come here wait.

    Args:
        seed: In [0, 2^63), as `draw_seed` gives it.

    Example:
        >>> with drawing(7):
        ...     first = torch.rand(1)
        >>> with drawing(7):
        ...     print(torch.equal(first, torch.rand(1)))
        True
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it costs 130 microseconds and would seed the accelerators, which are not put back.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one core meanwhile: on pictures this small, waking the others costs more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
