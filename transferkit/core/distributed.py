"""Several processes that train one network: which one this is, who speaks and writes, and what they agree on."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["agreed", "connect", "is_first", "neighbours", "place"]

T = TypeVar("T")


def place() -> tuple[int, int]:
    """Which of how many processes this is: rank and world size of torch.distributed, (0, 1) without it."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def neighbours() -> tuple[int, int]:
    """Which of how many processes this is that a launcher such as torchrun started together on this machine.

    Told from the environment, so it is known before they are connected; (0, 1) for a process of its own, and for those
    that Lightning starts from a script: they come when the first one has done what leads up to training.

    Example:
        >>> neighbours()
        (0, 1)
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["LOCAL_WORLD_SIZE"])


def is_first() -> bool:
    """Whether this is the process that speaks to people and writes files; known before processes are connected.

    Example:
        >>> is_first()
        True
    """
    rank, world = place()
    if world > 1:
        return rank == 0
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))


def agreed(value: T) -> T:
    """What the first process says; without others the value itself.

    All processes must come here: those that wait for one that does not, wait for ever.

    Example:
        >>> agreed(0.5)
        0.5
    """
    if place()[1] == 1:
        return value
    from torch import distributed

    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def connect(device: torch.device) -> None:
    """Connect the processes that torchrun started; nothing is done where there are none, or they are connected.

    Lightning would do so as well, but only when it trains, and what leads up to that must be agreed on before.
    """
    from torch import cuda, distributed

    if "LOCAL_WORLD_SIZE" not in os.environ or distributed.is_initialized():
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        cuda.set_device(neighbours()[0])
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    atexit.register(distributed.destroy_process_group)
