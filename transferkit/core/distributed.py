"""Distributed training: rank and world size, which process prints and writes, and broadcasting its decisions."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, TypeVar

from transferkit.core.errors import OptionError

if TYPE_CHECKING:
    import torch

__all__ = [
    "broadcast",
    "connect",
    "is_first",
    "launched_rank_and_world_size",
    "local_rank_and_world_size",
    "rank_and_world_size",
]

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size of torch.distributed; (0, 1) if it is not initialised."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def local_rank_and_world_size() -> tuple[int, int]:
    """Rank and number of processes that a launcher such as torchrun started on this machine.

    Read from the environment, so it is known before the processes are connected. (0, 1) for a single process, and for
    processes that Lightning starts from a script: Lightning starts them only when training begins.

    Example:
        >>> local_rank_and_world_size()
        (0, 1)
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["LOCAL_WORLD_SIZE"])


def launched_rank_and_world_size() -> tuple[int, int]:
    """Rank and number of processes on all machines, as torchrun sets them or a person does: RANK and WORLD_SIZE.

    (0, 1) where neither is set. Nothing is connected: for work that is divided but needs no messages.

    Raises:
        OptionError: One of the two is missing, they are no numbers, or the rank is not in [0, WORLD_SIZE).

    Example:
        >>> launched_rank_and_world_size()
        (0, 1)
    """
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world is None:
        return 0, 1
    if rank is None or world is None or not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise OptionError(
            "The environment variables RANK and WORLD_SIZE divide work among processes and belong together: expected "
            f"RANK in [0, WORLD_SIZE), got RANK={rank or ''} and WORLD_SIZE={world or ''}."
        )
    return int(rank), int(world)


def is_first() -> bool:
    """Whether this is the process that prints and writes files; known before processes are connected.

    Example:
        >>> is_first()
        True
    """
    rank, world = rank_and_world_size()
    if world > 1:
        return rank == 0
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))


def broadcast(value: T) -> T:
    """The value of rank 0; with a single process, `value` itself.

    Every process must call this: if one does not, the others wait for ever.

    Example:
        >>> broadcast(0.5)
        0.5
    """
    if rank_and_world_size()[1] == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def connect(device: torch.device) -> None:
    """Initialise torch.distributed for the processes that torchrun started; does nothing otherwise, or if it is done.

    Lightning does so too, but only when training starts; the decisions before that must be the same in all processes.
    """
    from torch import cuda, distributed

    if "LOCAL_WORLD_SIZE" not in os.environ or distributed.is_initialized():
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        cuda.set_device(local_rank_and_world_size()[0])
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    atexit.register(distributed.destroy_process_group)
