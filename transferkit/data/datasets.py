"""Torch datasets, mappings of them, Lightning data modules, and the data sets that need no download."""

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
from transferkit.data.image_errors import ImageError
from transferkit.data.inspection import Inspection, inspect_picture
from transferkit.data.inventory import SPLITS, UNSPLIT, Inventory, split_name
from transferkit.data.labels import UNREAD, class_names, read_labels
from transferkit.data.outside import outside_steps, tell_clipping, tell_steps
from transferkit.data.tiff import dropped_bands
from transferkit.data.traits import late_traits, traits
from transferkit.records import Finding

__all__ = ["BUILTINS", "is_data_module", "is_dataset", "module_datasets", "take_builtin", "take_datasets"]

BUILTINS = ("builtin/digits",)
_REREAD = 8
"""Images read a second time to notice a dataset that draws at random; each flip goes unnoticed with chance 1/2."""
_DIGIT_MAX = 16  # load_digits counts ink in 4 x 4 blocks


class DatasetReader:
    """Images of one or more map-style datasets, end to end.

    Args:
        parts: Split name -> dataset, in row order.
        preprocessed: Whether their tensors are to be taken as they are.
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
        """Row -> what the dataset yields: image and label."""
        part, index = self.rows[row]
        item = self.parts[part][index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"{self.names[row]}: expected a pair (image, label), got {_described(item)}.{_for_items(item)}"
            )
        return item[0], item[1]

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture, `value_range` as in `decode`; of a prepared tensor, a rendering for people."""
        value = self.pair(row)[0]
        if self.preprocessed:
            return render(as_tensor_values(value, name=self.names[row]))
        return as_rgb(value, name=self.names[row], value_range=value_range)

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Row -> (3, H, W) float32, as the dataset yields it."""
        return as_tensor_values(self.pair(row)[0], name=self.names[row])

    def seen(self, row: int, value: Any) -> _Seen:
        """What an image is: the name of its content, a picture, and its values if they are deeper than 8 bits."""
        name = self.names[row]
        if self.preprocessed:
            values = as_tensor_values(value, name=name)
            return _Seen(array_digest(values), render(values))
        if isinstance(value, Image.Image) and value.width * value.height > self.max_pixels:
            raise ImageError("oversized", name, f"{value.width} x {value.height}", size=value.size)
        is_picture = isinstance(value, Image.Image)
        deep = load_deep(value, name=name) if is_picture else deep_values(value, name=name)
        if deep is None:
            picture = as_rgb(value, name=name)
            return _Seen(array_digest(np.asarray(picture)), picture)
        shown = own_range(sketch_values(deep))
        picture = (
            flatten(value, deep, name=name, value_range=shown)
            if is_picture
            else as_rgb(value, name=name, value_range=shown)
        )
        named = array_digest(deep.values) + array_digest(np.asarray(picture))
        return _Seen(digest(named), picture, deep)


@dataclass(frozen=True, eq=False)
class _Seen:
    content_id: bytes
    picture: Image.Image
    deep: DeepPixels | None = None


@dataclass(frozen=True)
class _Look:
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


def take_datasets(
    parts: Mapping[str, Any], *, origin: str, preprocessed: bool, max_pixels: int, progress: bool
) -> Inventory:
    """The inventory of map-style datasets, read once, in order.

    Args:
        parts: Split name (an alias will do) -> dataset; the single key "" for one that is yet to be split.
        origin: Where they came from, for people.
        preprocessed: Take float tensors as they are.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.

    Raises:
        DataError: A dataset is not map-style, is empty, or yields something other than (image, label).
    """
    named = _checked_parts(parts)
    reader = DatasetReader(named, preprocessed=preprocessed, max_pixels=max_pixels)
    rows = range(len(reader.rows))
    looks = [_look(reader, row) for row in track(rows, "checking images", enabled=progress)]
    announced = {split: class_names(dataset) for split, dataset in named.items()}
    found = read_labels(
        [look.label for look in looks], [announced[part] for part, _ in reader.rows], announced, where=reader.names
    )
    steps = tuple(dict.fromkeys(step for dataset in named.values() for step in outside_steps(dataset)))
    outside = [*tell_steps(steps, prepared=preprocessed), *tell_clipping(list(named.values()))]
    return Inventory(
        kind="dataset",
        origin=origin,
        classes=found.classes,
        names=reader.names,
        labels=found.labels,
        splits=np.array([part for part, _ in reader.rows], dtype="<U5"),
        inspections=tuple(look.inspection for look in looks),
        reader=reader,
        findings=(*found.findings, *_drawn_at_random(reader, looks), *outside),
        outside=steps,
    )


def _checked_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, dataset in parts.items():
        split = UNSPLIT if key == UNSPLIT else split_name(str(key))
        if split is None:
            raise DataError(unknown_name("split", key, SPLITS))
        if split in named:
            raise DataError(f"Split {split!r} is given twice.")
        _check_map_style(dataset)
        named[split] = dataset
    if UNSPLIT not in named and "train" not in named:
        raise DataError(f"There is no training dataset; splits given: {', '.join(named) or 'none'}.")
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
    """The next step where the items of a dataset are no pairs."""
    if is_dataset(item) and not isinstance(item, (tuple, list, str, Mapping, np.ndarray, torch.Tensor)):
        return " Give splits as a mapping: {'train': DATASET, 'test': DATASET}."
    if isinstance(item, Mapping):
        keys = ", ".join(map(repr, list(item)[:5]))
        return f" It holds {keys}: wrap the dataset in one that gives the image and the label."
    if isinstance(item, (tuple, list)):
        return f" It has {len(item)} entries: wrap the dataset in one that gives the image and the label."
    return ""


def _for_paths(value: Any) -> str:
    if isinstance(value, DataLoader):
        return " Pass what it loads from: loader.dataset."
    if not isinstance(value, (str, Path)):
        return ""
    return (
        " Splits in folders are read from the folder above, which holds train/, val/ and test/; splits that lie apart, "
        "from a manifest with a column split, or as torchvision.datasets.ImageFolder(PATH) each."
    )


def is_dataset(value: Any) -> bool:
    """Whether a value can be read as a map-style dataset: it has a length and items."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _look(reader: DatasetReader, row: int) -> _Look:
    value, label = None, UNREAD
    try:
        value, label = reader.pair(row)
        is_picture = isinstance(value, Image.Image) and not reader.preprocessed
        found, dropped = (traits(value), dropped_bands(value)) if is_picture else ((), 0)
        seen = reader.seen(row, value)
        found = late_traits(value, found) if is_picture else found
    except (ImageError, OSError) as error:  # OSError: what a dataset's own loader raises for a bad file
        if isinstance(value, Image.Image):
            value.close()  # a lazily opened file that nobody will read to its end
        fault, (width, height) = (error.kind, error.size) if isinstance(error, ImageError) else ("unreadable", (0, 0))
        content_id = digest(reader.names[row].encode())
        detail = error.detail if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        look = Inspection(content_id=content_id, fault=fault, detail=detail, width=width, height=height)
        return _Look(look, label)
    look = inspect_picture(seen.picture, content_id=seen.content_id, found=found, deep=seen.deep)
    if is_picture:
        look = replace(look, dropped=dropped, frames=_frames(value), format=value.format or "")
    return _Look(look, label)


