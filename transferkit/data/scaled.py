"""From an image file to a network's input; JPEG is decoded at a fraction of its size if the geometry shrinks it anyway.

The frozen pass, training and prediction all read files here, so they get the same pixels. Pictures in memory (PIL
images, arrays, tensors) take `to_pixels`, at full size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.data.decode import flatten, orientation_of
from transferkit.data.deep_pixels import load_deep
from transferkit.data.depth import DeepPixels, Range
from transferkit.data.geometry import Scaled, resized_size, view_pixels
from transferkit.data.headers import open_header, read_bytes
from transferkit.data.members import ImageFile
from transferkit.records import Preprocessing

__all__ = ["MARGIN", "SCALES", "choose_scale", "read_pixels"]

SCALES = (8, 4, 2)
"""Fractions of its size at which libjpeg decodes a JPEG: it computes fewer frequencies of every block of 8 x 8."""

MARGIN = 2.0
"""How many times the resize has to shrink, at least, what was decoded at a fraction. Mean difference from decoding at
full size, in grey levels of 255, on sharp photos: 2.1 at 1, 1.1 at 1.5, 0.7 at 2, 0.4 at 3 (scripts/bench_input.py)."""

_JPEG = ("JPEG", "MPO")
"""Pillow's names of the formats; an MPO is a JPEG with further pictures behind it."""

_MIRRORED = frozenset({2, 3, 4, 6, 7, 8})
"""EXIF orientations that move the stored right or lower edge to the left or the top."""

_QUARTER_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""


def read_pixels(
    file: str | ImageFile | bytes,
    preprocessing: Preprocessing,
    *,
    name: str,
    max_pixels: int,
    range_for: Callable[[DeepPixels | None], Range | None],
) -> npt.NDArray[np.uint8]:
    """The file's picture in the checkpoint's geometry, not normalised.

    Each view is decoded at its own scale: a view has the same pixels alone and among others.

    Args:
        file: A path, a member of an archive, or the encoded bytes.
        preprocessing: The checkpoint's.
        name: What to call the file in an error.
        max_pixels: Width times height, as stored, above which the header alone is refused.
        range_for: Black and white, as in `decode`, for the values of an image deeper than 8 bits, or for None: any
            other image. Called once.

    Returns:
        (3, S, S) uint8; (V, 3, S, S) if the preprocessing has V views.

    Raises:
        DataError: As for `decode`.

    Example:
        >>> import io
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (640, 480), (255, 0, 0)).save(buffer, format="JPEG")
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> read_pixels(
        ...     buffer.getvalue(), wants, name="red", max_pixels=10**6, range_for=lambda deep: None
        ... ).shape
        (3, 8, 8)
    """
    encoded = read_bytes(file)
    header = open_header(encoded, name=name, max_pixels=max_pixels)
    is_jpeg = header.format in _JPEG
    turn = orientation_of(header) if is_jpeg else 1
    size = header.size[::-1] if turn in _QUARTER_TURNED else header.size
    decoded: dict[int, Scaled] = {}

    def picture_for(view: Preprocessing) -> Scaled:
        scale = choose_scale(size, view, whole=turn in _MIRRORED) if is_jpeg else 1
        if scale not in decoded:
            opened = open_header(encoded, name=name, max_pixels=max_pixels) if decoded else header
            black_white = (lambda _: None) if decoded else range_for  # a second scale is a JPEG's, which is never deep
            rgb = _decode_at(opened, scale, name=name, range_for=black_white)
            decoded[scale] = Scaled(rgb, rgb.size if scale == 1 else size, scale)
        return decoded[scale]

    return view_pixels(picture_for, preprocessing)


def choose_scale(size: tuple[int, int], preprocessing: Preprocessing, *, whole: bool = False) -> int:
    """The fraction (1/1, 1/2, 1/4 or 1/8) of its size at which a JPEG is decoded for a geometry.

    Args:
        size: (width, height) of the upright picture, in pixels.
        preprocessing: With a single view.
        whole: Whether the scale must divide both sides. Else the decoder rounds up, and the last row and column are in
            part behind the picture's edge, which `Scaled.extent` can express at the right and below only.

    Returns:
        The denominator: 1 (nothing is saved), 2, 4 or 8.

    Example:
        >>> wants = Preprocessing(size=96, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
        >>> [choose_scale(size, wants) for size in ((300, 300), (500, 375), (2000, 1500))]
        [1, 1, 4]
    """
    if preprocessing.interpolation == "nearest":  # shows single pixels, which no fraction contains
        return 1
    resized = resized_size(size, preprocessing)
    shrinkage = min(side / target for side, target in zip(size, resized, strict=True))
    fits = (scale for scale in SCALES if scale * MARGIN <= shrinkage)
    return next((scale for scale in fits if not (whole and (size[0] % scale or size[1] % scale))), 1)


def _decode_at(
    image: Image.Image, scale: int, *, name: str, range_for: Callable[[DeepPixels | None], Range | None]
) -> Image.Image:
    """An opened image as upright RGB, at a fraction of its size."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    deep = load_deep(image, name=name)
    return flatten(image, deep, name=name, value_range=range_for(deep))
