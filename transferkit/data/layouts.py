"""Recognising which folders are classes and which are splits, from where the images are.

A folder may contain splits with classes inside, classes with splits inside, or only classes. If the folder names and
the locations of the images contradict each other, an error explains both interpretations.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.data.class_names import natural_key
from transferkit.data.formats import is_image, is_system_name
from transferkit.data.inventory import SPLITS, UNSPLIT, split_name
from transferkit.data.own_output import is_own_file, is_own_folder
from transferkit.records import Finding

__all__ = ["LAYOUTS", "ClassFolder", "Layout", "files_in", "files_under", "recognise"]

LAYOUTS = "Expected ROOT/{train,val,test}/<class>/* or ROOT/<class>/*, with one folder of images per class."

BY_MANIFEST = (
    "or list the images in a manifest with the columns path, label and split, and pass that file as the data "
    "(command line: data=manifest data.path=FILE.csv)"
)
_SHOWN = 5
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """A folder of images of one class.

    Args:
        path: Where it is.
        name: Its name on disk.
        split: "train", "val", "test" or `UNSPLIT`.
    """

    path: Path
    name: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of an image folder.

    Args:
        root: The folder that contains splits or classes; may be inside the folder that was passed.
        class_folders: The folders of images, in order of split.
        beside: Folders that contain class folders; images directly in them have no class.
        note: A sentence for display, if the layout is unusual; else "".
        findings: Findings about the layout.
    """

    root: Path
    class_folders: tuple[ClassFolder, ...]
    beside: tuple[Path, ...]
    note: str = ""
    findings: tuple[Finding, ...] = ()


def recognise(root: Path) -> Layout:
    """The layout of an image folder.

    Args:
        root: A folder that exists.

    Raises:
        DataError: Its layout is unknown or ambiguous.
    """
    inner = _unwrapped(root)
    folders = _data_folders(inner)
    own = [folder for parent in {root, inner} for folder in _folders_in(parent) if _is_own(folder)]
    splits = [folder for folder in folders if split_name(folder.name)]
    others = [folder for folder in folders if folder not in splits]
    if not splits:
        _check_names(inner, folders)
    layout = _splits(inner, splits, others) if splits else _classes(inner, folders)
    note = f"The images are in {inner.relative_to(root).as_posix()}/." if inner != root else ""
    return replace(layout, note=f"{note} {layout.note}".strip(), findings=(*layout.findings, *_own_output(root, own)))


def _check_names(root: Path, folders: Sequence[Path]) -> None:
    """Raise if folders that contain folders have names that extend split names: "training_set", "val2017"."""
    meant = {folder: _split_in_name(folder.name) for folder in folders}
    if None in meant.values() or "train" not in meant.values() or not all(map(_holds_classes, folders)):
        return
    new = ", ".join(f"{folder.name}/ to {split}/" for folder, split in meant.items())
    inside = {child.name for folder in folders for child in _data_folders(folder)}
    raise DataError(
        f"Folder {str(root)!r} can be read in two ways: {_names(folders)} are splits, with the classes inside "
        f"({_listed(inside)}); or they are the classes themselves. For the first, rename {new}; for the second, move "
        f"the images out of the subfolders; {BY_MANIFEST}."
    )


def _split_in_name(name: str) -> str | None:
    """The split that a word in the name means: "train2017" and "data-training" are train."""
    found = {split_name(word) for word in _WORD.findall(name)} - {None}
    return found.pop() if len(found) == 1 else None


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names, key=natural_key)
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")


# Listing folders, without those of the operating system and transferkit's own output


def files_in(folder: Path) -> list[Path]:
    """The files directly in a folder, in natural order, without system files and transferkit's own output."""
    found = [path for path in folder.iterdir() if not is_system_name(path.name) and path.is_file()]
    return sorted((path for path in found if not is_own_file(path)), key=lambda path: natural_key(path.name))


def files_under(folder: Path) -> Iterator[Path]:
    """All files below a folder, without system files and transferkit's own output; links are followed once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        below = [(name, Path(parent, name)) for name in folders if not is_system_name(name)]
        folders[:] = [name for name, path in below if not _leads_up(path) and not _is_own(path)]
        paths = (Path(parent, name) for name in files if not is_system_name(name))
        yield from (path for path in paths if not is_own_file(path))


def _is_own(folder: Path) -> bool:
    return is_own_folder(folder, _holds_images)


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to one of its parent folders: their images would be read twice, as another class."""
    if not folder.is_symlink():
        return False
    target, parent = os.path.realpath(folder), os.path.realpath(folder.parent)
    return parent == target or parent.startswith(os.path.join(target, ""))


def _data_folders(folder: Path) -> list[Path]:
    """The folders directly inside, in natural order, without system folders and transferkit's own output."""
    return [path for path in _folders_in(folder) if not _is_own(path)]


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_system_name(entry.name) and entry.is_dir()]
    paths = [folder / name for name in sorted(names, key=natural_key)]
    return [path for path in paths if not _leads_up(path)]


