"""Batches of augmented pictures for a fine-tuning run: decoded once, augmented as a function of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.random import draw_seed
from transferkit.core.serialization import to_json
from transferkit.data.augmentation import Augmentation, choose_preset
from transferkit.data.loading import EpochSampler, Pictures, make_loader
from transferkit.data.mixing import Mixing
from transferkit.data.pixels import PixelStore
from transferkit.features import choose_device
from transferkit.workflow.flip_check import check_flip
from transferkit.workflow.session import Session
from transferkit.workflow.training_images import TrainingImages

__all__ = ["PictureFeed", "choose_augmentation"]


def choose_augmentation(session: Session, images: TrainingImages, notes: list[str]) -> Augmentation:
    """How the images are augmented: by the recipe, their number, and whether mirroring confuses classes.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        images: Those that are trained on.
        notes: Gets a sentence if mirroring was tested.
    """
    recipe = images.recipe
    preset = choose_preset(recipe.augment, images=len(images), epochs=recipe.epochs)
    if session.data.summary.task == "regression" and recipe.augment == "auto":
        preset = "none"  # a crop changes where things are, how large and how many; only a person can tell
        notes.append("Images are not augmented: a crop may change a number. train.augment=light crops them.")
    preprocessing = session.backbone.spec.preprocessing.primary
    if recipe.flip is not None or preset == "none":
        return Augmentation(preset=preset, preprocessing=preprocessing, flip=bool(recipe.flip))
    mirrored = replace(preprocessing, mirrored=True)
    check = check_flip(
        session.measured.primary_features(images.rows),
        images.known,
        lambda positions: session.run_features(images.rows[positions], preprocessing=mirrored),
        classes=session.data.summary.num_classes,
        folds=images.folds[:1],
        seed=session.options.seed,
    )
    notes.append(f"Images {'are' if check.safe else 'are not'} mirrored in training: {check}.")
    return Augmentation(preset=preset, preprocessing=preprocessing, flip=check.safe)


class PictureFeed:
    """Batches of the training images, as a `Feed` for `FineTuneTask`; nothing is decoded before the first is needed.

    Args:
        session: Whose images they are.
        images: Which of them.
        augmentation: How training shows them.
    """

    def __init__(self, session: Session, images: TrainingImages, augmentation: Augmentation) -> None:
        self.augmentation = augmentation
        self._session = session
        self._images = images
        self._seed = session.options.seed

    @cached_property
    def _store(self) -> PixelStore:
        progress = self._session.options.progress
        return PixelStore(self._session.data, self._images.rows, self.augmentation.stored, progress=progress)

    @cached_property
    def _pictures(self) -> dict[bool, Pictures]:
        """Whether they are for training -> the pictures."""
        recipe, labels = self._images.recipe, self._images.targets
        mixing = Mixing(classes=self._session.data.summary.num_classes, mixup=recipe.mixup, cutmix=recipe.cutmix)
        return {
            True: Pictures(self._store, labels, augmentation=self.augmentation, mixing=mixing, seed=self._seed),
            False: Pictures(self._store, labels, augmentation=self.augmentation.still),
        }

    def __call__(self, positions: npt.NDArray[np.int64], *, batch_size: int, training: bool) -> Iterable[Any]:
        """Batches of the images at these positions; shuffled and augmented in training."""
        sampler = EpochSampler(
            len(positions),
            batch_size,
            seed=self._seed,
            shuffle=training,
            distributed=training,
            among=positions,
        )
        on_cpu = choose_device(self._session.options.device).type == "cpu"
        return make_loader(self._pictures[training], sampler, workers=0 if on_cpu else None)

    def version(self, position: int, number: int) -> torch.Tensor:
        """One image as version `number` shows it: 0 unchanged, then one augmented version after the other."""
        picture = self._store[position]
        if not number:
            return self.augmentation.plain(picture)
        return self.augmentation(picture, draw_seed(self._seed, "version", number, position))

    def version_ids(self, number: int) -> npt.NDArray[np.bytes_]:
        """(N,) content digests of what `version` returns for each position."""
        ids = self._session.data.content_ids[self._images.rows]
        if not number:
            return ids
        drawn = f"{to_json(self.augmentation)}|{self._seed}|{number}".encode()
        named = [
            hashlib.blake2b(drawn + bytes(content) + str(position).encode(), digest_size=16).hexdigest()
            for position, content in enumerate(ids)
        ]
        return np.array(named, dtype="S32")
