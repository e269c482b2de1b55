"""Image files without labels, for a frozen pass beside labelled ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError, list_problems
from transferkit.data.depth import Range
from transferkit.data.inventory import UNSPLIT, FileListing, Reader, read_files
from transferkit.data.members import Member
from transferkit.data.predictable import list_predictable
from transferkit.records import Preprocessing

__all__ = ["UnlabelledImages", "open_unlabelled"]

SHOWN = 5


class UnlabelledImages:
    """Files without labels.

    Args:
        names: N of them.
        content_ids: (N,) dtype "S32", hex digests of the contents.
        reader: Reads them.
        rows: (N,) rows of the reader.
        value_range: (black, white) of images deeper than 8 bits; None if there are none.
        left_out: Files that are not among them, because they cannot be read or are copies of known images.
    """

    thread_safe = True

    def __init__(
        self,
        names: Sequence[str],
        content_ids: npt.NDArray[np.bytes_],
        reader: Reader,
        rows: npt.NDArray[np.int64],
        *,
        value_range: Range | None,
        left_out: int,
    ) -> None:
        self.names, self.content_ids, self.left_out = names, content_ids, left_out
        self._reader, self._rows, self._range = reader, rows, value_range

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
        """(3, S, S) uint8, resized and cropped as the checkpoint needs it."""
        return self._reader.pixels(int(self._rows[index]), preprocessing, preprocessing.value_range or self._range)


def open_unlabelled(
    source: Any,
    *,
    known: Collection[bytes] = (),
    most: int | None = None,
    seed: int = 0,
    max_pixels: int,
    value_range: Range | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> UnlabelledImages:
    """Image files, each content once.

    Args:
        source: A folder with images at any depth, a pattern, shards, or a list of paths; class folders mean nothing.
        known: Contents of images that are to be left out: those that have a label, and those held out.
        most: Images at most, a random sample of more; None: all.
        seed: Of that sample.
        max_pixels: Width times height above which a file is left out.
        value_range: Of images deeper than 8 bits.
        cache: Folder where inspections are remembered.
        progress: Show a bar on a terminal.

    Raises:
        OptionError: These are no files.
        DataError: There is none that can be used.
    """
    things, reasons = list_predictable(source)
    files = [thing for thing in things if isinstance(thing, (Path, Member))]
    if len(files) < len(things):
        raise OptionError("unlabelled takes image files: a folder, a pattern, shards, or a list of paths.")
    listing = FileListing(
        kind="folder",
        origin=str(source),
        files=files,
        names=[str(file) for file in files],
        class_names=[""] * len(files),
        classes=[""],
        splits=[UNSPLIT] * len(files),
    )
    inventory = read_files(listing, max_pixels=max_pixels, progress=progress, cache=cache)
    taken, rows = set(known), []
    for row, found in enumerate(inventory.inspections):
        if not found.fault and found.content_id not in taken:
            taken.add(found.content_id)
            rows.append(row)
    if not rows:
        shown = [*reasons[:SHOWN], f"{len(files)} files that are unreadable, or copies of labelled or held-out images"]
        raise DataError(list_problems("No unlabelled image can be used:", shown))
    chosen = np.array(rows, dtype=np.int64)
    if most is not None and len(chosen) > most:
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:most])
    return UnlabelledImages(
        [inventory.names[row] for row in chosen],
        np.array([inventory.inspections[row].content_id for row in chosen], dtype="S32"),
        inventory.reader,
        chosen,
        value_range=value_range,
        left_out=len(files) - len(chosen),
    )
