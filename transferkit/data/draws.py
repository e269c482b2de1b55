"""Random draws as a pure function of seed, epoch and image.

torchvision's transforms use torch's global CPU generator, which all threads of a process share. `drawing` seeds it for
one thread at a time and restores it. A lock cannot keep out a network that trains in another thread and draws
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
    """Seed torch's global CPU generator inside the `with` block, and restore its state afterwards.

    Costs 6 microseconds. Other threads wait at the `with`.

    Args:
        seed: In [0, 2^63), from `draw_seed`.

    Example:
        >>> with drawing(7):
        ...     first = torch.rand(1)
        >>> with drawing(7):
        ...     print(torch.equal(first, torch.rand(1)))
        True
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it costs 130 microseconds and seeds the accelerators too, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the `with` block: on small pictures, starting other threads costs more time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