def _has_images(folder: Path) -> bool:
    """Whether images are directly in a folder."""
    return any(is_image(path) for path in folder.iterdir() if not is_system_name(path.name) and path.is_file())


def _holds_images(folder: Path) -> bool:
    """Whether there are images anywhere below a folder."""
    return any(is_image(path) for path in files_under(folder))


def _holds_classes(folder: Path) -> bool:
    """Whether a folder contains folders with images, and no images directly."""
    return not _has_images(folder) and any(_holds_images(inside) for inside in _data_folders(folder))


def _unwrapped(root: Path) -> Path:
    """The folder that contains the data: the root, or the only folder in it, as unpacked archives have one."""
    while len(folders := _data_folders(root)) == 1 and not _has_images(root):
        (inner,) = folders
        if not _holds_classes(inner):
            break
        trains = [inside for inside in _data_folders(inner) if split_name(inside.name) == "train"]
        if split_name(inner.name) and not any(_holds_classes(train) for train in trains):
            break
        root = inner
    return root


# Splits with classes inside


def _splits(root: Path, splits: Sequence[Path], others: Sequence[Path]) -> Layout:
    """The layout if some folders have the names of splits."""
    contents = {folder: _without_repetition(folder) for folder in splits}
    nested = [folder for folder in splits if any(_holds_images(inside) for inside in _data_folders(contents[folder]))]
    flat = [folder for folder in splits if folder not in nested and _has_images(contents[folder])]
    pictures = [folder for folder in others if _has_images(folder)]
    if pictures and not nested:
        return _named_like_splits(root, flat, [*splits, *others])
    _check_train(root, splits, nested, flat, pictures)
    class_folders, beside = [], [root]
    findings = _unlabelled(root, {folder: contents[folder] for folder in flat}) + _ignored(others)
    for split in SPLITS:
        same = [folder for folder in splits if split_name(folder.name) == split and folder not in flat]
        findings += _merged_splits(split, same)
        for content in (contents[folder] for folder in same):
            beside.append(content)
            class_folders += [ClassFolder(path=path, name=path.name, split=split) for path in _data_folders(content)]
    return Layout(root=root, class_folders=tuple(class_folders), beside=tuple(beside), findings=tuple(findings))


def _without_repetition(folder: Path) -> Path:
    """train/train/ if train/ contains nothing else; else the folder itself."""
    split = split_name(folder.name)
    while len(inside := _data_folders(folder)) == 1 and split_name(inside[0].name) == split:
        if _has_images(folder):
            break
        (folder,) = inside
    return folder


def _named_like_splits(root: Path, flat: Sequence[Path], folders: Sequence[Path]) -> Layout:
    layout = _classes(root, sorted(folders, key=lambda folder: natural_key(folder.name)))
    if not flat:
        return layout
    message = (
        f"Read as classes, not as splits: {_names(flat)}. Images are directly in them, as in the other class folders. "
        "If these images have no class, move them elsewhere and classify them with transferkit predict run=DIR "
        "images=..."
    )
    found = Finding(kind="class_named_like_split", severity="warning", message=message, items=_item_names(flat))
    return replace(layout, findings=(*layout.findings, found))


def _check_train(
    root: Path, splits: Sequence[Path], nested: Sequence[Path], flat: Sequence[Path], pictures: Sequence[Path]
) -> None:
    """Raise if there is no training split, or if other folders suggest that there are no splits."""
    trains = [folder for folder in splits if split_name(folder.name) == "train"]
    if not trains and pictures:
        raise DataError(
            f"Folder {str(root)!r} can be read in two ways: {_names(nested)} is a split and {_names(pictures)} are the "
            f"training classes; or all of them are classes. For the first, move {_names(pictures)} into train/; for "
            f"the second, move the images of {_names(nested)} out of the subfolders; {BY_MANIFEST}."
        )
    if not trains:
        raise DataError(
            f"Folder {str(root)!r} contains {_names(splits)} but no train/. {LAYOUTS} "
            f"Move the training classes into train/, {BY_MANIFEST}."
        )
    if all(folder in flat for folder in trains):
        raise DataError(
            f"Folder {str(root)!r}: images are directly in {_names(flat)}, without class folders. Read as splits, "
            f"these have no classes; read as classes, they have the names of splits. {LAYOUTS} Move the images into "
            f"one folder per class, {BY_MANIFEST}."
        )
    if len(pictures) > 1 and all(folder in trains for folder in nested):
        raise DataError(
            f"Folder {str(root)!r} can be read in two ways: {_names(nested)} is the training split, and "
            f"{_names(pictures)} do not belong to it; or all of them are classes. For the first, move "
            f"{_names(pictures)} elsewhere; for the second, move the images of {_names(nested)} out of the subfolders; "
            f"{BY_MANIFEST}."
        )


