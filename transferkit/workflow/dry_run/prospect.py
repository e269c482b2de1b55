"""What a run would open, opened without any work: backbone, images, bank, and paces of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit import zoo
from transferkit.core.errors import BackboneError, DataError
from transferkit.core.random import seed_everything
from transferkit.data import Data
from transferkit.data.glance import Glance
from transferkit.features import Engines, FeatureBank, choose_device
from transferkit.features.engines import stage_extractor
from transferkit.features.extraction import open_shelves
from transferkit.features.workers import default_workers
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.records import PlannedData, Preprocessing
from transferkit.workflow.paces import Paces, measure_paces
from transferkit.workflow.session import fit_to_images, load_backbone, open_backbone, open_images, prepared_side

__all__ = ["ID_BYTES", "META_BYTES", "Prospect", "list_images", "open_prospect"]

READ = 12
"""Images that are read and prepared to know how long that takes."""

ID_BYTES = 32

META_BYTES = 50_000
"""Of a shelf's meta.json, nearly all of it the imprint."""


@dataclass(kw_only=True)
class Prospect:
    """Backbone, images and paces.

    Args:
        backbone: As it would be opened; with random weights where the real ones would be fetched first.
        data: The images; some may only be listed.
        options: With the scratch folder as `cache`.
        glance: What was found out about image files; None where the images are no files.
        paces: Of the backbone on this machine.
        read_seconds: To read and prepare an image, by one thread.
        load_seconds: That opening the backbone took.
        has_weights: Whether the backbone has the weights of the real run.
        warnings: Sentences.
    """

    backbone: Backbone
    data: Data
    options: PassOptions
    glance: Glance | None
    paces: Paces
    read_seconds: float
    load_seconds: float
    has_weights: bool
    warnings: list[str] = field(default_factory=list)
    _engines: Engines = field(default_factory=Engines)

    @property
    def bank(self) -> FeatureBank:
        """The scratch folder's."""
        return FeatureBank(self.options.cache)

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """Indices of the training images."""
        return self.data.indices("train")

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Sorted indices of the images that are measured: those of the training and the validation split."""
        return np.sort(np.concatenate([self.train, self.data.indices("val")]))

    @property
    def is_exact(self) -> bool:
        """Whether every image was audited."""
        return self.glance is None or not self.glance.listed

    @property
    def image_seconds(self) -> float:
        """Of one image in one view: the network, and reading by all workers together."""
        return self.paces.image_seconds + self.read_seconds / default_workers()

    @property
    def planned_data(self) -> PlannedData:
        """The images, for people."""
        found = self.data.summary
        counts = {split: found.size(split) for split in found.counts}
        return PlannedData(
            origin=found.origin,
            classes=found.num_classes,
            images=counts,
            is_exact=self.is_exact,
            task=found.task,
        )

    @property
    def width(self) -> int:
        """Numbers in a row of features."""
        return sum(self.backbone.widths(self.options.pooling).values())

    def row_bytes(self, rows: int) -> int:
        """Bytes on disk of so many rows of features on a shelf of their own."""
        return rows * (4 * self.width + ID_BYTES) + META_BYTES if rows else 0

    def missing(self, among: npt.NDArray[np.int64], preprocessing: Preprocessing) -> int:
        """How many of these images are not in the bank in this view; of equal images one counts."""
        ids = np.unique(self.data.content_ids[among])
        if not self.has_weights:
            return len(ids)
        device = choose_device(self.options.device)
        seen = self.backbone.with_preprocessing(preprocessing)
        reference = stage_extractor(seen, pooling=self.options.pooling, device=device)
        shelves = open_shelves(self.bank, self._engines.identity(reference))
        return len(shelves["features"].missing(ids))


def open_prospect(
    model: str | nn.Module,
    data: Any,
    options: PassOptions,
    *,
    scratch: Path,
    trains: bool,
    check: Callable[[Backbone], object] | None = None,
    opened: tuple[Data, Glance | None] | None = None,
) -> Prospect:
    """Open what a run would open, and time it.

    Args:
        model, data, options: As for `analyze`.
        scratch: See `scratch_cache`.
        trains: Whether a network may be trained, so that training steps are timed.
        check: Raises if the backbone cannot do what is asked.
        opened: The images, where they were opened before.

    Raises:
        TransferkitError: What the real run would raise as far.
    """
    options = replace(options, cache=scratch, progress=False)
    seed_everything(options.seed)
    warnings = list[str]()
    if opened is None and options.preprocessed:  # the tensors say which size the backbone is loaded for
        opened = list_images(data, options)
    if opened is not None:
        options = replace(options, image_size=prepared_side(opened[0], options))
    began = time.perf_counter()
    backbone, has_weights = _open_backbone(model, options, warnings)
    if check is not None:
        check(backbone)
    load_seconds = time.perf_counter() - began
    found, glance = list_images(data, options) if opened is None else opened
    fit_to_images(backbone, found)
    images = max(1, len(found.indices("train")))
    paces = measure_paces(backbone, options, folder=scratch, images=images, trains=trains)
    return Prospect(
        backbone=backbone,
        data=found,
        options=options,
        glance=glance,
        paces=paces,
        read_seconds=_read_seconds(found, backbone.spec.preprocessing.primary),
        load_seconds=load_seconds,
        has_weights=has_weights,
        warnings=warnings,
    )


def list_images(data: Any, options: PassOptions) -> tuple[Data, Glance | None]:
    """The images without decoding files that no audit has seen; and what was found out about files."""
    glance = Glance(Path(options.cache), max_pixels=options.max_pixels)
    found = open_images(data, replace(options, progress=False), inspect=glance)
    return found, glance if glance.files else None


def _open_backbone(model: str | nn.Module, options: PassOptions, warnings: list[str]) -> tuple[Backbone, bool]:
    """The backbone; with random weights where its own would have to be fetched."""
    if not isinstance(model, str) or not options.pretrained or options.checkpoint is not None or _is_here(model):
        return open_backbone(model, options), True
    backbone = load_backbone(model, image_size=options.image_size, pretrained=False)
    size = 4 * backbone.spec.parameters
    warnings.append(f"The weights of {model} are not on this machine: about {size / 2**20:,.0f} MB would be fetched.")
    return backbone, False


def _is_here(model: str) -> bool:
    """Whether the weights of a named model are on this machine; a name that the zoo does not list counts as here, so
    that loading it says what is wrong."""
    source = model.partition("/")[0]
    try:
        listed = {entry.name: entry.offline for entry in zoo.catalog(source=source)}
    except BackboneError:
        return True
    if model in listed:
        return listed[model]
    # A short name stands for the first that it begins: timm/resnet18, torchvision/resnet18.
    longer = [here for name, here in listed.items() if name.startswith((f"{model}.", f"{model}:"))]
    return not longer or any(longer)


def _read_seconds(data: Data, preprocessing: Preprocessing) -> float:
    """Seconds to read and prepare an image, the median over some."""
    train = data.indices("train")
    chosen = train[np.unique(np.linspace(0, max(0, len(train) - 1), READ).astype(np.int64))] if len(train) else train
    seconds = []
    for index in [*chosen[:1], *chosen]:  # the first once more: it loads the decoder
        began = time.perf_counter()
        try:
            data.pixels(int(index), preprocessing)
        except DataError:  # a file that was only listed, and is unusable
            continue
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:] or [0.0]))
