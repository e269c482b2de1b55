"""Batches of pictures and targets for any training loop: a dataset, a batch sampler and their loader.

Workers have no state: the sampler sends the epoch with every batch, so they can be reused in all epochs.
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
"""When the network trains on the CPU: a step takes at least ten times as long as augmenting its pictures."""

Batch = tuple[torch.Tensor, torch.Tensor]


class BatchKey(NamedTuple):
    """Identifies a batch.

    Args:
        epoch: Of the run.
        number: Of the batch within the epoch, over all processes.
        positions: Positions of its images.
    """

    epoch: int
    number: int
    positions: npt.NDArray[np.int64]


class Pictures(Dataset[Batch]):
    """Dataset of pictures and targets that is indexed by batch.

    Args:
        store: The n pictures, preprocessed as `augmentation.stored`.
        targets: (n,) int classes, (n, K) labels, or (n,) or (n, R) numbers.
        augmentation: Random augmentation; None for none.
        mixing: Mixup or cutmix within a batch; None for none.
        seed: All randomness is a function of it, the epoch and the image.

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
            raise OptionError(f"Expected one target per picture, got {len(targets)} targets for {len(store)} pictures.")
        floating = np.issubdtype(targets.dtype, np.floating)
        self.store = store
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32 if floating else np.int64))
        self.augmentation = augmentation
        self.mixing = mixing
        self.seed = seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: BatchKey | int) -> Batch:
        """A batch by its key; for an int, one picture with its target, without augmentation.

        Returns:
            (n, 3, S, S) uint8, or float32 if already normalised, and (n, ...) targets.
        """
        if not isinstance(key, BatchKey):
            return self._plain(int(key)), self.targets[int(key)]
        positions = key.positions.tolist()
        pictures = torch.stack([self._augmented(position, key.epoch) for position in positions])
        targets = self.targets[positions]
        if not self.mixing:
            return pictures, targets
        return self.mixing(pictures, targets, draw_seed(self.seed, "mix", key.epoch, key.number))

    def _plain(self, position: int) -> torch.Tensor:
        picture = self.store[position]
        return picture if self.augmentation is None else self.augmentation.plain(picture)

    def _augmented(self, position: int, epoch: int) -> torch.Tensor:
        if self.augmentation is None:
            return self.store[position]
        return self.augmentation(self.store[position], draw_seed(self.seed, "picture", epoch, position))


class EpochSampler(DistributedSampler[Any]):
    """Sampler of an epoch's batch keys (see `batches`). Lightning calls `set_epoch`; your own loop must.

    A `DistributedSampler`, so that Lightning does not replace it: it handles distributed training itself.

    Args:
        n: Number of images.
        batch_size: Per step and process.
        seed: Determines the order, together with the epoch.
        shuffle, drop_last, balanced, labels: As for `batches`.
        distributed: Whether the images are divided among the processes of torch.distributed. Evaluate with False: every
            process then evaluates all images, so metrics are exact.
        among: (n,) int, positions of the n images in the dataset; None takes the first n.
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
        # Not super().__init__: it requires torch.distributed to be initialised.
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0
        self.shuffle, self.drop_last, self.balanced, self.labels = shuffle, drop_last, balanced, labels
        self.distributed, self.among = distributed, np.arange(n) if among is None else among
        batches(n, batch_size, seed=seed, epoch=0, balanced=balanced, labels=labels)  # raises on invalid arguments

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchKey]:
        rank, world = rank_and_world_size() if self.distributed else (0, 1)
        epoch = self.epoch  # fixed for this pass: a loader prefetches, and set_epoch may be called meanwhile
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
    """A DataLoader that yields the sampler's batches.

    Args:
        pictures: The dataset.
        sampler: The batches of each epoch.
        workers: Worker processes that prefetch batches and persist between epochs; 0: the training process itself,
            which is as fast when training on a few CPU cores. None: one per core with a GPU, else one per
            `CORES_PER_WORKER` cores; at most `MAX_WORKERS`. Always 0 if pictures are read from a dataset that may hold
            an open file.
    """
    count = _default_workers() if workers is None else workers
    count = count if pictures.store.shareable else 0
    return DataLoader(
        pictures,
        batch_size=None,  # a key identifies a whole batch
        sampler=sampler,
        num_workers=count,
        persistent_workers=count > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws its workers' seeds from the global generator
    )


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, cores if torch.cuda.is_available() else cores // CORES_PER_WORKER)