def _unlabelled(root: Path, flat: Mapping[Path, Path]) -> list[Finding]:
    """A warning for each split folder whose images have no class; `flat` maps it to the folder they are in."""
    findings = []
    for folder, content in flat.items():
        count = sum(is_image(path) for path in files_in(content))
        name = content.relative_to(root).as_posix()
        message = (
            f"{count} images are directly in {name}/, without a class, so accuracy cannot be measured on them; they "
            f"are left out. To measure it, move them into {folder.name}/<class>/; to classify them with the finished "
            f"model, use transferkit predict run=DIR {shlex.quote(f'images={content}')}."
        )
        findings.append(Finding(kind="unlabelled_split", severity="warning", message=message, items=(name,)))
    return findings


def _ignored(others: Sequence[Path]) -> list[Finding]:
    filled = [folder for folder in others if _holds_images(folder)]
    empty = [folder for folder in others if folder not in filled]
    findings = []
    if filled:
        message = (
            f"Left out, as they are next to train/ and not splits: {_names(filled)}. They contain images; if they "
            "are classes, move them into train/; if they are a split, rename them to val/ or test/."
        )
        findings.append(Finding(kind="ignored_folder", severity="warning", message=message, items=_item_names(filled)))
    if empty:
        message = f"Not read, as they are next to train/, are not splits and contain no images: {_names(empty)}."
        findings.append(Finding(kind="ignored_folder", severity="info", message=message, items=_item_names(empty)))
    return findings


def _merged_splits(split: str, folders: Sequence[Path]) -> list[Finding]:
    if len(folders) < 2:
        return []
    message = f"{_names(folders)} all mean {split} and are merged."
    return [Finding(kind="split_twice", severity="warning", message=message, items=_item_names(folders))]


def _own_output(root: Path, own: Sequence[Path]) -> list[Finding]:
    if not own:
        return []
    items = tuple(folder.relative_to(root).as_posix() for folder in own)
    message = f"Skipped, as they are transferkit's own output: {_names(own)}."
    return [Finding(kind="own_output", severity="info", message=message, items=items)]


# Only classes, possibly with splits inside


@dataclass
class _Contents:
    """Contents of a class folder: folders with the names of splits, and whether there is anything else."""

    splits: list[Path] = field(default_factory=list)
    rest: bool = False


def _classes(root: Path, folders: Sequence[Path]) -> Layout:
    below = {folder: _contents(folder) for folder in folders}
    split = [folder for folder in folders if below[folder].splits]
    unsplit = [folder for folder in folders if folder not in split and below[folder].rest]
    if not split:
        class_folders = [ClassFolder(path=folder, name=folder.name, split=UNSPLIT) for folder in folders]
        return Layout(root=root, class_folders=tuple(class_folders), beside=(root,))
    mixed = [folder for folder in split if below[folder].rest]
    names = sorted({inside.name for folder in split for inside in below[folder].splits}, key=natural_key)
    if unsplit or mixed:
        raise DataError(
            f"Folder {str(root)!r} can be read in two ways: {', '.join(names)} inside {_names(split)} are splits of "
            "these classes; or they only sort the images of a class, as there are other images in "
            f"{_names([*mixed, *unsplit])}. For the first, move these images into such folders too; for the second, "
            f"rename the folders with the names of splits; {BY_MANIFEST}."
        )
    return _split_below(root, folders, below)


def _contents(folder: Path) -> _Contents:
    found = _Contents(rest=_has_images(folder))
    for inside in _data_folders(folder):
        if _holds_images(inside):
            if split_name(inside.name):
                found.splits.append(inside)
            else:
                found.rest = True
    return found


def _split_below(root: Path, folders: Sequence[Path], below: dict[Path, _Contents]) -> Layout:
    by_split: dict[str, list[ClassFolder]] = defaultdict(list)
    for folder in folders:
        for inside in below[folder].splits:
            split = split_name(inside.name) or UNSPLIT
            by_split[split].append(ClassFolder(path=inside, name=folder.name, split=split))
    empty = [
        ClassFolder(path=folder, name=folder.name, split="train") for folder in folders if not below[folder].splits
    ]
    if "train" not in by_split:
        raise DataError(
            f"Folder {str(root)!r} contains {', '.join(sorted(by_split))} inside its classes, but no train. "
            f"Expected ROOT/<class>/train/*. Rename them, {BY_MANIFEST}."
        )
    return Layout(
        root=root,
        class_folders=tuple(one for split in SPLITS for one in by_split[split]) + tuple(empty),
        beside=(root, *folders),
        note="The splits are inside the class folders (ROOT/<class>/train/*).",
    )


def _names(folders: Iterable[Path]) -> str:
    names = [f"{folder.name}/" for folder in folders]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _item_names(folders: Iterable[Path]) -> tuple[str, ...]:
    return tuple(folder.name for folder in folders)
