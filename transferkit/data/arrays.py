"""Pictures that arrive as PIL images, arrays or tensors: turned into 8-bit RGB, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.data.decode import to_rgb
from transferkit.errors import DataError

__all__ = ["as_rgb", "as_tensor_values", "render"]

_CHANNELS = (1, 3, 4)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TOLERANCE = 1e-3
"""How far a float may leave [0, 1] by resampling before it counts as normalised."""

ACCEPTED = "a PIL image, a uint8 array (H, W, 3), a uint8 tensor (3, H, W) or a float tensor (3, H, W) in [0, 1]"


def as_rgb(value: Any, *, name: str) -> Image.Image:
    """One picture as upright 8-bit RGB.

    Args:
        value: PIL image; (H, W) or (H, W, C) uint8 array; (H, W), (C, H, W) or (H, W, C) uint8 tensor; float tensor of
            the same shapes in [0, 1]. C is 1, 3 or 4.
        name: What to call it in an error.

    Raises:
        DataError: It is something else, or a float picture leaves [0, 1].

    Example:
        >>> as_rgb(torch.ones(3, 2, 5), name="row 0").size
        (5, 2)
    """
    if isinstance(value, Image.Image):
        return to_rgb(value, name=name)
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu()
        pixels = _eight_bit(values, name=name) if values.is_floating_point() else values.numpy()
        return _from_uint8(pixels, channels_first=True, name=name)
    if isinstance(value, np.ndarray):
        return _from_uint8(value, channels_first=False, name=name)
    raise DataError(f"{name}: expected {ACCEPTED}, got {type(value).__name__}.")


def _eight_bit(values: torch.Tensor, *, name: str) -> npt.NDArray[Any]:
    values = values.float()
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails as well
        raise DataError(
            f"{name}: float values in [{low:.3g}, {high:.3g}], expected [0, 1]. Images must not be normalised "
            "beforehand, because the checkpoint's own preprocessing is applied. Return PIL images or tensors in "
            "[0, 1], or pass preprocessed=True to have float tensors taken as they are."
        )
    pixels: npt.NDArray[Any] = values.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return pixels


def _from_uint8(pixels: npt.NDArray[Any], *, channels_first: bool, name: str) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise DataError(f"{name}: expected {ACCEPTED}, got {pixels.dtype} values of shape {pixels.shape}.")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"{name}: expected {ACCEPTED}, got shape {pixels.shape}.")
    pixels = _channels_last(pixels, prefer_first=channels_first, name=name)
    mode = _MODES[pixels.shape[2]]
    flat = np.ascontiguousarray(pixels[:, :, 0] if mode == "L" else pixels)
    return to_rgb(Image.fromarray(flat), name=name)


def _channels_last(pixels: npt.NDArray[Any], *, prefer_first: bool, name: str) -> npt.NDArray[Any]:
    first, last = pixels.shape[0] in _CHANNELS, pixels.shape[2] in _CHANNELS
    if not (first or last):
        raise DataError(f"{name}: expected 1, 3 or 4 channels on the first or last axis, got shape {pixels.shape}.")
    return pixels.transpose(1, 2, 0) if first and (prefer_first or not last) else pixels


def as_tensor_values(value: Any, *, name: str) -> npt.NDArray[np.float32]:
    """A preprocessed image, taken as it is.

    Args:
        value: (3, H, W) float tensor.
        name: What to call it in an error.

    Returns:
        (3, H, W) float32.

    Raises:
        DataError: It is anything but such a tensor, or not finite.
    """
    if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[0] == 3):
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise DataError(f"{name}: preprocessed=True expects float tensors (3, H, W), got {got}.")
    values: npt.NDArray[np.float32] = value.detach().cpu().to(torch.float32).numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{name}: the preprocessed tensor holds NaN or infinity.")
    return values


def render(values: npt.NDArray[np.float32]) -> Image.Image:
    """A picture for people of a preprocessed (3, H, W) tensor: its own range stretched over black to white."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(1, 2, 0)))
