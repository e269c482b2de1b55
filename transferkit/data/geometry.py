"""Resizing and cropping of an RGB picture to a checkpoint's input size; the model normalises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.records import Preprocessing

__all__ = ["Scaled", "resized_size", "same_pictures", "to_pixels", "view_pixels"]

_PILLOW = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}

# What torch.nn.functional.interpolate(antialias=True) calls, which cannot be told both the size and the exact scale.
_TORCH = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
}


@dataclass(frozen=True, eq=False)
class Scaled:
    """An upright RGB picture, perhaps decoded at a fraction of its size.

    Args:
        image: PIL image of mode "RGB"; each side is the full one divided by `scale`, rounded up.
        size: Full (width, height) in pixels, which geometry is computed from.
        scale: 1 for a picture at full size.

    Example:
        >>> Scaled(Image.new("RGB", (125, 94)), (500, 375), 4).extent
        (125.0, 93.75)
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int = 1

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height) of the whole picture in pixels of `image`; what lies beyond is behind the picture's edge."""
        return self.size[0] / self.scale, self.size[1] / self.scale


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The picture resized and cropped as in the checkpoint's evaluation, not normalised.

    Args:
        image: PIL image of mode "RGB".
        preprocessing: The checkpoint's.

    Returns:
        (3, S, S) uint8, S = `preprocessing.size`: timm's evaluation transform, up to rounding with the filters
        "bilinear" and "bicubic" (see docs/speed.md). (V, 3, S, S) if the preprocessing has V views, in their order.

    Example:
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> to_pixels(Image.new("RGB", (20, 10), (255, 0, 7)), wants)[:, 0, 0]
        array([255,   0,   7], dtype=uint8)
    """
    picture = Scaled(image, image.size)
    return view_pixels(lambda _: picture, preprocessing)


def view_pixels(picture_for: Callable[[Preprocessing], Scaled], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """As `to_pixels`, from the picture that `picture_for` decodes for a view."""
    if not preprocessing.views:
        picture = _square(picture_for(preprocessing), preprocessing)
        return np.ascontiguousarray(picture[..., ::-1]) if preprocessing.mirrored else picture
    plain: dict[Preprocessing, npt.NDArray[np.uint8]] = {}
    stack = []
    for view in preprocessing.each_view:
        geometry = replace(view, mirrored=False)
        if geometry not in plain:  # a picture and its flipped version are resized once
            plain[geometry] = _square(picture_for(geometry), geometry)
        stack.append(plain[geometry][..., ::-1] if view.mirrored else plain[geometry])
    return np.stack(stack)


def _square(picture: Scaled, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    resized, size = _resize(picture, preprocessing), preprocessing.size
    square = np.empty((3, size, size), dtype=np.uint8)
    square[:] = np.array(_fill(preprocessing), dtype=np.uint8)[:, None, None]
    (rows, to_rows), (columns, to_columns) = (_overlap(side, size) for side in resized.shape[1:])
    square[:, to_rows, to_columns] = resized[:, rows, columns]
    return square


def _resize(picture: Scaled, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """(3, H, W) uint8, with the filter that widens when it shrinks a picture, as in Pillow.

    Bilinear and bicubic by torch: its vector instructions take a quarter of Pillow's time and give the same values,
    but for the rounding between rows and columns.
    """
    width, height = resized_size(picture.size, preprocessing)
    resample = _TORCH.get(preprocessing.interpolation)
    if resample is None:
        box = (0, 0, *picture.extent)
        resized = picture.image.resize((width, height), _PILLOW[preprocessing.interpolation], box=box)
        return np.asarray(resized).transpose(2, 0, 1)
    pixels = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1)[None]  # channels last, as torch is fastest
    across, down = width / picture.extent[0], height / picture.extent[1]
    found: npt.NDArray[np.uint8] = resample(pixels, [height, width], False, down, across)[0].numpy()
    return found


def _overlap(side: int, size: int) -> tuple[slice, slice]:
    """Where a centred crop of `size` pixels meets a side: in pixels of the side, and of the crop."""
    offset, count = crop_offset(side, size), min(side, size)
    return slice(max(0, offset), max(0, offset) + count), slice(max(0, -offset), max(0, -offset) + count)


def same_pictures(one: Preprocessing, other: Preprocessing, sizes: Iterable[tuple[int, int]]) -> bool:
    """Whether two geometries give the same result for images of these sizes.

    Args:
        one, other: Equal except for their geometry.
        sizes: (width, height) in pixels, each >= 1.

    Example:
        >>> plain = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> squash, pad = (replace(plain, crop_mode=mode) for mode in ("squash", "border"))
        >>> same_pictures(squash, pad, [(20, 20)]), same_pictures(squash, pad, [(20, 20), (30, 20)])
        (True, False)
    """
    return one.mirrored == other.mirrored and all(
        resized_size(size, one) == resized_size(size, other) for size in set(sizes)
    )


def resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) in pixels after the resize, before the crop."""
    side = preprocessing.resize_side
    width, height = size
    if preprocessing.crop_mode == "squash":
        return side, side
    if preprocessing.crop_mode == "border":
        ratio = max(width, height) / side
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    # Multiply before dividing: torchvision truncates here, so the order decides the last pixel.
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def crop_offset(extent: int, size: int) -> int:
    """Offset of a centred crop of `size` pixels on a side of `extent` pixels; negative if the side is padded.

    Both roundings are torchvision's: to even when cropping, down when padding.
    """
    return round((extent - size) / 2) if extent >= size else -((size - extent) // 2)


def _fill(preprocessing: Preprocessing) -> tuple[int, int, int]:
    if preprocessing.crop_mode != "border":
        return 0, 0, 0
    red, green, blue = (round(255 * value) for value in preprocessing.mean)
    return red, green, blue
