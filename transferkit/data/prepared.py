"""Preprocessed float tensors, for a model that was fitted on such tensors."""

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
    """Raise unless the model was fitted on the type of input that the caller passes.

    Args:
        wants: The model's preprocessing.
        preprocessed: Whether the caller passes preprocessed tensors.

    Raises:
        DataError: Pictures for a model fitted on preprocessed tensors, or the reverse.
    """
    if wants.prepared and not preprocessed:
        how = f" ({wants.origin})" if wants.origin else ""
        raise DataError(
            f"This model was fitted on preprocessed tensors{how}. Their preprocessing is unknown here, so it cannot be "
            "applied to pictures and files. Preprocess them with the same transform and call "
            "predict(tensors, preprocessed=True); or adapt from pictures, without preprocessed=True."
        )
    if preprocessed and not wants.prepared:
        raise DataError(
            "preprocessed=True: this model was fitted on pictures, which it resizes and normalises itself, so it does "
            "not accept preprocessed tensors. Leave preprocessed out and pass paths, PIL images, uint8 tensors or "
            "float tensors in [0, 1], as they are before Normalize; or adapt with preprocessed=True."
        )


def prepared_tensors(images: Any, *, shape: tuple[int, int] | None) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield (name, tensor) for each preprocessed image.

    Args:
        images: One or many of: a (3, H, W) float tensor; a batch (N, 3, H, W); a pair of these and their labels; a
            dataset or DataLoader of these.
        shape: (H, W) that the model was fitted on; None skips this check.

    Yields:
        "image 0", "image 1", ... in order; and (3, H, W) float32.

    Raises:
        DataError: Something else was passed, another shape, or nothing.

    Example:
        >>> [(name, tensor.shape) for name, tensor in prepared_tensors(torch.zeros(2, 3, 8, 8), shape=(8, 8))]
        [('image 0', (3, 8, 8)), ('image 1', (3, 8, 8))]
    """
    count = 0
    for value in _single_tensors(images):
        name = f"image {count}"
        if not isinstance(value, torch.Tensor):
            raise DataError(
                f"{name}: this model was fitted on preprocessed tensors. Their preprocessing is unknown here, so it "
                f"cannot be applied to {_what(value)}. Preprocess it with the same transform and call "
                "predict(tensors, preprocessed=True); or adapt from pictures, without preprocessed=True."
            )
        values = as_tensor_values(value, name=name)
        if shape is not None and values.shape[1:] != tuple(shape):
            raise DataError(
                f"{name}: a tensor of shape {values.shape}, but the model was fitted on (3, {shape[0]}, {shape[1]}). "
                "Preprocess it with the same transform as the training images."
            )
        yield name, values
        count += 1
    if count == 0:
        raise DataError("There is no image to predict: the list is empty. Pass at least one.")


def _what(value: Any) -> str:
    return f"the file {str(value)!r}" if isinstance(value, (str, Path)) else f"a {type(value).__name__}"


def _single_tensors(images: Any) -> Iterator[Any]:
    """Yield single-image tensors from any container, and any other value unchanged."""
    if isinstance(images, torch.Tensor) and images.ndim == _BATCH_AXES:
        yield from images
    elif _is_pair(images):
        yield from _single_tensors(images[0])
    elif isinstance(images, (torch.Tensor, np.ndarray, Image.Image, str, bytes, Path, Mapping)):
        yield images
    elif hasattr(images, "__len__") and hasattr(
        images, "__getitem__"
    ):  # iterating over a map-style dataset may never end
        for index in range(len(images)):
            yield from _single_tensors(images[index])
    elif isinstance(images, Iterable):
        for image in images:
            yield from _single_tensors(image)
    else:
        yield images


def _is_pair(value: Any) -> bool:
    """Whether a value is an (image, label) or (batch, labels) pair from a dataset or DataLoader."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[0], torch.Tensor):
        return False
    second = value[1]
    return not (isinstance(second, torch.Tensor) and second.ndim in (_BATCH_AXES - 1, _BATCH_AXES))
