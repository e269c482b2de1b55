"""Batches of cached activations for a fine-tuning run whose first stages stay frozen: they are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import CacheError
from transferkit.core.timing import timed
from transferkit.features import ActivationTable, activation_bytes, cache_activations
from transferkit.nn import Backbone, CutError, Tail, TransferModel, cut
from transferkit.options import Recipe
from transferkit.strategies import Plan
from transferkit.workflow.picture_feed import PictureFeed
from transferkit.workflow.session import Session
from transferkit.workflow.training_images import TrainingImages

if TYPE_CHECKING:
    from transferkit.finetune import CutBatch

__all__ = ["ActivationFeed", "cache_frozen_stages", "find_tail"]


class ActivationFeed:
    """Batches of activations, as a `Feed` for `FineTuneTask`.

    Args:
        tail: The part of the backbone behind the frozen stages.
        table: Rows of the N images themselves, then those of one augmented version after the other.
        images: Those that are trained on.
        versions: Augmented versions of each image.
        seed: Of the order, and of which version an epoch shows.
    """

    def __init__(self, tail: Tail, table: ActivationTable, images: TrainingImages, *, versions: int, seed: int) -> None:
        self.tail = tail
        self.table = table
        self._images = images
        self._versions = versions
        self._seed = seed

    def __call__(self, positions: npt.NDArray[np.int64], *, batch_size: int, training: bool) -> Iterable[Any]:
        """Batches of the images at these positions; shuffled, and of augmented versions, in training."""
        from transferkit.finetune import CutFeed

        return CutFeed(
            self._batch,
            positions,
            torch.from_numpy(self._images.targets[positions]),
            batch_size=batch_size,
            views=self._versions,
            seed=self._seed,
            training=training,
        )

    def _batch(self, version: int, chosen: npt.NDArray[np.int64]) -> CutBatch:
        from transferkit.finetune import CutBatch

        return CutBatch(*self.table.batch(version * len(self._images) + chosen))


def cache_frozen_stages(
    session: Session, plan: Plan, images: TrainingImages, pictures: PictureFeed, notes: list[str]
) -> ActivationFeed | None:
    """What the frozen stages make of all versions of the images; None where that is impossible or not worth its disk.

    Args:
        session: Backbone, images and bank.
        plan: With the phases that are trained.
        images: Those that are trained on.
        pictures: The versions of them.
        notes: Gets a sentence about what was cached, or why nothing was.
    """
    tail = find_tail(
        session.backbone,
        plan,
        images.recipe,
        augments=pictures.augmentation.changes,
        classes=session.data.summary.classes,
        pooling=session.options.pooling,
        notes=notes,
    )
    if tail is None:
        return None
    recipe = images.recipe
    versions = min(recipe.views, recipe.epochs or 1) if pictures.augmentation.changes else 0
    before = [stage for stage in plan.stages if stage in tail.stages_before]
    try:
        with timed(session.seconds, "cache activations"):
            table = _activations(session, tail, pictures, len(images), versions=versions, stages=before)
    except CacheError as error:
        notes.append(f"Nothing was cached: {error}")
        return None
    size = activation_bytes(tail, len(table), stages=before, pooling=session.options.pooling)
    shown = f" and {versions} augmented versions of each" if versions else ""
    notes.append(
        f"The stages up to {tail.stage!r} stay frozen, so their activations were computed once: "
        f"{len(images):,} images{shown}, {size / 2**20:,.0f} MB."
    )
    return ActivationFeed(tail, table, images, versions=versions, seed=session.options.seed)


def find_tail(
    backbone: Backbone,
    plan: Plan,
    recipe: Recipe,
    *,
    augments: bool,
    classes: Sequence[str],
    pooling: str,
    notes: list[str],
) -> Tail | None:
    """The part behind the frozen stages, if it can be cut off and caching saves something.

    Args:
        backbone, plan, recipe: What is trained, and how.
        augments: Whether images are augmented.
        classes, pooling: Of the head.
        notes: Gets a sentence about why nothing can be cached.
    """
    from transferkit.finetune import FreezePlan

    mixed = recipe.mixup > 0 or recipe.cutmix > 0
    if recipe.start_size < 1:
        notes.append(f"Nothing was cached: pictures grow in training (start_size={recipe.start_size:g}).")
        return None
    if plan.adapters is not None or mixed or (augments and not recipe.views):
        return None
    shape = backbone.spec.preprocessing.shape
    if shape is not None and shape[0] != shape[1]:
        notes.append("Nothing was cached: that needs square images.")
        return None
    model = TransferModel(backbone, stages=plan.stages, pooling=pooling, classes=classes)
    stage = FreezePlan(model, plan.phases).cut
    if stage is None:
        return None
    try:
        tail = cut(backbone, stage)
    except CutError as error:
        notes.append(f"Nothing was cached: {error}")
        return None
    if tail.stores_less:
        return tail
    notes.append(
        f"Nothing was cached: behind {stage!r} there is more to store than in the picture, and little is saved."
    )
    return None


def _activations(
    session: Session, tail: Tail, pictures: PictureFeed, images: int, *, versions: int, stages: list[str]
) -> ActivationTable:
    ids = np.concatenate([pictures.version_ids(version) for version in range(1 + versions)])
    return cache_activations(
        tail,
        lambda row: pictures.version(row % images, row // images).numpy(),
        ids,
        bank=session.bank,
        stages=stages,
        pooling=session.options.pooling,
        device=session.options.device,
        one_reader=not session.data.thread_safe,
        progress=session.options.progress,
    )
