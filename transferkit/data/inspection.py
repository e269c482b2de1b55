"""Inspection of every image before any work: size, faults, conversions needed, fingerprints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.data.decode import flatten, to_grey
from transferkit.data.deep_pixels import load_deep, may_be_deep
from transferkit.data.depth import DeepPixels, ValueSketch, own_range, sketch_values
from transferkit.data.fingerprints import THUMB_SIDE, difference_hash, digest, thumb
from transferkit.data.headers import count_frames, open_header, read_bytes
from transferkit.data.image_errors import ImageError
from transferkit.data.members import ImageFile
from transferkit.data.tiff import dropped_bands
from transferkit.data.traits import late_traits, traits

__all__ = ["Inspection", "in_threads", "inspect_file", "inspect_picture"]

SEVERAL_FRAMES = ("TIFF", "GIF", "WEBP", "PNG", "MPO", "AVIF")
"""Pillow's names of the formats in which a file may hold several images of the same size."""

T = TypeVar("T")
R = TypeVar("R")

_MAX_THREADS = 16
_NO_THUMB = np.zeros(THUMB_SIDE * THUMB_SIDE, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the audit records about one image.

    Args:
        content_id: Digest of the content, 32 ASCII characters.
        fault: A key of `image_errors.FAULTS`, or "" if the image is usable.
        detail: Details of the fault.
        width, height: In pixels, as stored.
        traits: Conversions needed, as phrases.
        hash: 64-bit difference hash.
        thumb: (256,) uint8 grey levels.
        sketch: Of the values of an image deeper than 8 bits; None for any other.
        frames: Number of frames or pages; only the first is read.
        dropped: Number of bands in the file that are not read.
        format: Pillow's name of the file's format; "" if there is none.
    """

    content_id: bytes
    fault: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    traits: tuple[str, ...] = ()
    hash: int = 0
    thumb: npt.NDArray[np.uint8] = field(default_factory=lambda: _NO_THUMB)
    sketch: ValueSketch | None = None
    frames: int = 1
    dropped: int = 0
    format: str = ""


def inspect_file(path: ImageFile, *, max_pixels: int) -> Inspection:
    """Inspection of a file, read once: digest, header, and a cheap decode of all of it.

    Args:
        path: The file, maybe inside an archive; it need not exist.
        max_pixels: As in `decode`.

    Returns:
        The inspection; faults are reported in it, not raised.
    """
    try:
        encoded = read_bytes(path)
    except ImageError as error:
        return Inspection(content_id=digest(str(path).encode("utf-8", "surrogateescape")), fault=error.kind)
    content_id = digest(encoded)
    try:
        image = open_header(encoded, name=str(path), max_pixels=max_pixels)
        found = inspect_image(image, content_id=content_id, name=str(path))
    except ImageError as error:
        width, height = error.size
        return Inspection(content_id=content_id, fault=error.kind, detail=error.detail, width=width, height=height)
    if found.format not in SEVERAL_FRAMES:
        return found
    return replace(found, frames=count_frames(encoded, name=str(path), max_pixels=max_pixels))


def inspect_image(image: Image.Image, *, content_id: bytes, name: str) -> Inspection:
    """The inspection of an opened PIL image, of any mode, loaded or not.

    Raises:
        ImageError: Pixels are missing, or cannot be converted.
    """
    size, found, dropped = image.size, traits(image), dropped_bands(image)  # before a draft, which changes all three
    deep = load_deep(image, name=name) if may_be_deep(image) else None
    sketch = None if deep is None else sketch_values(deep)
    if sketch is None:
        grey = to_grey(image, name=name)
    else:
        grey = flatten(image, deep, name=name, value_range=own_range(sketch)).convert("L")
    inspection = _fingerprinted(grey, content_id=content_id, size=size, found=late_traits(image, found))
    return replace(inspection, sketch=sketch, dropped=dropped, format=image.format or "")


def inspect_picture(
    picture: Image.Image, *, content_id: bytes, found: tuple[str, ...] = (), deep: DeepPixels | None = None
) -> Inspection:
    """The inspection of a decoded RGB picture, and of the deeper values it was converted from."""
    inspection = _fingerprinted(picture.convert("L"), content_id=content_id, size=picture.size, found=found)
    return inspection if deep is None else replace(inspection, sketch=sketch_values(deep))


def _fingerprinted(
    grey: Image.Image, *, content_id: bytes, size: tuple[int, int], found: tuple[str, ...]
) -> Inspection:
    return Inspection(
        content_id=content_id,
        width=size[0],
        height=size[1],
        traits=found,
        hash=difference_hash(grey),
        thumb=thumb(grey),
    )


def in_threads(work: Callable[[T], R], things: Sequence[T]) -> Iterator[R]:
    """Yield `work(thing)` in order, computed in several threads: reading and decoding release the interpreter lock."""
    pool = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, (os.cpu_count() or 1) + 2))
    try:
        yield from pool.map(work, things)
    finally:
        pool.shutdown(
            wait=True, cancel_futures=True
        )  # an interrupted audit stops at once, not after the remaining images
