"""Labelled images as a LightningDataModule, for your own Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.data.augmentation import Augmentation, choose_preset
from transferkit.data.loading import Batch, EpochSampler, Pictures, make_loader
from transferkit.data.mirroring import choose_flip
from transferkit.data.mixing import Mixing
from transferkit.data.opened import Data, open_data
from transferkit.data.pixels import MEMORY_LIMIT, PixelStore
from transferkit.options import MAX_PIXELS
from transferkit.records import Preprocessing

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["TransferDataModule"]


class TransferDataModule(pl.LightningDataModule):
    """LightningDataModule for any source of labelled images: audited, split, and preprocessed for a checkpoint.

    Batches are (pictures, labels): (n, 3, S, S) uint8, to be normalised on the device (`TransferModel` does that), or
    float32 if already normalised; labels (n,) int64, with mixup or cutmix (n, K) float32. Several labels per image, or
    numbers, are (n, K) float32.

    Args:
        data: A folder, manifest, dataset, mapping of datasets, LightningDataModule or "builtin/digits", as for
            `transferkit.adapt`.
        preprocessing: The checkpoint's, e.g. `transferkit.load_backbone(...).spec.preprocessing`.
        batch_size: Images per step and process.
        augment: "auto" (by the number of images), "none", "light", "medium" or "strong".
        flip: Whether to flip training images horizontally. None: no, because it has not been measured to be safe.
        mixup, cutmix: Alpha of mixup and cutmix, >= 0; 0 is off.
        balanced: Whether every class makes up the same share of an epoch.
        drop_last: Whether to drop a last batch that is not full.
        val: Share of the training images to hold back if there is no validation split, in [0, 1).
        test: Share of the training images to hold back if there is no test split, in [0, 1); None: 0.2 if there are no
            splits at all, else none.
        seed: Determines the splits, the order and the augmentation.
        workers: Worker processes that prepare batches; None chooses by the machine.
        limit: Bytes of decoded pictures per split to keep in memory; larger splits use a temporary file.
        root, columns, task, labels, strict, preprocessed, max_pixels, cache: As for `transferkit.data.open_data`.
        progress: Whether to show progress bars on a terminal.

    Raises:
        OptionError: An argument has a value that cannot work.

    Example:
        >>> half = (0.5, 0.5, 0.5)
        >>> wants = Preprocessing(size=16, mean=half, std=half, interpolation="bilinear")
        >>> data = TransferDataModule("builtin/digits", preprocessing=wants, workers=0)
        >>> data.setup("fit")
        >>> pictures, labels = next(iter(data.train_dataloader()))
        >>> pictures.shape, labels.shape, len(data.classes)
        (torch.Size([32, 3, 16, 16]), torch.Size([32]), 10)
    """

    def __init__(
        self,
        data: Any,
        *,
        preprocessing: Preprocessing,
        batch_size: int = 32,
        augment: str = "auto",
        flip: bool | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        balanced: bool = False,
        drop_last: bool = False,
        val: float = 0.2,
        test: float | None = None,
        seed: int = 0,
        workers: int | None = None,
        limit: int = MEMORY_LIMIT,
        root: str | Path | None = None,
        columns: Mapping[str, Any] | None = None,
        task: str = "auto",
        labels: str | Path | None = None,
        strict: bool = False,
        preprocessed: bool = False,
        max_pixels: int = MAX_PIXELS,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise OptionError(f"batch_size must be >= 1, got {batch_size!r}.")
        choose_preset(augment, images=0)
        Mixing(classes=2, mixup=mixup, cutmix=cutmix)
        self._preprocessing = preprocessing.primary  # views are for features and predictions
        self.batch_size = batch_size
        self.augment, self.flip, self.mixup, self.cutmix = augment, flip, mixup, cutmix
        self.balanced, self.drop_last = balanced, drop_last
        self.seed, self.workers, self.limit, self.progress = seed, workers, limit, progress
        self._source = data
        self._options: dict[str, Any] = {
            "val": val,
            "test": test,
            "root": root,
            "columns": columns,
            "task": task,
            "labels": labels,
            "strict": strict,
            "preprocessed": preprocessed,
            "max_pixels": max_pixels,
            "cache": cache,
        }
        self._pictures: dict[str, Pictures] = {}

    @cached_property
    def data(self) -> Data:
        """The images, audited and split; opened on first access.

        Raises:
            DataError: They cannot be used.
        """
        if isinstance(self._source, Data):
            return self._source
        return open_data(self._source, seed=self.seed, progress=self.progress, **self._options)

    @property
    def preprocessing(self) -> Preprocessing:
        """The checkpoint's; once the images are open, adapted to them (`Data.adapt_preprocessing`)."""
        return self.data.adapt_preprocessing(self._preprocessing) if "data" in vars(self) else self._preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in label order."""
        return self.data.summary.classes

    @cached_property
    def augmentation(self) -> Augmentation:
        """Augmentation of training pictures."""
        preset = choose_preset(self.augment, images=len(self.data.indices("train")))
        return Augmentation(preset=preset, preprocessing=self.preprocessing, flip=choose_flip(self.flip))

    def setup(self, stage: str) -> None:
        """Decode the pictures for a stage ("fit", "validate", "test" or "predict"), unless decoded already."""
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        for split in wanted:
            if split not in self._pictures and len(self.data.indices(split)):
                self._pictures[split] = self._open(split)

    def _open(self, split: str) -> Pictures:
        indices, training = self.data.indices(split), split == "train"
        preprocessing = self.augmentation.stored if training else self.preprocessing
        return Pictures(
            PixelStore(self.data, indices, preprocessing, limit=self.limit, progress=self.progress),
            self._targets[indices],
            augmentation=self.augmentation if training else None,
            mixing=Mixing(classes=len(self.classes), mixup=self.mixup, cutmix=self.cutmix) if training else None,
            seed=self.seed,
        )

    @property
    def _targets(self) -> npt.NDArray[Any]:
        """(N,) classes; (N, T) float labels or numbers."""
        targets = self.data.targets
        return self.data.labels if targets is None else targets.values.astype(np.float32)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, shuffled and augmented differently every epoch; divided among processes."""
        pictures = self._pictures["train"]
        labels = self.data.labels[self.data.indices("train")]
        sampler = EpochSampler(
            len(pictures),
            self.batch_size,
            seed=self.seed,
            balanced=self.balanced,
            drop_last=self.drop_last,
            labels=labels,
        )
        return make_loader(pictures, sampler, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Validation batches in order, without augmentation; no loader if there are no validation images."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Test batches in order, without augmentation; no loader if there are no test images."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The same as `test_dataloader`."""
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        pictures = self._pictures.get(split)
        if pictures is None:
            return []
        sampler = EpochSampler(len(pictures), self.batch_size, shuffle=False, distributed=False)
        return make_loader(pictures, sampler, workers=self.workers)
