"""Image folders as an inventory: images with class and split. `layouts` recognises how the folders are organised."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.data.class_names import NaturalKey, natural_key, normal_name, order_names
from transferkit.data.formats import is_image
from transferkit.data.inventory import Inspect, Inventory, read_files
from transferkit.data.layouts import LAYOUTS, ClassFolder, Layout, files_in, files_under, recognise
from transferkit.data.phrases import first_names
from transferkit.records import Finding

__all__ = ["image_files", "read_folder"]

_SHOWN = 5


@dataclass
class _Listing:
    paths: list[Path] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    not_images: list[Path] = field(default_factory=list)
    deeper: list[Path] = field(default_factory=list)


def read_folder(
    root: Path, *, max_pixels: int, progress: bool, cache: Path | None = None, inspect: Inspect | None = None
) -> Inventory:
    """The inventory of an image folder.

    Args:
        root: The folder.
        max_pixels: As in `decode`.
        progress: Whether to show a progress bar.
        cache, inspect: As in `read_files`.

    Raises:
        DataError: It does not exist, is empty, or its layout is unknown or ambiguous.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}. {LAYOUTS}")
    layout = recognise(root)
    if not layout.class_folders:
        raise DataError(f"Folder {str(root)!r} contains no class folders. {LAYOUTS}{_deeper_hint(root)}")
    listing = _Listing()
    for class_folder in layout.class_folders:
        _list_class(class_folder, listing)
    if not listing.paths:
        others = f": the files in them are {_kinds(listing.not_images)}" if listing.not_images else ""
        raise DataError(
            f"Folder {str(root)!r} contains class folders but no images{others}. {LAYOUTS} Convert them to a supported "
            "format, such as JPEG or PNG."
        )
    return read_files(
        kind="folder",
        origin=f"folder {root}",
        paths=listing.paths,
        names=[path.relative_to(root).as_posix() for path in listing.paths],
        class_names=listing.class_names,
        classes=order_names(listing.classes),
        splits=listing.splits,
        groups=None,
        note=layout.note,
        findings=[*layout.findings, *_not_images(root, listing), *_beside(root, layout), *_deeper(root, listing)],
        max_pixels=max_pixels,
        progress=progress,
        cache=cache,
        inspect=inspect,
    )


def _list_class(folder: ClassFolder, listing: _Listing) -> None:
    name = normal_name(folder.name)
    listing.classes.add(name)
    found = sorted(files_under(folder.path), key=_by_name)
    images = [path for path in found if is_image(path)]
    listing.paths += images
    listing.class_names += [name] * len(images)
    listing.splits += [folder.split] * len(images)
    taken = set(images)
    listing.not_images += [path for path in found if path not in taken]
    below = {path.relative_to(folder.path).parts[0] for path in images if path.parent != folder.path}
    listing.deeper += [folder.path / inside for inside in sorted(below, key=natural_key)]


def _by_name(path: Path) -> NaturalKey:
    return natural_key(path.as_posix())


def _not_images(root: Path, listing: _Listing) -> list[Finding]:
    """Files in class folders that are not images: set aside, so an error if the audit is strict."""
    if not listing.not_images:
        return []
    names = _relative(listing.not_images, root)
    message = (
        f"Files in class folders that are not images are left out: {len(names)} ({_kinds(listing.not_images)}; "
        f"{first_names(names)}). If they are images, convert them to JPEG or PNG; else move them out of the class "
        "folders."
    )
    return [Finding(kind="not_an_image", severity="set_aside", message=message, items=names)]


def _kinds(paths: list[Path]) -> str:
    """Number of files of each extension, as text."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in paths).most_common(_SHOWN)
    return ", ".join(f"{count} {extension}" for extension, count in kinds)


def _beside(root: Path, layout: Layout) -> list[Finding]:
    """Findings on files next to the class folders: images there have no class and are set aside."""
    files = [path for folder in layout.beside for path in files_in(folder)]
    images = [path for path in files if is_image(path)]
    findings = []
    if images:
        names = _relative(images, root)
        message = (
            f"Images next to the class folders have no class and are left out: {len(names)} ({first_names(names)}). "
            "Move each into the folder of its class."
        )
        findings.append(Finding(kind="no_class", severity="set_aside", message=message, items=names))
    taken = set(images)
    if others := [path for path in files if path not in taken]:
        message = f"Files next to the class folders are not read: {len(others)}."
        found = Finding(kind="stray_file", severity="info", message=message, items=_relative(others, root))
        findings.append(found)
    return findings


def _deeper(root: Path, listing: _Listing) -> list[Finding]:
    """The warning that folders inside a class folder are read as part of that class."""
    if not listing.deeper:
        return []
    names = _relative(listing.deeper, root)
    if shared := _shared_below(listing.deeper):
        message = (
            f"All class folders contain folders of the same names ({first_names(shared)}), whose images belong to "
            "the class above. If these are the classes, the folders above are splits or sources: rename them to "
            "train/, val/ and test/, or merge their images."
        )
        return [Finding(kind="folder_in_class", severity="warning", message=message, items=names)]
    message = (
        f"Folders inside class folders are not classes; their images belong to the class above: {len(names)} "
        f"({first_names(names)}). If they are classes, move them up, next to the other class folders."
    )
    return [Finding(kind="folder_in_class", severity="warning", message=message, items=names)]


def _shared_below(deeper: list[Path]) -> tuple[str, ...]:
    """Names of the subfolders, if there are several and they are the same in several class folders."""
    below: dict[Path, set[str]] = defaultdict(set)
    for folder in deeper:
        below[folder.parent].add(folder.name)
    first = next(iter(below.values()))
    same = len(below) > 1 and len(first) > 1 and all(names == first for names in below.values())
    return tuple(sorted(first, key=natural_key)) if same else ()


def _relative(paths: list[Path], root: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(root).as_posix() for path in paths)


def _deeper_hint(root: Path) -> str:
    images = sum(is_image(path) for path in files_in(root))
    return f" {images} images are directly in it: move them into one folder per class." if images else ""


def image_files(folder: Path) -> list[Path]:
    """All images under a folder, in natural order; other files are skipped."""
    return sorted((path for path in files_under(folder) if is_image(path)), key=_by_name)
