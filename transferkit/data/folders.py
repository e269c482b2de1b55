"""Image folders, listed: which files are images, of which class and split. How the folders are read is in `layouts`."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.data.class_names import NaturalKey, natural_key, normal_name, order_names
from transferkit.data.formats import is_image
from transferkit.data.inventory import Inventory, take_files
from transferkit.data.layouts import LAYOUTS, ClassFolder, Layout, files_in, files_under, recognise
from transferkit.records import Finding

__all__ = ["image_files", "take_folder"]

_SHOWN = 5


@dataclass
class _Listing:
    paths: list[Path] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    no_images: list[Path] = field(default_factory=list)
    deeper: list[Path] = field(default_factory=list)


def take_folder(root: Path, *, max_pixels: int, progress: bool, cache: Path | None = None) -> Inventory:
    """The inventory of an image folder.

    Args:
        root: The folder.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.
        cache: As in `take_files`.

    Raises:
        DataError: It does not exist, is empty, or has a layout that is not known, or can be read in two ways.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}. {LAYOUTS}")
    layout = recognise(root)
    if not layout.class_folders:
        raise DataError(f"Folder {str(root)!r} holds no class folders. {LAYOUTS}{_deeper_hint(root)}")
    listing = _Listing()
    for class_folder in layout.class_folders:
        _list_class(class_folder, listing)
    if not listing.paths:
        others = f": the files in them are {_kinds(listing.no_images)}" if listing.no_images else ""
        raise DataError(
            f"Folder {str(root)!r} holds class folders but no image{others}. {LAYOUTS} Images are read as JPEG, PNG "
            "and other formats of pictures: convert them."
        )
    return take_files(
        kind="folder",
        origin=f"folder {root}",
        paths=listing.paths,
        names=[path.relative_to(root).as_posix() for path in listing.paths],
        class_names=listing.class_names,
        classes=order_names(listing.classes),
        splits=listing.splits,
        groups=None,
        note=layout.note,
        findings=[*layout.findings, *_no_images(root, listing), *_beside(root, layout), *_deeper(root, listing)],
        max_pixels=max_pixels,
        progress=progress,
        cache=cache,
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
    listing.no_images += [path for path in found if path not in taken]
    below = {path.relative_to(folder.path).parts[0] for path in images if path.parent != folder.path}
    listing.deeper += [folder.path / inside for inside in sorted(below, key=natural_key)]


def _by_name(path: Path) -> NaturalKey:
    return natural_key(path.as_posix())


def _no_images(root: Path, listing: _Listing) -> list[Finding]:
    """Files in class folders that are no images: set aside, so an error where the audit is strict."""
    if not listing.no_images:
        return []
    names = _relative(listing.no_images, root)
    message = (
        f"Files in class folders that are not images are left out: {len(names)} ({_kinds(listing.no_images)}; "
        f"{_some(names)}). If they are images, convert them to JPEG or PNG; else move them out of the class folders."
    )
    return [Finding(kind="not_an_image", severity="set_aside", message=message, items=names)]


def _kinds(paths: list[Path]) -> str:
    """How many files there are of each extension."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in paths).most_common(_SHOWN)
    return ", ".join(f"{count} {extension}" for extension, count in kinds)


def _beside(root: Path, layout: Layout) -> list[Finding]:
    """Files beside the class folders: images among them have no class, and that is worth a warning."""
    files = [path for folder in layout.beside for path in files_in(folder)]
    images = [path for path in files if is_image(path)]
    findings = []
    if images:
        names = _relative(images, root)
        message = (
            f"Images beside the class folders have no class and are left out: {len(names)} ({_some(names)}). Move them "
            "into the folder of their class."
        )
        findings.append(Finding(kind="no_class", severity="set_aside", message=message, items=names))
    taken = set(images)
    if others := [path for path in files if path not in taken]:
        message = f"Files beside the class folders are not read: {len(others)}."
        found = Finding(kind="stray_file", severity="info", message=message, items=_relative(others, root))
        findings.append(found)
    return findings


def _deeper(root: Path, listing: _Listing) -> list[Finding]:
    """The warning that folders below a class folder are read as one class."""
    if not listing.deeper:
        return []
    names = _relative(listing.deeper, root)
    if shared := _shared_below(listing.deeper):
        message = (
            f"All class folders hold folders of the same names ({_some(shared)}), whose images count for the class "
            "above. If these are the classes, the folders above are splits or sources: call them train/, val/ and "
            "test/, or put their images together."
        )
        return [Finding(kind="folder_in_class", severity="warning", message=message, items=names)]
    message = (
        f"Folders below class folders are no classes of their own; their images count for the class: {len(names)} "
        f"({_some(names)}). If they are the classes, move them up, beside the other class folders."
    )
    return [Finding(kind="folder_in_class", severity="warning", message=message, items=names)]


def _shared_below(deeper: list[Path]) -> tuple[str, ...]:
    """The names of the folders below, if they are several and the same in several class folders."""
    below: dict[Path, set[str]] = defaultdict(set)
    for place in deeper:
        below[place.parent].add(place.name)
    first = next(iter(below.values()))
    same = len(below) > 1 and len(first) > 1 and all(names == first for names in below.values())
    return tuple(sorted(first, key=natural_key)) if same else ()


def _relative(paths: list[Path], root: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(root).as_posix() for path in paths)


def _some(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _deeper_hint(root: Path) -> str:
    images = sum(is_image(path) for path in files_in(root))
    return f" {images} images lie directly in it: move them into a folder per class." if images else ""


def image_files(folder: Path) -> list[Path]:
    """All images under a folder, in natural order; files that are none are passed over."""
    return sorted((path for path in files_under(folder) if is_image(path)), key=_by_name)
