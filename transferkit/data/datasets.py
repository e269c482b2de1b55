"""Reading torch datasets, mappings of them, Lightning data modules, and built-in data sets."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from transferkit.core.errors import DataError, unknown_name
from transferkit.core.progress import track
from transferkit.data.arrays import as_rgb, as_tensor_values, deep_values, render
from transferkit.data.decode import flatten
from transferkit.data.deep_pixels import load_deep
from transferkit.data.depth import DeepPixels, Range, own_range, sketch_values
from transferkit.data.fingerprints import array_digest, digest
from transferkit.data.geometry import to_pixels
from transferkit.data.image_errors import ImageError
from transferkit.data.inspection import Inspection, inspect_picture
from transferkit.data.inventory import SPLITS, UNSPLIT, Inventory, split_name
from transferkit.data.labels import UNREAD, Labels, class_names, read_labels
from transferkit.data.outside import clipping_findings, outside_steps, step_findings
from transferkit.data.target_values import read_values, recognise_task
from transferkit.data.tiff import dropped_bands
from transferkit.data.traits import late_traits, traits
from transferkit.records import TARGET_TASKS, Finding, Preprocessing

__all__ = ["BUILTINS", "is_data_module", "is_dataset", "module_datasets", "read_builtin", "read_datasets"]

BUILTINS = ("builtin/digits",)
_REREAD = 8
"""Images read a second time to detect random augmentation; a random flip goes undetected with chance 1/2 each."""
_DIGIT_MAX = 16  # load_digits counts ink in 4 x 4 blocks


class DatasetReader:
    """Images of one or more map-style datasets, concatenated.

    Args:
        parts: Split name -> dataset, in row order.
        preprocessed: Whether their float tensors are used unchanged.
        max_pixels: As in `decode`.
    """

    thread_safe = False  # a dataset may hold an open file

    def __init__(self, parts: Mapping[str, Any], *, preprocessed: bool, max_pixels: int) -> None:
        self.parts = dict(parts)
        self.preprocessed = preprocessed
        self.max_pixels = max_pixels
        self.rows = [(part, index) for part, dataset in self.parts.items() for index in range(len(dataset))]
        self.names = tuple(f"{part or 'image'}[{index}]" for part, index in self.rows)

    def pair(self, row: int) -> tuple[Any, Any]:
        """Row -> the dataset's item: image and label."""
        part, index = self.rows[row]
        item = self.parts[part][index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"{self.names[row]}: expected a pair (image, label), got {_described(item)}.{_for_items(item)}"
            )
        return item[0], item[1]

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture, `value_range` as in `decode`; for a preprocessed tensor, a rendering of it."""
        value = self.pair(row)[0]
        if self.preprocessed:
            return render(as_tensor_values(value, name=self.names[row]))
        return as_rgb(value, name=self.names[row], value_range=value_range)

    def pixels(self, row: int, preprocessing: Preprocessing, value_range: Range | None = None) -> npt.NDArray[np.uint8]:
        """Row -> its picture in a checkpoint's geometry, from full size: the dataset may keep the image it yields."""
        return to_pixels(self.image(row, value_range), preprocessing)

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Row -> the dataset's (3, H, W) tensor, as float32."""
        return as_tensor_values(self.pair(row)[0], name=self.names[row])

    def content(self, row: int, value: Any) -> _Content:
        """An image's content digest, its picture, and its values if they are deeper than 8 bits."""
        name = self.names[row]
        if self.preprocessed:
            values = as_tensor_values(value, name=name)
            return _Content(array_digest(values), render(values))
        if isinstance(value, Image.Image) and value.width * value.height > self.max_pixels:
            raise ImageError("oversized", name, f"{value.width} x {value.height}", size=value.size)
        is_picture = isinstance(value, Image.Image)
        deep = load_deep(value, name=name) if is_picture else deep_values(value, name=name)
        if deep is None:
            picture = as_rgb(value, name=name)
            return _Content(array_digest(np.asarray(picture)), picture)
        display_range = own_range(sketch_values(deep))
        picture = (
            flatten(value, deep, name=name, value_range=display_range)
            if is_picture
            else as_rgb(value, name=name, value_range=display_range)
        )
        named = array_digest(deep.values) + array_digest(np.asarray(picture))
        return _Content(digest(named), picture, deep)


@dataclass(frozen=True, eq=False)
class _Content:
    content_id: bytes
    picture: Image.Image
    deep: DeepPixels | None = None


@dataclass(frozen=True)
class _Row:
    inspection: Inspection
    label: Any


