"""Pictures and targets, batch by batch, for any training loop: a dataset, a sampler and the loader of the two.

Workers keep no state: the sampler sends them the epoch with every batch, so they may live through all epochs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from transferkit.core.batches import batches
from transferkit.core.distributed import rank_and_world_size
from transferkit.core.errors import OptionError
from transferkit.core.random import draw_seed
from transferkit.data.augmentation import Augmentation
from transferkit.data.mixing import Mixing
from transferkit.data.pixels import PixelStore

__all__ = ["BatchKey", "EpochSampler", "Pictures", "make_loader"]

MAX_WORKERS = 8
CORES_PER_WORKER = 4
"""Where the network trains on the CPU: a step takes ten times what its pictures take to augment, or more."""

Batch = tuple[torch.Tensor, torch.Tensor]


class BatchKey(NamedTuple):
    """What a batch is made from.

    Args:
        epoch: Of the run.
        number: Of the batch within the epoch, over all processes.
        positions: Which images.
    """

    epoch: int
    number: int
    positions: npt.NDArray[np.int64]


class Pictures(Dataset[Batch]):
    """Pictures with their targets, by batch.

    Args:
        store: The pictures, n of them, prepared as `augmentation.stored` says.
        targets: (n,) int classes, (n, K) labels, or (n,) or (n, R) numbers.
        augmentation: What may change in them; None changes nothing.
        mixing: How they are mixed within a batch; None leaves them apart.
        seed: Every draw is a function of it, the epoch and the image.

    Example:
        >>> from transferkit.data import open_data
        >>> from transferkit.records import Preprocessing
        >>> data = open_data("builtin/digits")
        >>> wants = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.8)
        >>> light, train = Augmentation(preset="light", preprocessing=wants), data.indices("train")
        >>> pictures = Pictures(PixelStore(data, train, light.stored), data.labels[train], augmentation=light)
        >>> loader = make_loader(pictures, EpochSampler(len(pictures), 32))
        >>> images, labels = next(iter(loader))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([32, 3, 16, 16]), torch.uint8, torch.Size([32]))
    """

    def __init__(
        self,
        store: PixelStore,
        targets: npt.NDArray[Any],
        *,
        augmentation: Augmentation | None = None,
        mixing: Mixing | None = None,
        seed: int = 0,
    ) -> None:
        if len(store) != len(targets):
            raise OptionError(f"Every picture needs a target: {len(store)} pictures, {len(targets)} targets.")
        floating = np.issubdtype(targets.dtype, np.floating)
        self.store = store
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32 if floating else np.int64))
        self.augmentation = augmentation
        self.mixing = mixing
        self.seed = seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: BatchKey | int) -> Batch:
        """A batch by its key; by a position, one picture with its target, nothing drawn.

        Returns:
            (n, 3, S, S) uint8, or float32 that is normalised already, and (n, ...) targets.
        """
        if not isinstance(key, BatchKey):
            return self._plain(int(key)), self.targets[int(key)]
        positions = key.positions.tolist()
        pictures = torch.stack([self._drawn(position, key.epoch) for position in positions])
        targets = self.targets[positions]
        if not self.mixing:
            return pictures, targets
        return self.mixing(pictures, targets, draw_seed(self.seed, "mix", key.epoch, key.number))

    def _plain(self, position: int) -> torch.Tensor:
        picture = self.store[position]
        return picture if self.augmentation is None else self.augmentation.plain(picture)

    def _drawn(self, position: int, epoch: int) -> torch.Tensor:
        if self.augmentation is None:
            return self.store[position]
        return self.augmentation(self.store[position], draw_seed(self.seed, "picture", epoch, position))


class EpochSampler(DistributedSampler[Any]):
    """The keys of an epoch's batches (see `batches`). Lightning calls `set_epoch`; in a loop of your own you do.

    It is a `DistributedSampler` so that Lightning does not put its own in its place: this one knows the processes too.

    Args:
        n: Images.
        batch_size: Per step and process.
        seed: The order is a function of it and the epoch.
        shuffle, drop_last, balanced, labels: As for `batches`.
        distributed: Whether the images are shared out among the processes of torch.distributed. Evaluate with False:
            every process then sees all images, and what they say is exact.
        among: (n,) int, which of the dataset's pictures the n images are; None takes the first n.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        balanced: bool = False,
        labels: npt.NDArray[np.int64] | None = None,
        distributed: bool = True,
        among: npt.NDArray[np.int64] | None = None,
    ) -> None:
        # Not super().__init__: it would want the processes to be there already.
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0
        self.shuffle, self.drop_last, self.balanced, self.labels = shuffle, drop_last, balanced, labels
        self.distributed, self.among = distributed, np.arange(n) if among is None else among
        batches(n, batch_size, seed=seed, epoch=0, balanced=balanced, labels=labels)  # wrong numbers are met here

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass belongs to."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchKey]:
        rank, world = rank_and_world_size() if self.distributed else (0, 1)
        epoch = self.epoch  # a loader reads ahead: what it has begun stays of one epoch
        for number, positions in enumerate(self._steps(epoch, rank, world)):
            yield BatchKey(epoch, number * world + rank, self.among[positions])

    def __len__(self) -> int:
        return len(self._steps(0, *(rank_and_world_size() if self.distributed else (0, 1))))

    def _steps(self, epoch: int, rank: int, world: int) -> list[npt.NDArray[np.int64]]:
        return batches(
            self.n,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            balanced=self.balanced,
            labels=self.labels,
            rank=rank,
            world=world,
        )


def make_loader(pictures: Pictures, sampler: EpochSampler, *, workers: int | None = 0) -> DataLoader[Batch]:
    """A plain DataLoader of the two; its batches are those of `pictures`.

    Args:
        pictures: The dataset.
        sampler: What tells the batches.
        workers: Processes that prepare batches ahead and stay between epochs; 0: the training process itself, which is
            as good where the network trains on a few CPU cores. None: one per core for a GPU, else one per
            `CORES_PER_WORKER`; `MAX_WORKERS` at most. None at all where a dataset is read each time that may hold an
            open file.
    """
    count = _fitting_workers() if workers is None else workers
    count = count if pictures.store.shareable else 0
    return DataLoader(
        pictures,
        batch_size=None,  # a key stands for a whole batch
        sampler=sampler,
        num_workers=count,
        persistent_workers=count > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else a loader draws its workers' seeds from the global one
    )


def _fitting_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, cores if torch.cuda.is_available() else cores // CORES_PER_WORKER)
