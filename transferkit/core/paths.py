"""Expansion and checks of output paths, and the marker file that identifies folders transferkit wrote."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.core.errors import OptionError, RunFolderError

__all__ = ["MARKER", "check_file", "check_folder", "expand", "make_folder", "mark_folder"]

MARKER = ".transferkit"
"""File in every folder that transferkit writes results to, from the start of the run."""

_MARKER_TEXT = "transferkit writes results to this folder; it is not a folder of training images.\n"


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home folder; `~` with an unknown user stays.

    Example:
        >>> expand("~nobody-of-this-name/x").as_posix(), expand("a~b").name
        ('~nobody-of-this-name/x', 'a~b')
    """
    return Path(os.path.expanduser(path))


def mark_folder(folder: Path) -> None:
    """Create the folder if it is missing, and write the marker before anything else is written there."""
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            marker.write_text(_MARKER_TEXT, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with out=DIR."
        ) from error


def make_folder(folder: Path) -> None:
    """Create the folder of a file that is about to be written; a new or empty one gets the marker.

    The working folder gets none: files added to it later are the user's own.

    Raises:
        OSError: It cannot be created.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if is_new or (not any(folder.iterdir()) and not folder.samefile(Path.cwd())):
        mark_folder(folder)


def check_folder(folder: Path, *, key: str = "out") -> None:
    """Raise unless a folder can be written to or created; creates nothing.

    Raises:
        RunFolderError: It is a file, is inside one, or is not writable.
    """
    existing = _nearest(folder)
    if not existing.is_dir():
        what = "is a file, not a folder" if existing == folder else f"is inside {existing}, which is a file"
        raise RunFolderError(f"{folder} {what}. Choose another folder with {key}=DIR.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(f"{existing} is not writable by this user. Choose another folder with {key}=DIR.")


def check_file(file: Path, *, suffixes: tuple[str, ...], example: str, key: str = "out") -> None:
    """Raise unless a file of a known type can be written; to be called before the work that produces it.

    Args:
        file: The file; its folder need not exist yet.
        suffixes: Extensions that it may have, in lower case, such as (".csv", ".json").
        example: Name of such a file, without extension.
        key: The setting that named it.

    Raises:
        OptionError: It has another extension, or is a folder.
        RunFolderError: Its folder cannot be written to.

    Example:
        >>> check_file(Path("model.onnx"), suffixes=(".onnx",), example="model")
    """
    if file.is_dir():
        raise OptionError(f"{key}={file} is a folder. Name a file in it: {key}={file / (example + suffixes[0])}.")
    if file.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise OptionError(
            f"{key}={file} must end in {known}: the extension sets the format. For example "
            f"{key}={file.with_suffix(suffixes[0])}."
        )
    check_folder(file.parent, key=key)


def _nearest(path: Path) -> Path:
    """The path itself if it exists, else the nearest parent that does."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
