"""Images for prediction in any common form, as named RGB pictures or a network's input."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from transferkit.core.errors import DataError
from transferkit.core.paths import expand
from transferkit.data.arrays import ACCEPTED, as_rgb, deep_values
from transferkit.data.class_names import NaturalKey, natural_key
from transferkit.data.datasets import is_dataset
from transferkit.data.decode import flatten
from transferkit.data.deep_images import DeepImages
from transferkit.data.deep_pixels import load_deep
from transferkit.data.folders import image_files
from transferkit.data.formats import is_image, is_system_name
from transferkit.data.geometry import to_pixels
from transferkit.data.headers import open_header, read_bytes
from transferkit.data.image_errors import ImageError
from transferkit.data.members import ImageFile, Member
from transferkit.data.scaled import read_pixels
from transferkit.data.shards import find_shards, shard_members
from transferkit.options import MAX_PIXELS
from transferkit.records import Preprocessing

__all__ = ["list_predictable", "predictable_images", "predictable_pixels"]

NOTHING = "There is no image to predict: the list is empty. Pass at least one."

T = TypeVar("T")

_BATCH_AXES = 4
_IMAGE_KEYS = ("image", "img", "pixel_values")
"""Keys of the picture in data sets of dicts."""

FROM_PICTURES = "; this model resizes and normalises images itself."
"""End of the error for normalised float tensors passed to a model that was fitted on pictures."""


def predictable_images(
    images: Any, *, max_pixels: int = MAX_PIXELS, deep: DeepImages | None = None, on_error: str = "raise"
) -> Iterator[tuple[str, Image.Image | DataError]]:
    """Yield (name, picture) for each image.

    Args:
        images: One or many of: a path; a folder, searched recursively, or of shards; a pattern such as
            "photos/**/*.jpg"; a PIL image; a (H, W, C) uint8 array; a (C, H, W) or (H, W, C) uint8 tensor; a (C, H, W)
            float tensor in [0, 1]; deeper values, as in `as_rgb`; batches (N, ...) of these; map-style datasets of any
            of them; pairs (image, label), whose label is ignored.
        max_pixels: As in `decode`.
        deep: How images deeper than 8 bits are scaled; None as for a model that was fitted on 8-bit images.
        on_error: "raise", or "skip": for an unreadable image the error is yielded, and the next image follows.

    Yields:
        The file's path, or "image 0", "image 1", ... in order; and the upright RGB picture, perhaps the one passed.

    Raises:
        DataError: Something else was passed, a file cannot be decoded, or there are no images.

    Example:
        >>> [(name, image.size) for name, image in predictable_images(np.zeros((2, 5, 4, 3), np.uint8))]
        [('image 0', (4, 5)), ('image 1', (4, 5))]
    """
    deep = DeepImages(None) if deep is None else deep
    yield from _read_each(
        images, lambda thing, name: _picture(thing, deep, name=name, max_pixels=max_pixels), on_error=on_error
    )


def predictable_pixels(
    images: Any,
    preprocessing: Preprocessing,
    *,
    max_pixels: int = MAX_PIXELS,
    deep: DeepImages | None = None,
    on_error: str = "raise",
) -> Iterator[tuple[str, npt.NDArray[np.uint8] | DataError]]:
    """Yield (name, pixels) for each image, in the checkpoint's geometry; files are decoded as in training.

    Args:
        images, max_pixels, deep, on_error: As for `predictable_images`.
        preprocessing: The checkpoint's.

    Yields:
        The name as in `predictable_images`; and what `to_pixels` returns: (3, S, S) uint8, or (V, 3, S, S).

    Raises:
        DataError: As for `predictable_images`.

    Example:
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> [(name, pixels.shape) for name, pixels in predictable_pixels(np.zeros((2, 5, 4, 3), np.uint8), wants)]
        [('image 0', (3, 8, 8)), ('image 1', (3, 8, 8))]
    """
    deep = DeepImages(None) if deep is None else deep

    def read(thing: Any, name: str) -> npt.NDArray[np.uint8]:
        if not isinstance(thing, (Path, Member)):
            return to_pixels(_picture(thing, deep, name=name, max_pixels=max_pixels), preprocessing)
        return read_pixels(
            thing,
            preprocessing,
            name=name,
            max_pixels=max_pixels,
            range_for=lambda found: deep.range_for(found, name=name),
        )

    yield from _read_each(images, read, on_error=on_error)


def list_predictable(images: Any) -> tuple[list[Any], list[str]]:
    """The files and pictures that `predictable_images` would read, none of them read; and why others cannot be.

    Raises:
        DataError: There is nothing at all.
    """
    things, reasons = [], []
    for thing in _single(images):
        if isinstance(thing, _Unreadable):
            reasons.append(thing.reason)
        elif isinstance(thing, Path) and not thing.exists():
            reasons.append(str(ImageError("missing", str(thing))))
        else:
            things.append(thing)
    if not things and not reasons:
        raise DataError(NOTHING)
    return things, reasons


def _read_each(images: Any, read: Callable[[Any, str], T], *, on_error: str) -> Iterator[tuple[str, T | DataError]]:
    """Yield (name, what `read` makes of it) for each image; `on_error` as in `predictable_images`."""
    count = 0
    for thing in _single(images):
        name = str(thing) if isinstance(thing, (Path, Member)) else f"image {count}"
        if isinstance(thing, _Unreadable) and thing.name:
            name = thing.name
        try:
            found: T | DataError = read(thing, name)
        except DataError as error:
            if on_error == "raise":
                raise
            found = error
        yield name, found
        count += 1
    if count == 0:
        raise DataError(NOTHING)


class _Unreadable(NamedTuple):
    """Placeholder for something that is not a readable image, with the reason."""

    reason: str
    name: str = ""


def _picture(thing: Any, deep: DeepImages, *, name: str, max_pixels: int) -> Image.Image:
    if isinstance(thing, _Unreadable):
        raise DataError(thing.reason)
    if isinstance(thing, (Path, Member)):
        thing = open_header(read_bytes(thing), name=name, max_pixels=max_pixels)
    if isinstance(thing, Image.Image):
        found = load_deep(thing, name=name)
        return flatten(thing, found, name=name, value_range=deep.range_for(found, name=name))
    value_range = deep.range_for(deep_values(thing, name=name), name=name)
    return as_rgb(thing, name=name, value_range=value_range, remedy=FROM_PICTURES)


def _single(images: Any) -> Iterator[Any]:
    """Yield file paths and single pictures from any container."""
    if isinstance(images, (str, Path)):
        yield from _files(expand(images))
    elif isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == _BATCH_AXES:
        yield from images
    elif isinstance(images, (Image.Image, Member, np.ndarray, torch.Tensor)):
        yield images
    elif isinstance(images, (tuple, list)) and len(images) == 2 and _is_label(images[1]):
        yield from _single(images[0])
    elif isinstance(images, Mapping) and (key := next((key for key in _IMAGE_KEYS if key in images), None)):
        yield from _single(images[key])
    elif isinstance(images, Dataset) and is_dataset(images):
        yield from _items(images)
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, Mapping)):
        for image in images:
            yield from _single(image)
    elif is_dataset(images):
        yield from _items(images)
    else:
        yield _Unreadable(
            f"Expected a path, a folder, {ACCEPTED}, a dataset, or many of them, got {type(images).__name__}."
        )


def _is_label(value: Any) -> bool:
    """Whether a value is a label of an image or of a batch, not an image."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim <= 1
    return value is None or isinstance(value, (int, float, np.generic))


