"""Conversion of PIL images, arrays and tensors to 8-bit RGB, or an error with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data.decode import to_rgb
from transferkit.data.depth import DeepPixels, Range, fallback_range, sketch_values, to_8_bit

__all__ = ["ACCEPTED", "IN_A_DATASET", "as_rgb", "as_tensor_values", "deep_values", "render"]

_CHANNELS = (1, 3, 4)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TOLERANCE = 1e-3
"""How far resampling may move a float value outside [0, 1]; beyond, the picture counts as normalised."""

ACCEPTED = (
    "a PIL image, a uint8 array (H, W, 3), a uint8 tensor (3, H, W), a float tensor (3, H, W) in [0, 1], or deeper "
    "values as an integer array (H, W) or (H, W, 3), or a float array (H, W)"
)

IN_A_DATASET = ", or pass preprocessed=True to use float tensors unchanged."
"""End of the error for float tensors outside [0, 1] in training data: the other remedy."""


def as_rgb(value: Any, *, name: str, value_range: Range | None = None, remedy: str = IN_A_DATASET) -> Image.Image:
    """The picture as upright 8-bit RGB.

    Args:
        value: PIL image; (H, W) or (H, W, C) uint8 array; (H, W), (C, H, W) or (H, W, C) uint8 tensor; float tensor of
            the same shapes in [0, 1], or array of three or four channels; bool instead of uint8. C is 1, 3 or 4. Or
            values deeper than 8 bits: any other integers (C is 1 or 3), a float array of one channel.
        name: Its name in errors.
        value_range: (black, white) of values deeper than 8 bits, as in `decode`.
        remedy: End of the error for float tensors outside [0, 1]: the other remedy.

    Raises:
        DataError: It is something else, or a float picture has values outside [0, 1].

    Example:
        >>> as_rgb(torch.ones(3, 2, 5), name="row 0").size
        (5, 2)
        >>> as_rgb(np.full((2, 5), 1020, np.uint16), name="row 0", value_range=(1000, 1100)).getpixel((0, 0))
        (51, 51, 51)
    """
    if isinstance(value, Image.Image):
        return to_rgb(value, name=name, value_range=value_range)
    if (deep := deep_values(value, name=name)) is not None:
        levels = to_8_bit(deep, value_range or fallback_range(sketch_values(deep)))
        return _from_uint8(levels, channels_first=False, name=name)
    is_tensor = isinstance(value, torch.Tensor)
    if not is_tensor and not isinstance(value, np.ndarray):
        raise DataError(f"{name}: expected {ACCEPTED}, got {type(value).__name__}.")
    pixels: npt.NDArray[Any] = value.detach().cpu().float().numpy() if _is_float_tensor(value) else np.asarray(value)
    if pixels.dtype.kind == "f":
        pixels = _eight_bit(pixels, name=name, remedy=remedy)
    elif pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    return _from_uint8(pixels, channels_first=is_tensor, name=name)


def _is_float_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def deep_values(value: Any, *, name: str) -> DeepPixels | None:
    """The values of an array or tensor deeper than 8 bits, (H, W) or (H, W, 3); None for any other.

    Float tensors are never deep: in [0, 1] they are 8-bit pictures, elsewhere they may be normalised.
    """
    if not isinstance(value, (np.ndarray, torch.Tensor)) or _is_float_tensor(value):
        return None
    values = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if kind not in "iuf" or values.dtype == np.uint8 or values.ndim not in (2, 3) or 0 in values.shape:
        return None
    if values.ndim == 3:
        values = _channels_last(values, prefer_first=isinstance(value, torch.Tensor), name=name)
        if values.shape[2] == 1:
            values = values[:, :, 0]
        elif kind == "f":
            return None
        elif values.shape[2] != 3:
            raise DataError(f"{name}: expected 1 or 3 channels of {values.dtype} values, got shape {values.shape}.")
    declared = (float(np.iinfo(values.dtype).min), float(np.iinfo(values.dtype).max)) if kind != "f" else None
    words = {"u": "unsigned", "i": "signed", "f": "float"}[kind]
    return DeepPixels(values, f"{bits}-bit {words}", declared if bits <= 16 else None)


def _eight_bit(values: npt.NDArray[Any], *, name: str, remedy: str) -> npt.NDArray[np.uint8]:
    """[0, 1] -> 0..255."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails as well
        raise DataError(
            f"{name}: float values in [{low:.3g}, {high:.3g}], expected [0, 1]. Images must not be normalised "
            f"beforehand, because the checkpoint's own preprocessing is applied. {_likely_fix(low, high)}{remedy}"
        )
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(values.astype(np.float32), 0, 1) * np.float32(255)).astype(np.uint8)
    return levels


def _likely_fix(low: float, high: float) -> str:
    """The most likely scaling of values outside [0, 1], and how to undo it."""
    if low >= 0 and high <= 255:
        return "These look like grey levels from 0 to 255: divide by 255, or pass them as uint8"
    if low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE:
        return "These look scaled to [-1, 1]: pass (x + 1) / 2, or the images before that step"
    return "Pass PIL images or tensors in [0, 1], as they are before Normalize"


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
    """A preprocessed image tensor, checked and otherwise unchanged.

    Args:
        value: (3, H, W) float tensor.
        name: Its name in errors.

    Returns:
        (3, H, W) float32.

    Raises:
        DataError: It is anything but such a tensor, or not finite.
    """
    if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[0] == 3):
        is_array = isinstance(value, (torch.Tensor, np.ndarray))
        got = f"{value.dtype} {tuple(value.shape)}" if is_array else type(value).__name__
        raise DataError(f"{name}: preprocessed=True expects float tensors (3, H, W), got {got}.")
    values: npt.NDArray[np.float32] = value.detach().cpu().to(torch.float32).numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{name}: the preprocessed tensor holds NaN or infinity.")
    return values


def render(values: npt.NDArray[np.float32]) -> Image.Image:
    """A displayable picture of a preprocessed (3, H, W) tensor, its value range stretched from black to white."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(1, 2, 0)))
