"""The common form of every data source: rows with a name, a label, a split, and an inspection of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.core.cache_folder import default_folder
from transferkit.core.progress import track
from transferkit.data.decode import decode
from transferkit.data.depth import Range
from transferkit.data.inspection import Inspection
from transferkit.data.members import ImageFile, Member
from transferkit.data.scaled import read_pixels
from transferkit.records import Finding, Preprocessing, Targets

__all__ = [
    "SPLITS",
    "UNSPLIT",
    "FileListing",
    "FileReader",
    "Inspect",
    "Inventory",
    "Kind",
    "Reader",
    "read_files",
    "split_name",
]

Inspect = Callable[[Sequence[ImageFile]], Iterable[Inspection]]
"""Files -> the inspection of each, in order."""

Kind = Literal["folder", "manifest", "shards", "dataset"]
"""Type of the source: it determines what the user has to change to fix a problem."""

SPLITS = ("train", "val", "test")
UNSPLIT = ""
NO_LABEL = -1
"""Label of a row that could not be read."""

_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Reader(Protocol):
    """Reads the images of the rows."""

    thread_safe: bool

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture; `value_range` as in `decode`."""
        ...

    def pixels(self, row: int, preprocessing: Preprocessing, value_range: Range | None = None) -> npt.NDArray[np.uint8]:
        """Row -> its picture in a checkpoint's geometry, as `to_pixels`."""
        ...

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Row -> (3, H, W) float32, for preprocessed sources."""
        ...


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A listed and inspected source, before the audit judges it.

    Args:
        origin: Where it came from, for display.
        kind: Type of the source.
        classes: K class names in label order, classes without an image included.
        names: N image names, for display.
        labels: (N,) int64 in [0, K), or `NO_LABEL`.
        splits: (N,) split names, or all `UNSPLIT`.
        inspections: N inspections.
        reader: Reads the images.
        groups: (N,) int64; rows of equal value belong together. None if nothing is known.
        findings: Findings from listing the source.
        note: A sentence on how splits and classes were recognised, if not obvious; else "".
        outside: The source's own transforms, applied to its images before transferkit reads them.
        targets: (N, T) labels or numbers where images have not one class each: `classes` are their names, `labels` the
            strata that splits are spread over.
    """

    origin: str
    kind: Kind
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    inspections: tuple[Inspection, ...]
    reader: Reader
    groups: npt.NDArray[np.int64] | None = None
    findings: tuple[Finding, ...] = ()
    note: str = ""
    outside: tuple[str, ...] = ()
    targets: Targets | None = None

    @property
    def official(self) -> bool:
        """Whether the source came with its own splits."""
        return bool((self.splits != UNSPLIT).any())

    def place(self, row: int) -> str:
        """The image's name for a person who has to find it: in shards with the shard and the key there."""
        file = self.reader.paths[row] if isinstance(self.reader, FileReader) else None
        name = self.names[row]
        if not isinstance(file, Member) or name.endswith(f"{file.archive.name}/{file.name}"):
            return name
        return f"{name} ({file.archive.name}/{file.name})"


class FileReader:
    """Images in files.

    Args:
        paths: N files, in row order.
        max_pixels: As in `decode`.
    """

    thread_safe = True

    def __init__(self, paths: Sequence[ImageFile], *, max_pixels: int) -> None:
        self.paths = paths
        self.max_pixels = max_pixels

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture; `value_range` as in `decode`."""
        return decode(self.paths[row], max_pixels=self.max_pixels, value_range=value_range)

    def pixels(self, row: int, preprocessing: Preprocessing, value_range: Range | None = None) -> npt.NDArray[np.uint8]:
        """Row -> its picture in a checkpoint's geometry; a large JPEG is decoded at a fraction of its size."""
        path = self.paths[row]
        return read_pixels(
            path, preprocessing, name=str(path), max_pixels=self.max_pixels, range_for=lambda _: value_range
        )

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Always raises: files are never preprocessed."""
        raise NotImplementedError("Image files hold pixels, not preprocessed tensors.")


@dataclass(frozen=True, kw_only=True)
class FileListing:
    """A source of image files as it is listed, before any of them is opened.

    Args:
        kind: Type of the source.
        origin: Where they came from, for display.
        files, names, class_names, splits: One per file: where it is, what it is called, its class and split.
        classes: All class names, in label order.
        groups: One per file, or None.
        findings: Findings from listing the source.
        note: How splits and classes were recognised, if not obvious.
        targets: Labels or numbers, where files have not one class each.
        strata: One per file beside `targets`: what splits are spread over, or `NO_LABEL`.
    """

    kind: Kind
    origin: str
    files: Sequence[ImageFile]
    names: Sequence[str]
    class_names: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str] | None = None
    findings: Sequence[Finding] = ()
    note: str = ""
    targets: Targets | None = None
    strata: npt.NDArray[np.int64] | None = None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) class of each file, or its stratum."""
        if self.strata is not None:
            return self.strata
        index_of = {name: index for index, name in enumerate(self.classes)}
        return np.array([index_of[name] for name in self.class_names], dtype=np.int64)


def read_files(
    listing: FileListing,
    *,
    max_pixels: int,
    progress: bool,
    cache: Path | None = None,
    inspect: Inspect | None = None,
) -> Inventory:
    """The inventory of image files: each is inspected in a thread, unless an earlier audit cached its inspection.

    Args:
        listing: The files.
        max_pixels: As in `decode`.
        progress: Whether to show a progress bar.
        cache: Cache folder for inspections; None uses `default_folder()`.
        inspect: How files are inspected; None: with that cache.
    """
    from transferkit.data.remembered import inspect_files

    files = listing.files
    if inspect is None:
        inspect = partial(inspect_files, max_pixels=max_pixels, folder=default_folder() if cache is None else cache)
    groups = None if listing.groups is None else np.unique(np.array(listing.groups), return_inverse=True)[1]
    return Inventory(
        origin=listing.origin,
        kind=listing.kind,
        classes=tuple(listing.classes),
        names=tuple(listing.names),
        labels=listing.labels,
        splits=np.array(listing.splits, dtype="<U5"),
        inspections=tuple(track(inspect(files), "checking images", total=len(files), enabled=progress)),
        reader=FileReader(files, max_pixels=max_pixels),
        groups=None if groups is None else groups.astype(np.int64),
        findings=tuple(listing.findings),
        note=listing.note,
        targets=listing.targets,
    )


def split_name(word: str) -> str | None:
    """The split that a word means, ignoring case: "Training" -> "train"; None if it is not a split name.

    Example:
        >>> split_name("Validation"), split_name("cats")
        ('val', None)
    """
    for split, aliases in _ALIASES.items():
        if word.strip().lower() in aliases:
            return split
    return None