class _Memory:
    """A dataset held in memory."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: Sequence[int], classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, list(classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], self.labels[index]


def read_datasets(
    parts: Mapping[str, Any],
    *,
    origin: str,
    preprocessed: bool,
    max_pixels: int,
    progress: bool,
    task: str = "single_label",
) -> Inventory:
    """The inventory of map-style datasets, read once, in order.

    Args:
        parts: Split name (or an alias) -> dataset; the single key "" for one that is yet to be split.
        origin: Where they came from, for display.
        preprocessed: Use float tensors unchanged.
        max_pixels: As in `decode`.
        progress: Whether to show a progress bar.
        task: As for `open_data`.

    Raises:
        DataError: A dataset is not map-style, is empty, or yields something other than (image, label).
    """
    named = _checked_parts(parts)
    reader = DatasetReader(named, preprocessed=preprocessed, max_pixels=max_pixels)
    rows = range(len(reader.rows))
    inspected = [_inspect_row(reader, row) for row in track(rows, "checking images", enabled=progress)]
    declared = {split: class_names(dataset) for split, dataset in named.items()}
    labels = [row.label for row in inspected]
    task = recognise_task(labels) if task == "auto" else task
    targets = read_values(labels, task, declared=declared, where=reader.names) if task in TARGET_TASKS else None
    found = (
        read_labels(labels, [declared[part] for part, _ in reader.rows], declared, where=reader.names)
        if targets is None
        else Labels(labels=targets.strata, classes=targets.targets.names, findings=targets.findings)
    )
    steps = tuple(dict.fromkeys(step for dataset in named.values() for step in outside_steps(dataset)))
    outside = [*step_findings(steps, prepared=preprocessed), *clipping_findings(list(named.values()))]
    return Inventory(
        kind="dataset",
        origin=origin,
        classes=found.classes,
        names=reader.names,
        labels=found.labels,
        splits=np.array([part for part, _ in reader.rows], dtype="<U5"),
        inspections=tuple(row.inspection for row in inspected),
        reader=reader,
        findings=(*found.findings, *_random_images(reader, inspected), *outside),
        outside=steps,
        targets=None if targets is None else targets.targets,
    )


def _checked_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, dataset in parts.items():
        split = UNSPLIT if key == UNSPLIT else split_name(str(key))
        if split is None:
            raise DataError(unknown_name("split", key, SPLITS))
        if split in named:
            raise DataError(f"Split {split!r} is given twice. Pass one dataset per split.")
        _check_map_style(dataset)
        named[split] = dataset
    if UNSPLIT not in named and "train" not in named:
        raise DataError(f"Expected a dataset for split 'train', got {', '.join(named) or 'none'}.")
    return {split: named[split] for split in (UNSPLIT, *SPLITS) if split in named}


def _check_map_style(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{type(dataset).__name__} is an IterableDataset, which cannot be audited or split. Expected a map-style "
            "dataset with __len__ and __getitem__; collect the stream into one, or into a folder."
        )
    if not is_dataset(dataset):
        raise DataError(
            f"Expected a map-style dataset with __len__ and __getitem__, got {_described(dataset)}."
            f"{_for_paths(dataset)}"
        )
    if len(dataset) == 0:
        raise DataError(f"The dataset ({type(dataset).__name__}) is empty.")


def _for_items(item: Any) -> str:
    """The next step where a dataset's items are not (image, label) pairs."""
    if is_dataset(item) and not isinstance(item, (tuple, list, str, Mapping, np.ndarray, torch.Tensor)):
        return " Pass splits as a mapping: {'train': DATASET, 'test': DATASET}."
    if isinstance(item, Mapping):
        keys = ", ".join(map(repr, list(item)[:5]))
        return f" It has the keys {keys}: wrap the dataset in one that returns (image, label)."
    if isinstance(item, (tuple, list)):
        return f" It has {len(item)} entries: wrap the dataset in one that returns (image, label)."
    return ""


def _for_paths(value: Any) -> str:
    if isinstance(value, DataLoader):
        return " Pass what it loads from: loader.dataset."
    if not isinstance(value, (str, Path)):
        return ""
    return (
        " For splits in folders, pass the parent folder that contains train/, val/ and test/; for splits in separate "
        "places, use a manifest with a column split, or torchvision.datasets.ImageFolder(PATH) for each."
    )


