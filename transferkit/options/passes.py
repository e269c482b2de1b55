"""Options of how images are opened and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.core.limits import check_image_size
from transferkit.options.fields import check_values, option

__all__ = ["MAX_PIXELS", "DataOptions", "MeasureOptions", "PassOptions"]

MAX_PIXELS = 89_478_485
"""Width times height above which an image is not decoded unless asked for; Pillow's own limit for a warning."""

SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How images are opened, audited and split."""

    root: Any = option(None, "Folder that a manifest's relative paths start from; None: the manifest's own.")
    columns: Any = option(
        None,
        'Maps "path", "label", "split", "group" to the names of a manifest\'s columns, where they differ; "label" also '
        "to a list of columns of 0 and 1, or of numbers.",
    )
    task: str = option("auto", "multi_label, regression, single_label; auto: as columns or vectors of labels say.")
    max_pixels: int = option(MAX_PIXELS, "Width times height above which an image is set aside instead of decoded.")
    val: float = option(0.0, "Share of the training images to hold out for validation, if there is no such split.")
    test: float | None = option(
        None, "Share to hold out for the test; None: 0.2 of data without any split, nothing otherwise."
    )
    strict: bool = option(False, "Unusable images are an error instead of being set aside.")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How the backbone is opened, and what is measured with it."""

    image_size: int | None = option(
        None, "Side of the input in pixels, smaller is faster; None: the checkpoint's own.", check=check_image_size
    )
    checkpoint: Any = option(
        None, "Weights file for that architecture, or the folder of a finished run, instead of the published weights."
    )
    pretrained: bool = option(True, "False: random weights.")
    geometry: Any = option(
        "auto",
        "How a single view shows an image: crop (the checkpoint's own), full (the largest centre square), squash (all "
        "of it, squeezed), pad (all of it, with borders), zoom (the middle, closer), wide (all of it, smaller, with "
        "borders). auto compares the first four on held-back images and keeps crop unless another is clearly "
        "better; rank uses crop.",
    )
    views: Any = option(
        "auto",
        "Geometries whose features and predictions are averaged, such as crop+squash+zoom; +mirror adds the mirror "
        "image of each. 1: the geometry alone. auto: crop, squash, zoom and wide, their mirror images where held-back "
        "images show that mirroring is safe, as far as the passes take no more than 60 s; rank uses one view. Each "
        "view costs a pass over the images, and one at every prediction.",
    )
    pooling: str = option("avg+max", "Pooling of each stage's grid: avg or avg+max.")
    class_weight: str = option(
        "none",
        "none, balanced (every class weighs the same) or auto (balanced if one class has twice the images of another).",
    )
    similarity: float | None = option(
        None, "Similarity of the data to the backbone's source data in [0, 1]; None: measured."
    )
    labels: Any = option(None, "Corrected labels: the table of `transferkit doctor labels`, edited (docs/doctor.md).")
    source: Any = option(None, "Images like those the backbone was trained on, in any form that data can have.")
    batch_size: int | None = option(
        None,
        "Images per batch of the frozen pass, and per step unless train sets it; None: fitted.",
    )
    cache: Any = option(None, "Folder of the feature bank; None: $TRANSFERKIT_CACHE or the user's cache folder.")
    cache_limit: float | None = option(None, "Gigabytes that the feature bank may use; None: 10.")
    device: Any = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    engine: str = option(
        "auto",
        "What computes features: torch, onnxruntime, openvino, compile, eager (torch without simplifying the network). "
        "auto takes the fastest that is installed where there is much to compute, and torch otherwise; each is checked "
        "against the network itself on some of the images first.",
    )
    seed: int = option(0, "Seed of splits, folds, augmentation and training.")
    progress: bool = option(True, "Show progress bars on a terminal.")


@dataclass(frozen=True, kw_only=True)
class PassOptions(MeasureOptions, DataOptions):
    """How backbone and images are opened and measured: what `analyze`, `adapt` and `rank` share."""

    preprocessing: Any = option(None, "How images are prepared for a module of your own: a `Preprocessing`.")
    preprocessed: bool = option(False, "The dataset's float tensors are normalised already and used unchanged.")

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 <= self.seed < SEEDS:
            raise OptionError(f"seed must be in [0, 2^63), got {self.seed!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(
                f"batch_size must be >= 1, got {self.batch_size!r}; leave it out to fit it to the machine."
            )
        if self.similarity is not None and not 0 <= self.similarity <= 1:
            raise OptionError(f"similarity must be in [0, 1], got {self.similarity!r}.")
