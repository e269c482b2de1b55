"""The training images of a run, opened again to be compared with new ones: features, labels, held-back scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, TransferkitError
from transferkit.data import Data
from transferkit.features import Engines, FeatureBank, FeatureTable
from transferkit.nn import Backbone, TransferModel
from transferkit.options import PassOptions, options_from
from transferkit.records import Folds, HeldBackScores, RunRecord
from transferkit.result import Result
from transferkit.result.evaluation import sketch
from transferkit.shift.shift_options import ShiftOptions
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import open_backbone, open_bank, open_images

__all__ = ["Reference", "Witness", "is_probe", "open_reference"]

OPENING = ("root", "columns", "labels", "max_pixels", "val", "test", "seed", "strict", "preprocessed", "pooling",
           "image_size", "checkpoint", "pretrained", "engine")  # fmt: skip
"""Settings of a run that its images and its backbone are opened with again."""

MOST = 5_000
"""Training images that are compared at most, a random sample of more."""


@dataclass(frozen=True)
class Witness:
    """A network that was not fitted to the training images, so that these are like new ones to it.

    Args:
        backbone: In the preprocessing of the run's model.
        pooling: Of its stages.
        bank, engines: Where its features are kept, and what computes them.
        batch_size, device: As for `analyze`.
    """

    backbone: Backbone
    pooling: str
    bank: FeatureBank
    engines: Engines
    batch_size: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Reference:
    """The M training images that a run has held-back scores of, or a sample of these.

    Args:
        data: All images of the run.
        indices: (M,) of them in the data.
        folds: Their labels and groups.
        scores: Of the run's model, each while it was held back.
        witness: Computes features; None where no network is at hand that has not been fitted to these images.
        table: Features of them by the witness; None without one.
        notes: What is missing, and why.
    """

    data: Data
    indices: npt.NDArray[np.int64]
    folds: Folds
    scores: HeldBackScores
    witness: Witness | None
    table: FeatureTable | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def proportions(self) -> npt.NDArray[np.float64]:
        """(K,) class proportions of the images, each class counted half an image more."""
        counts = np.bincount(self.scores.labels, minlength=self.scores.logits.shape[1]) + 0.5
        return np.asarray(counts / counts.sum())

    def independent(self) -> npt.NDArray[np.int64]:
        """Positions of one image of each group: images of one group are not exchangeable with images of others."""
        return np.sort(np.unique(self.folds.groups, return_index=True)[1])


def is_probe(record: RunRecord) -> bool:
    """Whether only a head was fitted: the backbone is as it was."""
    return record.training is None or record.training.kept.weight == 0


def open_reference(result: Result, options: ShiftOptions, *, data: Any = None) -> Reference:
    """Open a run's training images again; their features are read from the bank.

    Args:
        result: The run.
        options: Where the bank is, and on which device features are computed that it lacks.
        data: The run's images, where it does not name them by a path.

    Raises:
        DataError: The run names no images, they are others than it was trained on, or none was held back.
    """
    scores = result.held_back_scores
    if scores is None or not len(scores):
        raise DataError(
            "The run keeps no scores of held-back training images (held_back.safetensors), which new images are "
            "compared with. Run transferkit adapt again; every class needs 2 images."
        )
    settings = dict(result.record.settings)
    named = settings.get("data") if data is None else data
    if data is None and not isinstance(named, (str, Path)):
        raise DataError("The run does not name its images by a path. Pass them: shift(result, images, data=DATA).")
    passes = pass_options(settings, options)
    opened = open_images(named, passes)
    if sketch(opened) != result.record.trained_on:
        raise DataError(
            f"The images at {opened.summary.origin} are no longer those that the run was trained on. "
            "Restore them, or run transferkit adapt again."
        )
    pool = np.concatenate([opened.indices("train"), opened.indices("val")])
    if len(scores) > MOST:
        scores = scores.take(np.sort(np.random.default_rng(options.seed).permutation(len(scores))[:MOST]))
    indices = pool[scores.rows]
    witness, notes = _open_witness(result, settings, passes)
    table = None
    if witness is not None:
        table = read_features(
            witness.backbone,
            opened,
            bank=witness.bank,
            pooling=witness.pooling,
            device=options.device,
            batch_size=options.batch_size,
            engines=witness.engines,
            among=indices,
            progress=options.progress,
        ).table
    return Reference(opened, indices, opened.folds.take(indices), scores, witness, table, notes)


def pass_options(settings: Mapping[str, Any], options: ShiftOptions) -> PassOptions:
    """The options that a run opened its images with; device, bank and progress are the caller's."""
    own = {name: settings[name] for name in OPENING if settings.get(name) is not None}
    more = {name: getattr(options, name) for name in ("device", "cache", "batch_size", "progress")}
    return options_from(PassOptions, {**own, **more})


def _open_witness(
    result: Result, settings: Mapping[str, Any], options: PassOptions
) -> tuple[Witness | None, tuple[str, ...]]:
    bank = open_bank(options)
    engines = Engines(options.engine, folder=bank.folder)
    if is_probe(result.record) and isinstance(result.model, TransferModel):
        backbone = result.model.backbone
    else:
        named = settings.get("model")
        if not isinstance(named, str):
            return None, (
                "Stages were not tested: the network was fine-tuned from a module of your own, and its own features of "
                "its training images differ from those of new images by training alone.",
            )
        size = result.preprocessing.size
        try:
            backbone = open_backbone(named, replace(options, image_size=size))
        except TransferkitError as error:
            return None, (f"Stages were not tested: the backbone before fine-tuning cannot be opened ({error}).",)
    backbone = backbone.with_preprocessing(result.preprocessing)
    return Witness(backbone, options.pooling, bank, engines, options.batch_size, str(options.device)), ()
