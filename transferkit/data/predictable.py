"""Whatever a person hands over for prediction, as named RGB pictures or as prepared tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.data.arrays import ACCEPTED, as_rgb, as_tensor_values, deep_values
from transferkit.data.decode import MAX_PIXELS, flatten, load_deep, open_header, read_bytes
from transferkit.data.depth import DeepPixels, Range, ValueSketch, sketch_values
from transferkit.data.folders import image_files
from transferkit.data.ranges import check_new
from transferkit.errors import DataError

__all__ = ["DeepImages", "predictable_images", "prepared_tensors"]

_BATCH_AXES = 4

FROM_PICTURES = "; this model resizes and normalises images itself."
"""Why float tensors must not be normalised, where a model was fitted on pictures."""

UNIT, EIGHT_BIT = (0.0, 1.0), (0.0, 255.0)
"""Black and white of floats and of integers whose type says nothing, where a model was fitted on 8-bit pictures."""


WHOLE = (UNIT, EIGHT_BIT, (0.0, 65535.0))
"""Ranges in which 8-bit images mean the same as deeper ones."""


class DeepImages:
    """Deep images that a model meets in one call: scaled as its training images were, and what is to be said of them.

    Args:
        value_range: (black, white) of the model; None if its training images had 8 bits.
    """

    def __init__(self, value_range: Range | None) -> None:
        self.value_range = value_range
        self._sketches: list[ValueSketch] = []
        self._used: Range | None = value_range
        self._plain = 0

    def range_for(self, deep: DeepPixels | None, *, name: str) -> Range | None:
        """Black and white of the next image.

        Raises:
            DataError: Neither the model nor the image says what is black and what is white.
        """
        if deep is None:
            self._plain += 1
            return self.value_range
        sketch = sketch_values(deep)
        self._sketches.append(sketch)
        if self.value_range is not None:
            return self.value_range
        used = sketch.declared or (UNIT if sketch.family == "f" else EIGHT_BIT)
        seen = sketch.quantiles
        if sketch.declared is None and seen and not used[0] <= seen[0] <= seen[-1] <= used[1]:
            raise DataError(
                f"{name}: {sketch.kind} values from {seen[0]:.4g} to {seen[-1]:.4g}, and this model was fitted on "
                "8-bit images: what is black and what is white is not known. Convert the images to 8 bits as its "
                "training images were, or adapt again on images like these."
            )
        self._used = used
        return used

    @property
    def note(self) -> str:
        """A sentence where deep images do not go with the model; else empty."""
        if self.value_range not in (None, *WHOLE) and self._plain:
            return (
                f"{self._plain} of these images have 8 bits, and the model was fitted on deeper ones: they are taken "
                "as they are, 0 for black and 255 for white."
            )
        found = "" if self._used is None else check_new(self._sketches, self._used)
        if self.value_range is None and self._sketches:
            return (
                f"{len(self._sketches)} of these images are deeper than 8 bits, and the model was fitted on 8-bit "
                f"ones: each is scaled by what its file declares. {found}"
            ).strip()
        return found


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


def prepared_tensors(images: Any, *, shape: tuple[int, int] | None) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield tensors that were prepared outside one by one, as they are, each with a name.

    Args:
        images: One or many of: a (3, H, W) float tensor; a batch (N, 3, H, W); a pair of such and its labels; a dataset
            or DataLoader of these.
        shape: (H, W) that the model was fitted with; None does not check it.

    Yields:
        "image 0", "image 1", ... in order; and (3, H, W) float32.

    Raises:
        DataError: Something else was given, another shape, or nothing at all.

    Example:
        >>> [(name, tensor.shape) for name, tensor in prepared_tensors(torch.zeros(2, 3, 8, 8), shape=(8, 8))]
        [('image 0', (3, 8, 8)), ('image 1', (3, 8, 8))]
    """
    count = 0
    for value in _single_tensors(images):
        name = f"image {count}"
        if not isinstance(value, torch.Tensor):
            raise DataError(
                f"{name}: this model was fitted on tensors that were prepared outside, and what was done to them is "
                f"not known here, so it cannot be done to {_what(value)}. Prepare it with the same transform and give "
                "the tensors, predict(tensors, preprocessed=True); or adapt from pictures, without preprocessed=True."
            )
        values = as_tensor_values(value, name=name)
        if shape is not None and values.shape[1:] != tuple(shape):
            raise DataError(
                f"{name}: a tensor of shape {values.shape}, and the model was fitted on (3, {shape[0]}, {shape[1]}). "
                "Prepare it with the transform that was used then."
            )
        yield name, values
        count += 1
    if count == 0:
        raise DataError("There is no image to predict: the list is empty.")


def _what(value: Any) -> str:
    return f"the file {str(value)!r}" if isinstance(value, (str, Path)) else f"a {type(value).__name__}"


def _single_tensors(images: Any) -> Iterator[Any]:
    """Tensors of one image each, however they were wrapped; anything else as it is."""
    if isinstance(images, torch.Tensor) and images.ndim == _BATCH_AXES:
        yield from images
    elif _is_pair(images):
        yield from _single_tensors(images[0])
    elif isinstance(images, (torch.Tensor, np.ndarray, Image.Image, str, bytes, Path, Mapping)):
        yield images
    elif hasattr(images, "__len__") and hasattr(images, "__getitem__"):  # a map-style dataset may not end by itself
        for index in range(len(images)):
            yield from _single_tensors(images[index])
    elif isinstance(images, Iterable):
        for image in images:
            yield from _single_tensors(image)
    else:
        yield images


def _is_pair(value: Any) -> bool:
    """Whether a value is an image, or a batch of them, with labels: what a dataset or a DataLoader yields."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[0], torch.Tensor):
        return False
    second = value[1]
    return not (isinstance(second, torch.Tensor) and second.ndim in (_BATCH_AXES - 1, _BATCH_AXES))


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
