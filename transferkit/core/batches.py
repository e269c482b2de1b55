"""Which images form which step: a pure function of seed and epoch, for one process or several."""

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
    """The steps of one epoch.

    Each image occurs once, over all processes together. All of them take the same number of steps, without padding:
    each step deals `world * batch_size` images out, and what the processes get differs by one at most. Together they
    see what one process with `world * batch_size` images a step would see.

    Batch normalisation cannot train on one image: a last step that would leave a process with one joins the step
    before, unless `batch_size` is 1.

    Args:
        n: Images, >= 1.
        batch_size: Images per step and process, >= 1.
        seed, epoch: The order is a function of them.
        shuffle: False keeps the order, epoch by epoch.
        drop_last: Leave out a last step that is not full, unless it is the only one.
        balanced: Every class makes up the same share of the n images that are gone through. Images of small classes
            repeat, those of large ones wait for a later epoch; within its class none repeats before all have been used.
        labels: (n,) int; for `balanced`.
        rank, world: Which of how many processes this is.

    Returns:
        Positions in [0, n), one array a step.

    Raises:
        OptionError: The numbers do not fit together.

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
    """Images in a step with which every process has enough."""
    return world * min(batch_size, 2)


def _check(n: int, batch_size: int, rank: int, world: int, labels: npt.NDArray[np.int64] | None) -> None:
    if batch_size < 1:
        raise OptionError(f"batch_size must be >= 1, got {batch_size!r}.")
    if not 0 <= rank < world:
        raise OptionError(f"rank must be in [0, world), got {rank!r} of {world!r}.")
    if n < 1:
        raise OptionError("There are no images to make batches of.")
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
    """n positions, as many of each class to within one; the classes take turns at the odd ones."""
    classes = np.unique(labels)
    share, odd = divmod(len(labels), len(classes))

    def used(place: int, epochs: int) -> int:
        """Images that a class has gone through in so many epochs: its shares, and the odd ones dealt in a circle."""
        return epochs * share + max(0, -((place - epochs * odd) // len(classes)))

    parts = [
        _stream(np.flatnonzero(labels == label), used(place, epoch), used(place, epoch + 1), seed, int(label))
        for place, label in enumerate(classes)
    ]
    return _permuted(np.concatenate(parts), seed, "order", epoch)


def _stream(members: Positions, start: int, stop: int, seed: int, label: int) -> Positions:
    """Elements start to stop of an endless row of permutations of a class's images."""
    first, last = start // len(members), -(-stop // len(members))
    rows = [_permuted(members, seed, "class", label, number) for number in range(first, last)]
    offset = first * len(members)
    return np.concatenate([*rows, members[:0]])[start - offset : stop - offset]