def _frames(image: Image.Image) -> int:
    """Frames that an image has as the dataset opened it."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # the file may be closed, or damaged behind the first frame
        return 1


def _drawn_at_random(reader: DatasetReader, looks: Sequence[_Look]) -> list[Finding]:
    """The warning for a dataset that yields another image the second time."""
    usable = [row for row, look in enumerate(looks) if not look.inspection.fault]
    again = usable[:: max(1, len(usable) // _REREAD)][:_REREAD]
    changed = [
        reader.names[row]
        for row in again
        if reader.seen(row, reader.pair(row)[0]).content_id != looks[row].inspection.content_id
    ]
    if not changed:
        return []
    message = (
        f"{len(changed)} of {len(again)} images came out different when read twice, so the dataset draws at random. "
        "Give the images without augmentation: features are computed once, and strategies bring their own."
    )
    return [Finding(kind="random_images", severity="warning", message=message, items=tuple(changed))]


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def take_builtin(name: str, *, max_pixels: int, progress: bool) -> Inventory:
    """The inventory of a data set that ships with a dependency.

    Args:
        name: "builtin/digits": scikit-learn's 1797 handwritten digits, 8 x 8.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.

    Raises:
        DataError: There is none of that name.
    """
    if name not in BUILTINS:
        raise DataError(unknown_name("built-in data", name, BUILTINS))
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = np.rint(digits.images * (255 / _DIGIT_MAX)).astype(np.uint8)
    dataset = _Memory(np.repeat(ink[..., None], 3, axis=3), digits.target.tolist(), [str(d) for d in range(10)])
    return take_datasets({UNSPLIT: dataset}, origin=name, preprocessed=False, max_pixels=max_pixels, progress=progress)


def is_data_module(value: Any) -> bool:
    """Whether a value is a LightningDataModule, of whichever of Lightning's two packages is in use."""
    return _module_base(value) is not None


def _module_base(value: Any) -> type | None:
    # Whoever holds a data module has imported Lightning already; importing it here only to check would cost seconds.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        base = getattr(sys.modules.get(package), "LightningDataModule", None)
        if isinstance(base, type) and isinstance(value, base):
            return base
    return None


def module_datasets(module: Any) -> dict[str, Any]:
    """Split name -> dataset behind a LightningDataModule's loaders, after its own preparation.

    Args:
        module: A LightningDataModule; `prepare_data` and `setup` are called, the latter for each stage if it takes one.

    Raises:
        DataError: It has no training loader, or a loader that does not stand for one dataset.
    """
    module.prepare_data()
    takes_stage = bool(inspect.signature(module.setup).parameters)
    module.setup(*(["fit"] if takes_stage else []))
    found = {split: _behind_loader(module, split) for split in ("train", "val") if _has_loader(module, split)}
    if _has_loader(module, "test"):
        if takes_stage:
            module.setup("test")
        found["test"] = _behind_loader(module, "test")
    if "train" not in found:
        raise DataError(f"{type(module).__name__} has no train_dataloader.")
    return {split: dataset for split, dataset in found.items() if dataset is not None}


def _has_loader(module: Any, split: str) -> bool:
    method = f"{split}_dataloader"  # from_datasets() sets it on the instance; a subclass overrides it
    return method in vars(module) or getattr(type(module), method) is not getattr(_module_base(module), method)


def _behind_loader(module: Any, split: str) -> Any:
    loader = getattr(module, f"{split}_dataloader")()
    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        loader = loader[0]
    if loader is None or (isinstance(loader, (list, tuple)) and not loader):
        return None
    if not hasattr(loader, "dataset"):
        raise DataError(
            f"{type(module).__name__}.{split}_dataloader() gives {_described(loader)}; expected one DataLoader."
        )
    return loader.dataset
