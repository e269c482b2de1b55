"""What a path given as data is: a folder, a manifest or shards, as a listing; or the reason why it is none of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.core.errors import DataError, OptionError
from transferkit.core.file_kinds import is_text, kind_of, read_head
from transferkit.core.paths import expand
from transferkit.data.folders import list_folder
from transferkit.data.formats import is_image
from transferkit.data.inventory import FileListing
from transferkit.data.layouts import LAYOUTS
from transferkit.data.manifests import MANIFEST_EXTENSIONS, list_manifest
from transferkit.data.shards import find_shards, list_shards
from transferkit.data.tables import CONVERT_JSON
from transferkit.records import TARGET_TASKS

__all__ = ["check_data_path", "is_builtin", "list_source"]


def check_data_path(data: Any) -> None:
    """Raise if `data` is a path that does not exist; other types of data are not checked.

    Raises:
        DataError: There is no file or folder at the path.

    Example:
        >>> check_data_path("builtin/digits")
    """
    if not isinstance(data, (str, Path)):
        return
    _check_path(data)
    if expand(data).exists() or is_builtin(data) or find_shards(data):
        return
    what = "manifest" if expand(data).suffix.lower() in MANIFEST_EXTENSIONS else "folder"
    raise DataError(f"There is no {what} {str(data)!r}.{'' if what == 'manifest' else f' {LAYOUTS}'}")


def is_builtin(data: str | Path) -> bool:
    """Whether it names a built-in data set."""
    return isinstance(data, str) and data.startswith("builtin") and not expand(data).exists()


def _check_path(data: str | Path) -> None:
    """Raise if a string cannot be a path."""
    if isinstance(data, str) and not data.strip():
        raise OptionError(f"The path of the data is empty, got {data!r}. Pass a folder; '.' is the current one.")
    if "://" in str(data):
        raise OptionError(f"{str(data)!r} is a URL. Download the images, and pass their folder.")


def list_source(
    data: str | Path,
    *,
    root: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    task: str = "auto",
) -> FileListing:
    """The image files behind a path, none of them opened yet.

    Args:
        data: A folder, a manifest, or shards.
        root, columns, task: As for `open_data`.
        cache: Folder where the index of shards without one is kept; None uses `default_folder()`.

    Raises:
        DataError: It is none of these, or cannot be used; the message says what is wrong and what to do.
    """
    _check_path(data)
    path = expand(data)
    if is_builtin(data):
        raise DataError(f"{data!r} comes as arrays, not as files. Pass a folder, a manifest, or shards.")
    if path.suffix.lower() in MANIFEST_EXTENSIONS and not path.is_dir():
        return list_manifest(path, root=None if root is None else expand(root), columns=columns, task=task)
    if root is not None or columns is not None:
        raise OptionError(f"root and columns are for manifests only, got {str(data)!r} as data.")
    if shards := find_shards(data):
        _check_one_class(task, data, "Shards hold")
        return list_shards(data, shards, cache=cache)
    if path.is_file():
        raise DataError(_no_source(data, path))
    _check_one_class(task, data, "A folder gives")
    return list_folder(path)


def _check_one_class(task: str, data: str | Path, source: str) -> None:
    if task in TARGET_TASKS:
        raise OptionError(
            f"{source} one class per image, and task={task} is for more: list the images of {str(data)!r} in a "
            "manifest (docs/targets.md), or pass a dataset."
        )


def _no_source(data: str | Path, path: Path) -> str:
    """The message for a file that is not a manifest: what it is, and the next step."""
    head = read_head(path)
    known = ", ".join(MANIFEST_EXTENSIONS)
    if (kind := kind_of(head)) is not None:
        return f"{str(data)!r} is {kind.name}. {kind.remedy}; expected a folder of images or a manifest ({known})."
    if is_image(path):
        return f"{str(data)!r} is one image; expected a folder of them, or a manifest ({known}). {LAYOUTS}"
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return f"{str(data)!r} contains JSON; manifests are {known}. {CONVERT_JSON}"
    if is_text(head):
        return (
            f"{str(data)!r} is a text file, but manifests are {known}. If it is a table with a header line such as "
            "path,label, rename it to .csv; the delimiter may be a comma, semicolon, tab or |."
        )
    return f"{str(data)!r} is a file but not a manifest; expected {known}, or a folder. {LAYOUTS}"
