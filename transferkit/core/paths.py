"""Paths as people write them, and the marker by which a folder that transferkit wrote is recognised."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.core.errors import OptionError, RunFolderError

__all__ = ["MARKER", "check_file", "check_folder", "expand", "make_folder", "mark_folder"]

MARKER = ".transferkit"
"""File that lies in every folder that transferkit writes results to, from the start of the run."""

_MARKER_TEXT = "transferkit writes results to this folder: what is in it is no class of images.\n"


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home folder; a `~` that means nobody's home stays.

    Example:
        >>> expand("~nobody-of-this-name/x").as_posix(), expand("a~b").name
        ('~nobody-of-this-name/x', 'a~b')
    """
    return Path(os.path.expanduser(path))


def mark_folder(folder: Path) -> None:
    """Make the folder if need be, and put the marker into it before anything else is written there."""
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            marker.write_text(_MARKER_TEXT, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror}. Choose another place with out=DIR."
        ) from error


def make_folder(folder: Path) -> None:
    """Make the folder of a file that is about to be written; a new or empty one gets the marker.

    The working folder gets none: what comes into it later is a person's.

    Raises:
        OSError: It cannot be made.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if is_new or (not any(folder.iterdir()) and not folder.samefile(Path.cwd())):
        mark_folder(folder)


def check_folder(folder: Path, *, key: str = "out") -> None:
    """Whether a folder can be written to, or made; nothing is made here.

    Raises:
        RunFolderError: It is a file, lies below one, or may not be written.
    """
    place = _nearest(folder)
    if not place.is_dir():
        what = "is a file, not a folder" if place == folder else f"lies below {place}, which is a file"
        raise RunFolderError(f"{folder} {what}. Choose another place with {key}=DIR.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunFolderError(f"{place} may not be written by this user. Choose another place with {key}=DIR.")


def check_file(file: Path, *, suffixes: tuple[str, ...], example: str, key: str = "out") -> None:
    """Whether a file of a known kind can be written, before the work that goes into it.

    Args:
        file: The file; its folder may be missing yet.
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
            f"{key}={file} must end in {known}, which says how it is written. For instance: "
            f"{key}={file.with_suffix(suffixes[0])}."
        )
    check_folder(file.parent, key=key)


def _nearest(path: Path) -> Path:
    """The path itself if it exists, else the nearest folder above that does."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
