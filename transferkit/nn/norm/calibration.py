"""Calibration images for normalisation: accepted forms and checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from transferkit.core.errors import DataError

__all__ = ["Images", "calibration_batches", "calibration_images"]

Images = torch.Tensor | Iterable[Any]
"""(N, 3, S, S) float, normalised for the checkpoint, or an iterable of such: batches of a loader, whose labels are
ignored."""

BATCH = 64
"""Batch size if all images are in one tensor: enough to estimate moments, at low memory."""


def calibration_batches(images: Images, *, like: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the images in batches, checked, in the module's precision and on its device.

    Args:
        images: One tensor is split into equal batches of at most `BATCH`; batches are used as they are.
        like: The network to calibrate.

    Raises:
        DataError: If there are none, or some have a wrong shape or dtype, or are not finite.

    Example:
        >>> [len(batch) for batch in calibration_batches(torch.zeros(65, 3, 8, 8), like=nn.Conv2d(3, 1, 1))]
        [33, 32]
    """
    channels = next((layer.in_channels for layer in like.modules() if isinstance(layer, nn.Conv2d)), 3)
    parameter = next((tensor for tensor in like.state_dict().values() if tensor.is_floating_point()), torch.empty(0))
    count = 0
    for number, given in enumerate(_several(images)):
        batch = given[0] if isinstance(given, (tuple, list)) and given else given
        _check(batch, number, channels)
        count += len(batch)
        yield batch.to(parameter)
    if not count:
        raise DataError("Calibration needs images, got none. Pass a tensor (N, 3, S, S), N >= 1.")


def calibration_images(images: Images, *, like: nn.Module) -> torch.Tensor:
    """All images in one tensor; see `calibration_batches`.

    Raises:
        DataError: As there, or if their sizes differ.
    """
    batches = list(calibration_batches(images, like=like))
    if len(shapes := sorted({tuple(batch.shape[1:]) for batch in batches})) > 1:
        raise DataError(f"Calibration images must have one size, got {shapes[0]} and {shapes[1]}. Resize them first.")
    return torch.cat(batches)


def _several(images: object) -> Iterable[Any]:
    if isinstance(images, torch.Tensor):
        return torch.tensor_split(images, math.ceil(len(images) / BATCH)) if images.ndim and len(images) else [images]
    if not isinstance(images, Iterable):
        raise DataError(f"Calibration needs a tensor of images (N, 3, S, S), or batches of them, got {images!r}.")
    return images


def _check(batch: object, number: int, channels: int) -> None:
    where = f"Calibration batch {number}"
    if not isinstance(batch, torch.Tensor):
        raise DataError(
            f"{where} must be a tensor of images, or begin with one, got {type(batch).__name__}. "
            'For a loader of dicts, pass the images: (batch["image"] for batch in loader).'
        )
    if batch.ndim != 4 or batch.shape[1] != channels or not batch.numel():
        raise DataError(f"{where} must be images (N, {channels}, S, S), N >= 1, got shape {tuple(batch.shape)}.")
    if not batch.is_floating_point():
        raise DataError(f"{where} must be float, normalised for the checkpoint, got {batch.dtype}.")
    if not bool(batch.isfinite().all()):
        raise DataError(f"{where} contains NaN or infinite values. Check for images that were decoded wrongly.")
