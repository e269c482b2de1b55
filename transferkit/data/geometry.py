"""Resizing and cropping of an RGB picture to a checkpoint's input size; the model normalises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.records import Preprocessing

__all__ = ["same_pictures", "to_pixels"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The picture resized and cropped as in the checkpoint's evaluation, not normalised.

    Args:
        image: PIL image of mode "RGB".
        preprocessing: The checkpoint's.

    Returns:
        (3, S, S) uint8, S = `preprocessing.size`; bit-identical to timm's evaluation transform. (V, 3, S, S) if the
        preprocessing has V views, in their order.

    Example:
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> to_pixels(Image.new("RGB", (20, 10), (255, 0, 7)), wants)[:, 0, 0]
        array([255,   0,   7], dtype=uint8)
    """
    if not preprocessing.views:
        picture = _square(image, preprocessing)
        return np.ascontiguousarray(picture[..., ::-1]) if preprocessing.mirrored else picture
    plain: dict[Preprocessing, npt.NDArray[np.uint8]] = {}
    stack = []
    for view in preprocessing.each_view:
        geometry = replace(view, mirrored=False)
        if geometry not in plain:  # a picture and its flipped version are resized once
            plain[geometry] = _square(image, geometry)
        stack.append(plain[geometry][..., ::-1] if view.mirrored else plain[geometry])
    return np.stack(stack)


def _square(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    resized = image.resize(resized_size(image.size, preprocessing), _FILTERS[preprocessing.interpolation])
    left, top = (crop_offset(side, preprocessing.size) for side in resized.size)
    canvas = Image.new("RGB", (preprocessing.size, preprocessing.size), _fill(preprocessing))
    canvas.paste(resized, (-left, -top))
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))


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
