"""The batches of an epoch, as a pure function of seed and epoch, for one process or several."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.core.random import draw_seed

__all__ = ["batches"]

Positions = npt.NDArray[np.int64]


def batches(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    balanced: bool = False,
    labels: npt.NDArray[np.int64] | None = None,
    rank: int = 0,
    world: int = 1,
) -> list[Positions]:
    """Batches of one epoch for one process.

    Each image occurs once, over all processes together. All processes take the same number of steps, without padding:
    each step distributes `world * batch_size` images, and process batch sizes differ by at most one. Together the
    processes see the same batches as one process with batch size `world * batch_size`.

    Batch normalisation cannot train on one image: a last step that would leave a process with one image is merged
    into the step before, unless `batch_size` is 1.

    Args:
        n: Images, >= 1.
        batch_size: Images per step and process, >= 1.
        seed, epoch: They alone determine the order.
        shuffle: False uses the images in the given order in every epoch.
        drop_last: Drop a last step that is not full, unless it is the only one.
        balanced: Every class makes up the same share of the epoch's n images. Images of small classes repeat, some
            of large classes wait for a later epoch; within a class no image repeats before all have been used.
        labels: (n,) int; for `balanced`.
        rank, world: Rank of this process and number of processes.

    Returns:
        Positions in [0, n), one array per step.

    Raises:
        OptionError: A number is out of range, the images are too few for `world` processes, or labels are missing.

    Example:
        >>> [step.tolist() for step in batches(5, 2, seed=0, epoch=0, shuffle=False)]
        [[0, 1], [2, 3, 4]]
        >>> [step.tolist() for step in batches(9, 2, seed=0, epoch=0, shuffle=False, rank=1, world=2)]
        [[1, 3], [5, 7]]
    """
    _check(n, batch_size, rank, world, labels if balanced else np.empty(n, dtype=np.int64))
    if balanced and labels is not None:
        order = _balanced(labels, seed, epoch)
    else:
        order = _permuted(np.arange(n), seed, "order", epoch) if shuffle else np.arange(n)
    return [step[rank::world] for step in _cut(order, batch_size * world, _least(batch_size, world), drop_last)]


def _least(batch_size: int, world: int) -> int:
    """Smallest number of images in a step that every process can train on."""
    return world * min(batch_size, 2)


def _check(n: int, batch_size: int, rank: int, world: int, labels: npt.NDArray[np.int64] | None) -> None:
    if batch_size < 1:
        raise OptionError(f"batch_size must be >= 1, got {batch_size!r}.")
    if not 0 <= rank < world:
        raise OptionError(f"rank must be in [0, world), got {rank!r} of {world!r}.")
    if n < 1:
        raise OptionError("Batches need at least 1 image, got none.")
    if world > 1 and n < _least(batch_size, world):
        raise OptionError(f"{n} images are too few for {world} processes; use {max(1, n // 2)} or fewer.")
    if labels is None or len(labels) != n:
        raise OptionError(f"balanced=True needs {n} labels, got {'none' if labels is None else len(labels)}.")


def _cut(order: Positions, size: int, least: int, drop_last: bool) -> list[Positions]:
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    if len(steps) > 1 and len(steps[-1]) < size and drop_last:
        return steps[:-1]
    if len(steps) > 1 and len(steps[-1]) < least:
        return [*steps[:-2], np.concatenate(steps[-2:])]
    return steps


def _permuted(positions: Positions, *where: int | str) -> Positions:
    return np.random.default_rng(draw_seed(*where)).permutation(positions)


def _balanced(labels: npt.NDArray[np.int64], seed: int, epoch: int) -> Positions:
    """n positions with equal class counts to within one; which classes get one more rotates from epoch to epoch."""
    classes = np.unique(labels)
    share, odd = divmod(len(labels), len(classes))

    def used(index: int, epochs: int) -> int:
        """Images that a class has used after `epochs` epochs: its shares, and the odd ones assigned round robin."""
        return epochs * share + max(0, -((index - epochs * odd) // len(classes)))

    parts = [
        _stream(np.flatnonzero(labels == label), used(index, epoch), used(index, epoch + 1), seed, int(label))
        for index, label in enumerate(classes)
    ]
    return _permuted(np.concatenate(parts), seed, "order", epoch)


def _stream(members: Positions, start: int, stop: int, seed: int, label: int) -> Positions:
    """Elements start to stop of an endless sequence of permutations of a class's images."""
    first, last = start // len(members), -(-stop // len(members))
    rows = [_permuted(members, seed, "class", label, number) for number in range(first, last)]
    offset = first * len(members)
    return np.concatenate([*rows, members[:0]])[start - offset : stop - offset]
