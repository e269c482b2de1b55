"""A backbone and images, opened and measured in one frozen pass: what every verb begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from transferkit import zoo
from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.random import seed_everything
from transferkit.data import MAX_PIXELS, Data, open_data
from transferkit.features import FeatureBank, choose_device
from transferkit.features.bank import DEFAULT_LIMIT
from transferkit.nn import POOLINGS, Backbone
from transferkit.probe import CLASS_WEIGHTS
from transferkit.records import Finding, Preprocessing, check_image_size
from transferkit.workflow.measure import Measurement, measure_features, timed
from transferkit.workflow.views import AskedViews, ask_views, refuse_for_tensors

__all__ = ["Session", "Options", "load_backbone", "open_session", "open_backbone", "open_images"]


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


NUMBERS = (
    ("seed", Integral, True),
    ("batch_size", Integral, False),
    ("max_pixels", Integral, True),
    ("similarity", Real, False),
    ("cache_limit", Real, False),
    ("budget", Real, False),
)
"""Options that are numbers, of which kind, and whether there must be one."""

FLAGS = ("pretrained", "strict", "preprocessed", "progress")
"""Options that are true or false: the word "no" would count as true."""

SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to open and measure: the arguments that `analyze`, `adapt` and `rank` share, explained in `analyze`.

    Raises:
        OptionError: If a value is out of its range.
    """

    image_size: int | None
    batch_size: int | None
    seed: int
    checkpoint: str | Path | None
    pretrained: bool
    preprocessing: Preprocessing | None
    root: str | Path | None
    val: float
    test: float | None
    strict: bool
    preprocessed: bool
    pooling: str
    class_weight: str
    similarity: float | None
    cache: str | Path | None
    cache_limit: float | None
    device: str
    progress: bool
    source: Any = None
    geometry: str = "auto"
    views: str | int | Sequence[str] = "auto"
    budget: float | None = None
    columns: Mapping[str, str] | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        _check_kinds(self)
        check_image_size(self.image_size)
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(
                f"batch_size must be >= 1, got {self.batch_size!r}; leave it out to fit it to the machine."
            )
        if self.similarity is not None and not 0 <= self.similarity <= 1:
            raise OptionError(f"similarity must be in [0, 1], got {self.similarity!r}.")
        for name, value, known in (
            ("pooling", self.pooling, POOLINGS),
            ("class_weight", self.class_weight, CLASS_WEIGHTS),
        ):
            if value not in known:
                raise OptionError(unknown_name(name, value, known))
        choose_device(self.device)
        asked = self.asked_views  # raises where that is no way of seeing anything
        if self.preprocessed:
            refuse_for_tensors(asked)

    @property
    def asked_views(self) -> AskedViews:
        """What geometry and views ask for."""
        return ask_views(self.geometry, self.views)

    @cached_property
    def bank(self) -> FeatureBank:
        """Where features are kept: one bank per run, which holds the shelves that the run uses."""
        limit = DEFAULT_LIMIT if self.cache_limit is None else int(self.cache_limit * 2**30)
        return FeatureBank(self.cache, limit=limit)


def _check_kinds(options: Options) -> None:
    """Raise, all at once, what is no number where one belongs, or neither yes nor no."""
    problems = []
    for name, kind, needed in NUMBERS:
        value = getattr(options, name)
        is_number = isinstance(value, kind) and not isinstance(value, (bool, np.bool_))
        if not is_number and (needed or value is not None):
            problems.append(f"{name} must be a {'whole ' if kind is Integral else ''}number, got {value!r}.")
        elif name == "seed" and not 0 <= value < SEEDS:
            problems.append(f"seed must be in [0, 2^63), got {value!r}.")
    problems += [
        f"{name} must be true or false, got {getattr(options, name)!r}."
        for name in FLAGS
        if not isinstance(getattr(options, name), (bool, np.bool_))
    ]
    if problems:
        raise OptionError(" ".join(problems))


@dataclass(frozen=True)
class Session:
    """An opened backbone, the images, and what the frozen pass measured.

    Args:
        backbone, data: As they were opened.
        measured: What the frozen pass measured.
        seconds: Phase -> wall-clock seconds so far; further phases are added by who goes on.
    """

    backbone: Backbone
    data: Data
    measured: Measurement
    seconds: dict[str, float]


def open_backbone(model: str | nn.Module, options: Options) -> Backbone:
    """The backbone that the options ask for."""
    return load_backbone(
        model,
        image_size=options.image_size,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        preprocessing=options.preprocessing,
    )


def open_images(data: Any, options: Options) -> Data:
    """The images behind whatever the person named, audited and split."""
    given = options.preprocessing
    return open_data(
        data,
        value_range=None if given is None else given.value_range,
        root=options.root,
        columns=options.columns,
        max_pixels=options.max_pixels,
        seed=options.seed,
        val=options.val,
        test=options.test,
        strict=options.strict,
        preprocessed=options.preprocessed,
        progress=options.progress,
        cache=options.cache,
    )


def fit_to_images(backbone: Backbone, data: Data) -> None:
    """Note in the backbone what these images add to its preprocessing: the range of deep ones, or that all is prepared.

    Raises:
        DataError: Prepared tensors are of several shapes.
        OptionError: They are of another size than was asked for.
    """
    preprocessing = data.adapt_preprocessing(backbone.spec.preprocessing)
    backbone.spec = replace(backbone.spec, preprocessing=preprocessing)
    own = backbone.spec.own_preprocessing
    if own is not None and not preprocessing.prepared:
        message = (
            f"The preprocessing that was given normalises with mean {_three(preprocessing.mean)} and std "
            f"{_three(preprocessing.std)}, the checkpoint was trained with mean {_three(own.mean)} and std "
            f"{_three(own.std)}. Leave preprocessing out unless the weights are others than the published ones."
        )
        found = Finding(kind="preprocessing", severity="warning", message=message)
        if found not in data.summary.findings:  # the same images may be opened again
            data.summary = replace(data.summary, findings=(*data.summary.findings, found))


def _three(values: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


def prepared_side(data: Data, options: Options) -> int | None:
    """Side in pixels that a backbone must be loaded for to take these images; None where they do not say.

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


def open_source(options: Options) -> Data | None:
    """The source images, if the person has some; they are only measured, so none is held back."""
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
    model: str | nn.Module, data: Any, options: Options, *, check: Callable[[Backbone], object] | None = None
) -> Session:
    """Open both, then one frozen pass and all that it can tell.

    Args:
        model, data: As for `analyze`.
        options: How.
        check: Raises if the backbone cannot do what will be asked of it: a mistyped stage is met before the pass.
    """
    seconds: dict[str, float] = {}
    bank = options.bank  # of the run's own options, which outlive those made below
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
    fit_to_images(backbone, opened)
    found = measure_features(
        backbone,
        opened,
        bank=bank,
        pooling=options.pooling,
        device=options.device,
        batch_size=options.batch_size,
        class_weight=options.class_weight,
        similarity=options.similarity,
        source=source,
        views=options.asked_views,
        budget=options.budget,
        seed=options.seed,
        seconds=seconds,
        progress=options.progress,
    )
    backbone = backbone.with_preprocessing(found.evidence.backbone.preprocessing)
    return Session(backbone, opened, found, dict(found.evidence.seconds))
