"""File types recognised by their first bytes, each with the next step: for files of an unexpected type."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["FileKind", "is_text", "kind_of", "read_head"]

_HEAD = 512
_UNPACK = "Unpack it, and pass what is in it"


class FileKind(NamedTuple):
    """A file type.

    Args:
        name: What it is, with an article.
        remedy: The next step, without a full stop.
    """

    name: str
    remedy: str


_LFS = FileKind(
    "a Git LFS pointer, not the file itself",
    "Fetch the file itself with 'git lfs pull' in its repository, or download it",
)
_PAGE = FileKind("a web page, downloaded instead of the file", "Download the file itself")
_WORKBOOK = FileKind("an Office document", "From Excel or the like, save the sheet as CSV (UTF-8), and pass that file")

_MAGIC = (
    (b"version https://git-lfs", _LFS),
    (b"\x1f\x8b", FileKind("a gzip file", "Unpack it with gunzip, and pass what comes out")),
    (b"BZh", FileKind("a bzip2 file", "Unpack it with bunzip2, and pass what comes out")),
    (b"\xfd7zXZ", FileKind("an xz file", "Unpack it with unxz, and pass what comes out")),
    (b"7z\xbc\xaf", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!", FileKind("a RAR archive", _UNPACK)),
    (b"\xd0\xcf\x11\xe0", _WORKBOOK),
    (b"PK\x03\x04", FileKind("a zip archive", _UNPACK)),
    (b"\x89HDF", FileKind("an HDF5 file, as Keras writes them", "Convert it first")),
    (b"\x93NUMPY", FileKind("one NumPy array", "Convert it first")),
    (b"PAR1", FileKind("a Parquet file", "Call it .parquet")),
    (b"%PDF", FileKind("a PDF document", "Convert it first")),
)


_OFFICE = (b"[Content_Types].xml", b"docProps/", b"xl/", b"mimetypeapplication/vnd.")


def kind_of(head: bytes) -> FileKind | None:
    """The type of a file with these first bytes, if known; image, table and weights files are not recognised here.

    Example:
        >>> kind_of(b"version https://git-lfs.github.com/spec/v1").name
        'a Git LFS pointer, not the file itself'
    """
    if head.startswith(b"PK\x03\x04") and any(part in head for part in _OFFICE):
        return _WORKBOOK
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return _PAGE
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def read_head(file: Path) -> bytes:
    """The first 512 bytes of a file, or all if it is shorter."""
    with file.open("rb") as stream:
        return stream.read(_HEAD)


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 text that people write."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character was only cut in two
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text)
