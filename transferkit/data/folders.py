"""Image folders: `ROOT/{train,val,test}/<class>/*` or `ROOT/<class>/*`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.data.inventory import SPLITS, UNSPLIT, Inventory, split_name, take_files
from transferkit.errors import DataError
from transferkit.types import Finding

__all__ = ["has_image_extension", "image_files", "is_hidden", "natural_key", "take_folder"]

LAYOUTS = "Expected ROOT/{train,val,test}/<class>/* or ROOT/<class>/*, with one folder of images per class."

_EXTENSIONS = frozenset(
    f".{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "tif", "tiff", "webp", "avif"),
        *("heic", "heif", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx", "ico"),
    )
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


@dataclass
class _Listing:
    paths: list[Path] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    others: list[Path] = field(default_factory=list)


def take_folder(root: Path, *, max_pixels: int, progress: bool) -> Inventory:
    """The inventory of an image folder.

    Args:
        root: The folder.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.

    Raises:
        DataError: It does not exist, is empty, or has neither layout.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}. {LAYOUTS}")
    listing, ignored = _list(root)
    if not listing.classes:
        raise DataError(f"Folder {str(root)!r} holds no class folders. {LAYOUTS}{_deeper_hint(root)}")
    if not listing.paths:
        raise DataError(f"Folder {str(root)!r} holds class folders but no image. {LAYOUTS}")
    return take_files(
        origin=f"folder {root}",
        paths=listing.paths,
        names=[path.relative_to(root).as_posix() for path in listing.paths],
        class_names=listing.class_names,
        classes=sorted(listing.classes),
        splits=listing.splits,
        groups=None,
        findings=_findings(root, listing, ignored),
        max_pixels=max_pixels,
        progress=progress,
    )


def _list(root: Path) -> tuple[_Listing, list[Path]]:
    """What the folder holds, and the folders beside the official splits, which are ignored."""
    listing = _Listing()
    folders = _subfolders(root)
    official = [folder for folder in folders if split_name(folder.name)]
    if not official:
        _list_classes(root, UNSPLIT, listing)
        return listing, []
    found = {split_name(folder.name) for folder in official}
    if "train" not in found:
        names = ", ".join(f"{folder.name}/" for folder in folders)
        raise DataError(
            f"Folder {str(root)!r} holds {names} but no train/. {LAYOUTS} "
            "Move the training classes into train/, or list the images in a manifest."
        )
    for split in SPLITS:
        for folder in official:
            if split_name(folder.name) == split:
                _list_classes(folder, split, listing)
    return listing, [folder for folder in folders if folder not in official]


def _list_classes(folder: Path, split: str, listing: _Listing) -> None:
    listing.others += [path for path in _visible(folder) if path.is_file()]
    for class_folder in _subfolders(folder):
        listing.classes.add(class_folder.name)
        for path in sorted(_files_under(class_folder), key=natural_key):
            if path.suffix.lower() in _EXTENSIONS:
                listing.paths.append(path)
                listing.class_names.append(class_folder.name)
                listing.splits.append(split)
            else:
                listing.others.append(path)


def _findings(root: Path, listing: _Listing, ignored: list[Path]) -> list[Finding]:
    findings = []
    if listing.others:
        names = tuple(path.relative_to(root).as_posix() for path in listing.others)
        message = f"{len(names)} files are not images in a class folder (by place or extension) and are ignored."
        findings.append(Finding(kind="not_an_image", severity="info", message=message, items=names))
    if ignored:
        names = tuple(folder.name for folder in ignored)
        message = f"{len(names)} folders beside train/ are no split and are ignored: {', '.join(names[:5])}."
        findings.append(Finding(kind="ignored_folder", severity="info", message=message, items=names))
    return findings


def _deeper_hint(root: Path) -> str:
    images = sum(1 for path in _visible(root) if path.suffix.lower() in _EXTENSIONS)
    return f" {images} images lie directly in it: move them into a folder per class." if images else ""


def has_image_extension(path: Path) -> bool:
    """Whether a file's name ends as those of images do."""
    return path.suffix.lower() in _EXTENSIONS


def image_files(folder: Path) -> list[Path]:
    """All image files under a folder, by extension, in natural order."""
    return sorted((path for path in _files_under(folder) if path.suffix.lower() in _EXTENSIONS), key=natural_key)


def _files_under(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(place, name) for name in files if not is_hidden(name))


def _subfolders(folder: Path) -> list[Path]:
    return sorted((path for path in _visible(folder) if path.is_dir()), key=lambda path: path.name)


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not is_hidden(path.name)), key=natural_key)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's business and not a person's."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key by which "img2" comes before "img10"; the same on every file system.

    Example:
        >>> [path.name for path in sorted([Path("b"), Path("a10"), Path("a2")], key=natural_key)]
        ['a2', 'a10', 'b']
    """
    text = path.as_posix()
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts), text