def is_dataset(value: Any) -> bool:
    """Whether a value can be read as a map-style dataset: it has a length and items."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _inspect_row(reader: DatasetReader, row: int) -> _Row:
    value, label = None, UNREAD
    try:
        value, label = reader.pair(row)
        is_picture = isinstance(value, Image.Image) and not reader.preprocessed
        found, dropped = (traits(value), dropped_bands(value)) if is_picture else ((), 0)
        content = reader.content(row, value)
        found = late_traits(value, found) if is_picture else found
    except (ImageError, OSError) as error:  # OSError: raised by a dataset's loader for a bad file
        if isinstance(value, Image.Image):
            value.close()  # a lazily opened file that will not be read to its end
        fault, (width, height) = (error.kind, error.size) if isinstance(error, ImageError) else ("unreadable", (0, 0))
        content_id = digest(reader.names[row].encode())
        detail = error.detail if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        inspection = Inspection(content_id=content_id, fault=fault, detail=detail, width=width, height=height)
        return _Row(inspection, label)
    inspection = inspect_picture(content.picture, content_id=content.content_id, found=found, deep=content.deep)
    if is_picture:
        inspection = replace(inspection, dropped=dropped, frames=_frames(value), format=value.format or "")
    return _Row(inspection, label)


def _frames(image: Image.Image) -> int:
    """Number of frames of an image opened by the dataset."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # the file may be closed, or damaged after the first frame
        return 1


def _random_images(reader: DatasetReader, inspected: Sequence[_Row]) -> list[Finding]:
    """The warning for a dataset that returns a different image when read again."""
    usable = [row for row, one in enumerate(inspected) if not one.inspection.fault]
    again = usable[:: max(1, len(usable) // _REREAD)][:_REREAD]
    changed = [
        reader.names[row]
        for row in again
        if reader.content(row, reader.pair(row)[0]).content_id != inspected[row].inspection.content_id
    ]
    if not changed:
        return []
    message = (
        f"{len(changed)} of {len(again)} images were different when read twice, so the dataset augments at random. "
        "Pass the images without augmentation: features are computed once, and training has its own."
    )
    return [Finding(kind="random_images", severity="warning", message=message, items=tuple(changed))]


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def read_builtin(name: str, *, max_pixels: int, progress: bool) -> Inventory:
    """The inventory of a built-in data set, which ships with a dependency.

    Args:
        name: "builtin/digits": scikit-learn's 1797 handwritten digits, 8 x 8.
        max_pixels: As in `decode`.
        progress: Whether to show a progress bar.

    Raises:
        DataError: There is no built-in data set of that name.
    """
    if name not in BUILTINS:
        raise DataError(unknown_name("built-in data", name, BUILTINS))
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = np.rint(digits.images * (255 / _DIGIT_MAX)).astype(np.uint8)
    dataset = _Memory(np.repeat(ink[..., None], 3, axis=3), digits.target.tolist(), [str(d) for d in range(10)])
    return read_datasets({UNSPLIT: dataset}, origin=name, preprocessed=False, max_pixels=max_pixels, progress=progress)


def is_data_module(value: Any) -> bool:
    """Whether a value is a LightningDataModule of either Lightning package."""
    return _module_base(value) is not None


def _module_base(value: Any) -> type | None:
    # A data module can only exist if Lightning is imported already; importing it just to check would cost seconds.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        base = getattr(sys.modules.get(package), "LightningDataModule", None)
        if isinstance(base, type) and isinstance(value, base):
            return base
    return None


def module_datasets(module: Any) -> dict[str, Any]:
    """Split name -> dataset of a LightningDataModule's loaders, after `prepare_data` and `setup`.

    Args:
        module: A LightningDataModule; `prepare_data` and `setup` are called, the latter for each stage if it takes one.

    Raises:
        DataError: It has no training loader, or a loader without a single dataset.
    """
    module.prepare_data()
    takes_stage = bool(inspect.signature(module.setup).parameters)
    module.setup(*(["fit"] if takes_stage else []))
    found = {split: _loader_dataset(module, split) for split in ("train", "val") if _has_loader(module, split)}
    if _has_loader(module, "test"):
        if takes_stage:
            module.setup("test")
        found["test"] = _loader_dataset(module, "test")
    if "train" not in found:
        raise DataError(f"{type(module).__name__} has no train_dataloader.")
    return {split: dataset for split, dataset in found.items() if dataset is not None}


def _has_loader(module: Any, split: str) -> bool:
    method = f"{split}_dataloader"  # from_datasets() sets it on the instance; a subclass overrides it
    return method in vars(module) or getattr(type(module), method) is not getattr(_module_base(module), method)


def _loader_dataset(module: Any, split: str) -> Any:
    loader = getattr(module, f"{split}_dataloader")()
    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        loader = loader[0]
    if loader is None or (isinstance(loader, (list, tuple)) and not loader):
        return None
    if not hasattr(loader, "dataset"):
        raise DataError(
            f"{type(module).__name__}.{split}_dataloader() returns {_described(loader)}; expected one DataLoader."
        )
    return loader.dataset
