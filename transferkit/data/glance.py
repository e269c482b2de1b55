"""A glance at image files for a plan: what an earlier audit remembers, a few that are read, the others only listed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from transferkit.data.fingerprints import THUMB_SIDE, digest
from transferkit.data.inspection import Inspection, in_threads, inspect_file
from transferkit.data.members import ImageFile, Member
from transferkit.data.remembered import recall_files

__all__ = ["Glance"]

SAMPLE = 32
"""Files that are read: their seconds and sizes stand for those of the others."""


class Glance:
    """How files are inspected where only their number and names are needed.

    A file that is only listed counts as intact and like no other; its size is that of the files that were read.

    Args:
        folder: Of the audit's cache, which is only read.
        max_pixels: As in `decode`.

    Attributes:
        files: Number of files seen.
        unread: Those that an audit will have to read.
        listed: Those of them that were not read now.
        seconds: An inspection of one file, wall-clock; 0 if none was read.
    """

    def __init__(self, folder: Path, *, max_pixels: int) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self.files = self.unread = self.listed = 0
        self.seconds = 0.0

    def __call__(self, paths: Sequence[ImageFile]) -> Iterator[Inspection]:
        """The inspection of every file, in order."""
        known = recall_files(paths, max_pixels=self._max_pixels, folder=self._folder)
        unread = [at for at, found in enumerate(known) if found is None]
        self.files, self.unread = len(paths), len(unread)
        # Evenly spaced: files of one class lie together. What is missing or empty is a fault, which costs nothing.
        chosen = {unread[at] for at in np.linspace(0, len(unread) - 1, min(SAMPLE, len(unread))).astype(int).tolist()}
        read = self._read(
            {at: paths[at] for at in sorted(chosen | {at for at in unread if not _has_content(paths[at])})}
        )
        self.listed = len(unread) - len(read)
        seen = [one for one in (*known, *read.values()) if one is not None and not one.fault]
        size = tuple(int(side) for side in np.median([(one.width, one.height) for one in seen], axis=0)) if seen else ()
        for at, path in enumerate(paths):
            found = known[at] or read.get(at)
            yield _listed(path, size or (1, 1)) if found is None else found

    def _read(self, wanted: dict[int, ImageFile]) -> dict[int, Inspection]:
        paths = list(wanted.values())
        if not paths:
            return {}
        inspect_file(paths[0], max_pixels=self._max_pixels)  # loads the decoder
        began = time.perf_counter()
        found = list(in_threads(lambda path: inspect_file(path, max_pixels=self._max_pixels), paths))
        self.seconds = (time.perf_counter() - began) / len(paths)
        return dict(zip(wanted, found, strict=True))


def _has_content(path: ImageFile) -> bool:
    if isinstance(path, Member):
        return path.size > 0
    try:
        return path.stat().st_size > 0
    except (OSError, ValueError):
        return False


def _listed(path: ImageFile, size: tuple[int, ...]) -> Inspection:
    """Stands for a file that was not read: intact, with a hash and grey levels that are near no other's."""
    name = str(path).encode("utf-8", "surrogateescape")
    noise = hashlib.shake_128(name).digest(THUMB_SIDE * THUMB_SIDE + 8)
    thumb = np.frombuffer(noise[8:], dtype=np.uint8)
    return Inspection(
        content_id=digest(name), width=size[0], height=size[1], hash=int.from_bytes(noise[:8], "big"), thumb=thumb
    )
