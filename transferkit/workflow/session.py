"""A backbone and images, opened and measured in one frozen pass: the first step of every verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit import zoo
from transferkit.core.errors import OptionError
from transferkit.core.limits import check_image_size
from transferkit.core.random import seed_everything
from transferkit.core.timing import timed
from transferkit.data import Data, open_data
from transferkit.data.inventory import Inspect
from transferkit.features import Engines, FeatureBank, FeatureTable
from transferkit.features.bank import DEFAULT_LIMIT
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.records import Finding, Preprocessing
from transferkit.workflow.measure import Measurement, measure_features, read_features
from transferkit.workflow.views import ask_views

__all__ = [
    "Session",
    "load_backbone",
    "open_backbone",
    "open_bank",
    "open_images",
    "open_session",
    "refuse_targets",
]


def load_backbone(
    model: str | nn.Module,
    *,
    image_size: int | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Backbone:
    """A pretrained network as ordered stages.

    Args:
        model: "timm/<name>[.<tag>]", "torchvision/<name>[:<weights>]", "packaged/<name>", or an `nn.Module`.
        image_size: Side of the input in pixels; None takes the checkpoint's own.
        checkpoint: A weights file for that architecture, or the folder of a finished run, instead of the published
            weights. Its classifier may have any number of classes, or be missing.
        pretrained: False gives random weights, and says so in the spec.
        preprocessing: Needed for a module of your own: how its images were prepared.

    Raises:
        BackboneError: If there is no such model, or it cannot serve as a backbone.
        HubError: If its weights cannot be fetched.
        CheckpointError: If the weights file does not fit.
    """
    check_image_size(image_size)
    network, spec = zoo.load(model, checkpoint=checkpoint, pretrained=pretrained, preprocessing=preprocessing)
    backbone = Backbone(network, spec, size=image_size)
    # Without a classifier in the file, the one that the architecture comes with is random.
    return backbone.without_head() if checkpoint is not None and not spec.num_classes else backbone


@dataclass(kw_only=True)
class Session:
    """An opened backbone, the images, and what the frozen pass measured.

    Args:
        backbone, data: As they were opened.
        measured: What the frozen pass measured.
        options: How they were opened.
        bank: Where features are kept: one bank per run, which holds the shelves that the run uses.
        engines: What computes features.
        seconds: Phase -> wall-clock seconds so far; later steps add theirs.
    """

    backbone: Backbone
    data: Data
    measured: Measurement
    options: PassOptions
    bank: FeatureBank
    engines: Engines = field(default_factory=Engines)
    seconds: dict[str, float] = field(default_factory=dict)

    def run_features(
        self, indices: npt.NDArray[np.int64], *, preprocessing: Preprocessing | None = None, progress: bool = False
    ) -> FeatureTable:
        """Features of these images from a frozen pass, which runs those that the bank does not have.

        Args:
            indices: Of the images in the data.
            preprocessing: Other preprocessing than the backbone's; None takes that.
            progress: Show a progress bar.
        """
        options = self.options
        return read_features(
            self.backbone,
            self.data,
            bank=self.bank,
            pooling=options.pooling,
            device=options.device,
            batch_size=options.batch_size,
            engines=self.engines,
            preprocessing=preprocessing,
            among=indices,
            progress=progress and options.progress,
        ).table


def open_bank(options: PassOptions) -> FeatureBank:
    """The feature bank that the options ask for."""
    limit = DEFAULT_LIMIT if options.cache_limit is None else int(options.cache_limit * 2**30)
    return FeatureBank(options.cache, limit=limit)


def open_backbone(model: str | nn.Module, options: PassOptions) -> Backbone:
    """The backbone that the options ask for."""
    return load_backbone(
        model,
        image_size=options.image_size,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        preprocessing=options.preprocessing,
    )


def open_images(data: Any, options: PassOptions, *, inspect: Inspect | None = None) -> Data:
    """The images, audited and split.

    Args:
        data: As for `analyze`.
        options: How they are opened.
        inspect: How files are inspected, as for `open_data`.
    """
    given = options.preprocessing
    return open_data(
        data,
        value_range=None if given is None else given.value_range,
        root=options.root,
        columns=options.columns,
        task=options.task,
        max_pixels=options.max_pixels,
        seed=options.seed,
        val=options.val,
        test=options.test,
        strict=options.strict,
        preprocessed=options.preprocessed,
        progress=options.progress,
        cache=options.cache,
        labels=options.labels,
        inspect=inspect,
    )


def fit_to_images(backbone: Backbone, data: Data) -> None:
    """Add to the backbone's preprocessing what depends on the images: their value range, or that they are prepared.

    Raises:
        DataError: Prepared tensors are of several shapes.
        OptionError: They are of another size than was asked for.
    """
    preprocessing = data.adapt_preprocessing(backbone.spec.preprocessing)
    backbone.spec = replace(backbone.spec, preprocessing=preprocessing)
    own = backbone.spec.own_preprocessing
    if own is not None and not preprocessing.prepared:
        message = (
            f"The given preprocessing normalises with mean {_three(preprocessing.mean)} and std "
            f"{_three(preprocessing.std)}, the checkpoint was trained with mean {_three(own.mean)} and std "
            f"{_three(own.std)}. Leave preprocessing out unless the weights are others than the published ones."
        )
        found = Finding(kind="preprocessing", severity="warning", message=message)
        if found not in data.summary.findings:  # the same images may be opened again
            data.summary = replace(data.summary, findings=(*data.summary.findings, found))


def _three(values: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


def prepared_side(data: Data, options: PassOptions) -> int | None:
    """Side in pixels that a backbone must be loaded for; None where the images leave it open.

    Raises:
        DataError: Prepared tensors are of several shapes.
        OptionError: They are of another size than was asked for.
    """
    if not data.normalised:
        return options.image_size
    height, width = data.prepared_shape
    if options.image_size not in (None, height, width):
        raise OptionError(
            f"image_size={options.image_size}, but the prepared tensors are {height} x {width} and are taken as they "
            "are. Leave image_size out, or resize in the dataset."
        )
    return options.image_size or min(height, width)


def refuse_targets(data: Data, what: str) -> None:
    """Raise unless each image has one class.

    Args:
        data: The images.
        what: What is to be done with them, as the subject of a sentence.

    Raises:
        OptionError: They have several labels, or numbers.
    """
    if data.targets is not None:
        raise OptionError(
            f"{what} needs one class per image, and these have task={data.targets.task}. transferkit adapt, analyze, "
            "rank, predict, evaluate and export work with that."
        )


def open_source(options: PassOptions) -> Data | None:
    """The source images, if there are some; they are only measured, so none is held back."""
    # Its columns may be called otherwise than those of `data`, so columns= is not for it.
    if options.source is None:
        return None
    return open_data(
        options.source,
        seed=options.seed,
        test=0.0,
        max_pixels=options.max_pixels,
        strict=options.strict,
        preprocessed=options.preprocessed and not isinstance(options.source, (str, Path)),
        progress=options.progress,
        cache=options.cache,
    )


def open_session(
    model: str | nn.Module,
    data: Any,
    options: PassOptions,
    *,
    budget: float | None = None,
    trains: bool = True,
    check: Callable[[Backbone], object] | None = None,
    needs_classes: str = "",
) -> Session:
    """Open both, then one frozen pass and all that it can measure.

    Args:
        model, data: As for `analyze`.
        options: How.
        budget: Seconds that everything after the first pass may take; None sets no limit.
        trains: Whether a network may be trained, so that it matters how long that takes.
        check: Raises if the backbone cannot do what is asked: a mistyped stage is found before the pass.
        needs_classes: What is to be done, where that takes one class per image; "" where labels and numbers will do.

    Raises:
        OptionError: Images have several labels, or numbers, and one class each is needed.
    """
    seconds: dict[str, float] = {}
    seed_everything(options.seed)
    if options.preprocessed:  # the tensors say which size the backbone is loaded for
        with timed(seconds, "audit data"):
            data = open_images(data, options)
            options = replace(options, image_size=prepared_side(data, options))
    with timed(seconds, "load backbone"):
        backbone = open_backbone(model, options)
        if check is not None:
            check(backbone)
    with timed(seconds, "audit data"):
        opened = open_images(data, options)
        source = open_source(options)
    if needs_classes:
        refuse_targets(opened, needs_classes)
    fit_to_images(backbone, opened)
    bank = open_bank(options)
    engines = Engines(options.engine, folder=bank.folder)
    found = measure_features(
        backbone,
        opened,
        options,
        bank=bank,
        engines=engines,
        source=source,
        views=ask_views(options.geometry, options.views),
        budget=budget,
        trains=trains,
        seconds=seconds,
    )
    backbone = backbone.with_preprocessing(found.evidence.backbone.preprocessing)
    return Session(
        backbone=backbone,
        data=opened,
        measured=found,
        options=options,
        bank=bank,
        engines=engines,
        seconds=dict(found.evidence.seconds),
    )
