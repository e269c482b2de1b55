"""Ways in which pictures get worse, for rehearsals on training images: pure, prepared pixels in, pixels out."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

__all__ = ["ALTERATIONS"]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _noise(pixels: Floats, deviation: float, scale: float) -> Floats:
    """Gaussian noise in the pixels of the file, which a smaller picture is enlarged with."""
    side = _own_side(pixels, scale)
    shape = (*pixels.shape[:-2], side, side)
    noise = np.random.default_rng(0).normal(0, deviation, shape).astype(np.float32)
    return pixels + _resized(noise, pixels.shape[-1])


def _own_side(pixels: Floats, scale: float) -> int:
    return max(2, round(min(scale, 1.0) * pixels.shape[-1]))


def _resized(pixels: Floats, side: int) -> Floats:
    if pixels.shape[-1] == side:
        return pixels
    images = torch.from_numpy(pixels).reshape(-1, *pixels.shape[-3:])
    made = functional.interpolate(images, size=side, mode="bicubic", align_corners=False, antialias=True)
    return np.asarray(made.reshape(*pixels.shape[:-2], side, side).numpy())


def _smooth(pixels: Floats, deviation: float, scale: float) -> Floats:
    """Gaussian blur, deviation as a share of the side."""
    reach = max(1, int(np.ceil(2.5 * deviation * pixels.shape[-1])))
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / (deviation * pixels.shape[-1])) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = torch.from_numpy(pixels).reshape(-1, 1, *pixels.shape[-2:])
    rows = functional.conv2d(functional.pad(rows, (reach, reach, 0, 0), mode="replicate"), kernel)
    rows = functional.conv2d(functional.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3))
    return np.asarray(rows.reshape(pixels.shape).numpy())


def _fade(pixels: Floats, kept: float, scale: float) -> Floats:
    middle = pixels.mean(axis=(-3, -2, -1), keepdims=True)
    return np.asarray(middle + kept * (pixels - middle))


def _brighten(pixels: Floats, added: float, scale: float) -> Floats:
    return pixels + np.float32(added)


def _coarsen(pixels: Floats, kept: float, scale: float) -> Floats:
    side = pixels.shape[-1]
    images = torch.from_numpy(pixels).reshape(-1, *pixels.shape[-3:])
    small = functional.interpolate(images, size=max(2, round(kept * side)), mode="area")
    return np.asarray(functional.interpolate(small, size=side, mode="nearest").reshape(pixels.shape).numpy())


def _compress(pixels: Floats, quality: float, scale: float) -> Floats:
    made = []
    small = _resized(pixels, _own_side(pixels, scale)).round().clip(0, 255).astype(np.uint8)
    for image in small.reshape(-1, *small.shape[-3:]):
        kept = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(kept, "JPEG", quality=int(quality))
        made.append(np.asarray(Image.open(kept), dtype=np.float32).transpose(2, 0, 1))
    return _resized(np.stack(made).reshape(small.shape), pixels.shape[-1])


def _tint(pixels: Floats, amount: float, scale: float) -> Floats:
    return pixels * np.array([1 + amount, 1.0, 1 - amount], dtype=np.float32)[:, None, None]


def _grey(pixels: Floats, amount: float, scale: float) -> Floats:
    return np.repeat(pixels.mean(axis=-3, keepdims=True), 3, axis=-3)


Alter = Callable[[Floats, float, float], Floats]
"""Values, how much, and the side of the files as a share of the input's -> values."""

GRADED: dict[str, tuple[Alter, tuple[float, ...]]] = {
    "grey": (_grey, (1.0,)),
    "noise": (_noise, (12, 30, 55)),
    "blur": (_smooth, (0.01, 0.022, 0.045)),
    "low contrast": (_fade, (0.5, 0.25, 0.12)),
    "brighter": (_brighten, (60,)),
    "darker": (_brighten, (-60,)),
    "coarse pixels": (_coarsen, (0.5, 0.3, 0.18)),
    "compression": (_compress, (12,)),
    "warm light": (_tint, (0.35,)),
    "cold light": (_tint, (-0.35,)),
}


def _altered(alter: Alter, amount: float, pixels: Pixels, scale: float = 1.0) -> Pixels:
    return np.asarray(alter(pixels.astype(np.float32), amount, scale).round().clip(0, 255).astype(np.uint8))


ALTERATIONS: dict[str, Callable[..., Pixels]] = {
    f"{name} {amount:g}": partial(_altered, alter, amount)
    for name, (alter, amounts) in GRADED.items()
    for amount in amounts
}
"""Name -> (..., 3, S, S) uint8, and the side of the files as a share of S -> the same, altered; equal pixels give
equal results."""
