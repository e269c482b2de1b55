"""What every kind of source is turned into: rows with a name, a label, a split, and a look at each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from transferkit.records import Finding

__all__ = ["SPLITS", "UNSPLIT", "FileReader", "Inventory", "Kind", "Reader", "split_name", "take_files"]

Kind = Literal["folder", "manifest", "dataset"]
"""What a person has to change where something is wrong."""

SPLITS = ("train", "val", "test")
UNSPLIT = ""
NO_LABEL = -1
"""Label of a row that could not be read at all."""

_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Reader(Protocol):
    """How to get at the images behind the rows."""

    thread_safe: bool

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture; `value_range` as in `decode`."""
        ...

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Row -> (3, H, W) float32, for sources that are preprocessed already."""
        ...


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A source, listed and looked at, before anything is judged.

    Args:
        origin: Where it came from, for people.
        kind: What it is.
        classes: K class names in label order, classes without an image included.
        names: N names for people.
        labels: (N,) int64 in [0, K), or `NO_LABEL`.
        splits: (N,) split names, or all `UNSPLIT`.
        inspections: N looks.
        reader: How to get at the images.
        groups: (N,) int64; rows of equal value belong together. None if nothing is known.
        findings: What the listing noticed.
        note: A sentence on how splits and classes were read, if that is not plain; else "".
        outside: Steps that the source puts its images through before anybody sees them.
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

    @property
    def official(self) -> bool:
        """Whether the source came with its own splits."""
        return bool((self.splits != UNSPLIT).any())


class FileReader:
    """Images in files.

    Args:
        paths: N paths, in row order.
        max_pixels: As in `decode`.
    """

    thread_safe = True

    def __init__(self, paths: Sequence[Path], *, max_pixels: int) -> None:
        self.paths = tuple(paths)
        self.max_pixels = max_pixels

    def image(self, row: int, value_range: Range | None = None) -> Image.Image:
        """Row -> upright RGB picture; `value_range` as in `decode`."""
        return decode(self.paths[row], max_pixels=self.max_pixels, value_range=value_range)

    def tensor(self, row: int) -> npt.NDArray[np.float32]:
        """Files are never preprocessed."""
        raise NotImplementedError("Image files hold pixels, not preprocessed tensors.")


def take_files(
    *,
    kind: Kind,
    origin: str,
    paths: Sequence[Path],
    names: Sequence[str],
    class_names: Sequence[str],
    classes: Sequence[str],
    splits: Sequence[str],
    groups: Sequence[str] | None,
    findings: Sequence[Finding],
    max_pixels: int,
    progress: bool,
    note: str = "",
    cache: Path | None = None,
) -> Inventory:
    """The inventory of image files: every file is read once, in threads, or remembered from an earlier audit.

    Args:
        kind: What listed them.
        origin: Where they came from, for people.
        paths, names, class_names, splits: One per file.
        classes: All class names, in label order.
        groups: One per file, or None.
        findings: What the listing noticed.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.
        note: How splits and classes were read, if that is not plain.
        cache: Folder where it is remembered; None takes `default_folder()`.
    """
    from transferkit.data.remembered import inspect_files

    looks = inspect_files(paths, max_pixels=max_pixels, folder=default_folder() if cache is None else cache)
    index_of = {name: index for index, name in enumerate(classes)}
    return Inventory(
        origin=origin,
        kind=kind,
        classes=tuple(classes),
        names=tuple(names),
        labels=np.array([index_of[name] for name in class_names], dtype=np.int64),
        splits=np.array(splits, dtype="<U5"),
        inspections=tuple(track(looks, "checking images", total=len(paths), enabled=progress)),
        reader=FileReader(paths, max_pixels=max_pixels),
        groups=None if groups is None else np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64),
        findings=tuple(findings),
        note=note,
    )


def split_name(word: str) -> str | None:
    """The split a word stands for, in any case: "Training" -> "train"; None if it stands for none.

    Example:
        >>> split_name("Validation"), split_name("cats")
        ('val', None)
    """
    for split, aliases in _ALIASES.items():
        if word.strip().lower() in aliases:
            return split
    return None
