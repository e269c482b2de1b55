"""Batches of cached activations, in an order that is a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.batches import batches
from transferkit.core.distributed import rank_and_world_size
from transferkit.finetune.cut_batch import CutBatch

__all__ = ["CutFeed"]

Indices = npt.NDArray[np.int64]


class CutFeed:
    """Iterable of (`CutBatch`, targets); each iteration is one epoch.

    Args:
        read: (version, positions) -> their batch; version 0 is the original picture, others are augmented.
        views: Number of augmented versions. An image cycles through them by epoch, out of step with its neighbours;
            without any, the original is used in every epoch.
        positions: (n,) positions of the images.
        targets: (n, ...) their targets.
        batch_size: Images per step and process.
        seed: Of the order.
        training: Shuffled, augmented if there are versions, and divided among processes; else in order, original, and
            the same in all processes.
    """

    def __init__(
        self,
        read: Callable[[int, Indices], CutBatch],
        positions: Indices,
        targets: torch.Tensor,
        *,
        batch_size: int,
        views: int,
        seed: int,
        training: bool,
    ) -> None:
        self._read, self._positions, self._targets = read, positions, targets
        self._batch_size, self._views, self._seed, self._training = batch_size, views, seed, training
        self._epoch = 0
        self.sampler = self  # Lightning calls set_epoch on samplers
        self.batch_sampler = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self._epoch = epoch

    def _steps(self, epoch: int) -> list[Indices]:
        rank, world = rank_and_world_size() if self._training else (0, 1)
        return batches(
            len(self._positions),
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            shuffle=self._training,
            rank=rank,
            world=world,
        )

    def __len__(self) -> int:
        return len(self._steps(0))

    def __iter__(self) -> Iterator[tuple[CutBatch, torch.Tensor]]:
        epoch = self._epoch
        for rows in self._steps(epoch):
            positions = self._positions[rows]
            versions = 1 + (epoch + positions) % self._views if self._training and self._views else 0 * positions
            yield self._gather(versions, positions), self._targets[torch.from_numpy(rows)]

    def _gather(self, versions: Indices, positions: Indices) -> CutBatch:
        """The batch of each image in its version, in the order of `positions`."""
        order = np.argsort(versions, kind="stable")
        numbers, starts = np.unique(versions[order], return_index=True)
        parts = [
            self._read(int(number), positions[where])
            for number, where in zip(numbers, np.split(order, starts[1:]), strict=True)
        ]
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        return CutBatch(
            torch.cat([part.activation for part in parts])[back],
            {name: torch.cat([part.pooled[name] for part in parts])[back] for name in parts[0].pooled},
        )