def _items(dataset: Any) -> Iterator[Any]:
    """Yield the images of a dataset, one per item; labels are ignored."""
    for index in range(len(dataset)):
        try:
            item = dataset[index]
        except OSError as error:  # raised by a dataset's loader for a bad file
            yield _Unreadable(f"Item {index} of the dataset cannot be read: {error}.")
            continue
        yield from _single(item[0] if isinstance(item, (tuple, list)) and item else item)


def _files(path: Path) -> Iterator[ImageFile | _Unreadable]:
    if shards := find_shards(path):
        yield from shard_members(shards)
        return
    name, found = str(path), [path]
    if os.path.isdir(path):
        found, nothing = image_files(path), f"Folder {name!r} contains no image files."
    elif glob.has_magic(name) and not os.path.lexists(path):
        found, nothing = _matching(path), f"No image matches the pattern {name!r}."
    yield from found
    if not found:
        yield _Unreadable(nothing, name)


def _matching(path: Path) -> list[Path]:
    """Files that a pattern matches, and images in folders that it matches, without duplicates, in natural order.

    A pattern that ends in an extension includes every match; any other only images.
    """
    pattern, takes_all = os.path.join(*_escaped_parts(path)), "." in path.name
    found: dict[Path, None] = {}
    for match in sorted(map(Path, glob.iglob(pattern, recursive=True)), key=_by_name):
        if match.is_dir():
            found.update(dict.fromkeys(image_files(match)))
        elif not is_system_name(match.name) and (takes_all or is_image(match)):
            found[match] = None
    return sorted(found, key=_by_name)


def _by_name(path: Path) -> NaturalKey:
    return natural_key(path.as_posix())


def _escaped_parts(path: Path) -> Iterator[str]:
    """Parts of a pattern, with the names of existing folders escaped: `set[1]/*.jpg`."""
    parent = Path()
    for number, part in enumerate(path.parts):
        parent = parent / part
        yield glob.escape(part) if (number == 0 and path.is_absolute()) or os.path.lexists(parent) else part
