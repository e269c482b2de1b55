"""Whatever a person hands over for prediction, as named RGB pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from transferkit.data.arrays import ACCEPTED, as_rgb, deep_values
from transferkit.data.decode import MAX_PIXELS, flatten, load_deep, open_header, read_bytes
from transferkit.data.deep_images import DeepImages
from transferkit.data.folders import image_files
from transferkit.errors import DataError

__all__ = ["predictable_images"]

_BATCH_AXES = 4

FROM_PICTURES = "; this model resizes and normalises images itself."
"""Why float tensors must not be normalised, where a model was fitted on pictures."""


def predictable_images(
    images: Any, *, max_pixels: int = MAX_PIXELS, deep: DeepImages | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the pictures one by one, each with a name.

    Args:
        images: One or many of: a path; a folder, searched through; a PIL image; a (H, W, C) uint8 array; a (C, H, W)
            or (H, W, C) uint8 tensor; a (C, H, W) float tensor in [0, 1]; deeper values, as `as_rgb` takes them;
            batches (N, ...) of these.
        max_pixels: As in `decode`.
        deep: How images deeper than 8 bits are scaled; None as for a model that was fitted on 8-bit images.

    Yields:
        The file's path, or "image 0", "image 1", ... in order; and the upright RGB picture.

    Raises:
        DataError: Something else was given, a file cannot be decoded, or there is no image at all.

    Example:
        >>> [(name, image.size) for name, image in predictable_images(np.zeros((2, 5, 4, 3), np.uint8))]
        [('image 0', (4, 5)), ('image 1', (4, 5))]
    """
    deep = DeepImages(None) if deep is None else deep
    count = 0
    for thing in _single(images):
        name = str(thing) if isinstance(thing, Path) else f"image {count}"
        yield name, _picture(thing, deep, name=name, max_pixels=max_pixels)
        count += 1
    if count == 0:
        raise DataError("There is no image to predict: the list is empty.")


def _picture(thing: Any, deep: DeepImages, *, name: str, max_pixels: int) -> Image.Image:
    if isinstance(thing, Path):
        thing = open_header(read_bytes(thing), name=name, max_pixels=max_pixels)
    if isinstance(thing, Image.Image):
        found = load_deep(thing, name=name)
        return flatten(thing, found, name=name, value_range=deep.range_for(found, name=name))
    value_range = deep.range_for(deep_values(thing, name=name), name=name)
    return as_rgb(thing, name=name, value_range=value_range, remedy=FROM_PICTURES)


def _single(images: Any) -> Iterator[Any]:
    """Paths of files, and single pictures, however they were wrapped."""
    if isinstance(images, (str, Path)):
        yield from _files(Path(images).expanduser())
    elif isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == _BATCH_AXES:
        yield from images
    elif isinstance(images, (Image.Image, np.ndarray, torch.Tensor)):
        yield images
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, Mapping)):
        for image in images:
            yield from _single(image)
    else:
        raise DataError(f"Expected a path, a folder, {ACCEPTED}, or many of them, got {type(images).__name__}.")


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = image_files(path)
    if not found:
        raise DataError(f"Folder {str(path)!r} holds no image files.")
    yield from found
