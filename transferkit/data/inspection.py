"""One look at every image before any work: what it is, what is wrong with it, and what it resembles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.data.decode import ImageError, open_header, read_bytes, to_grey, traits
from transferkit.data.fingerprints import THUMB_SIDE, difference_hash, digest, thumb

__all__ = ["Inspection", "in_threads", "inspect_file", "inspect_picture"]

T = TypeVar("T")
R = TypeVar("R")

_MAX_THREADS = 16
_NO_THUMB = np.zeros(THUMB_SIDE * THUMB_SIDE, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one look at an image found.

    Args:
        content_id: 32 ASCII characters that name the content.
        fault: A key of `decode.FAULTS`, or "" if the image is usable.
        width, height: In pixels, as stored.
        traits: What has to be converted, as phrases.
        hash: 64-bit difference hash.
        thumb: (256,) uint8 grey levels.
    """

    content_id: bytes
    fault: str = ""
    width: int = 0
    height: int = 0
    traits: tuple[str, ...] = ()
    hash: int = 0
    thumb: npt.NDArray[np.uint8] = field(default_factory=lambda: _NO_THUMB)


def inspect_file(path: Path, *, max_pixels: int) -> Inspection:
    """Read a file once: its digest, its header, and a cheap decode to the last byte.

    Args:
        path: The file; it need not exist.
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
        (width, height), found = image.size, traits(image)  # before the draft, which changes both
        grey = to_grey(image, name=str(path))
    except ImageError as error:
        width, height = error.size
        return Inspection(content_id=content_id, fault=error.kind, width=width, height=height)
    return _fingerprinted(grey, content_id=content_id, size=(width, height), found=found)


def inspect_picture(picture: Image.Image, *, content_id: bytes, found: tuple[str, ...] = ()) -> Inspection:
    """The inspection of a decoded RGB picture."""
    return _fingerprinted(picture.convert("L"), content_id=content_id, size=picture.size, found=found)


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
    """Yield `work(thing)` in order, computed in a few threads: reading and decoding release the interpreter lock."""
    pool = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, (os.cpu_count() or 1) + 2))
    try:
        yield from pool.map(work, things)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # an interrupted audit stops now, not after every image
