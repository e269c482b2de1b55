"""Float tensors that were prepared outside, for a model that was fitted on such tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data.arrays import as_tensor_values
from transferkit.records import Preprocessing

__all__ = ["check_prepared", "prepared_tensors"]

_BATCH_AXES = 4


def check_prepared(wants: Preprocessing, *, preprocessed: bool) -> None:
    """Whether what the caller says of the images is what the model was fitted on.

    Args:
        wants: The model's.
        preprocessed: Whether the images are prepared tensors, as the caller says.

    Raises:
        DataError: Pictures for a model of prepared tensors, or the other way round.
    """
    if wants.prepared and not preprocessed:
        how = f" ({wants.origin})" if wants.origin else ""
        raise DataError(
            f"This model was fitted on tensors that were prepared outside{how}, and what was done to them is not known "
            "here, so pictures and files cannot be prepared for it. Prepare them with the same transform and call "
            "predict(tensors, preprocessed=True); or adapt from pictures, without preprocessed=True."
        )
    if preprocessed and not wants.prepared:
        raise DataError(
            "preprocessed=True: this model was fitted on pictures, which it resizes and normalises itself, so prepared "
            "tensors do not fit it. Leave preprocessed out and give paths, PIL images, uint8 tensors or float tensors "
            "in [0, 1], as they are before Normalize; or adapt with preprocessed=True."
        )


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
