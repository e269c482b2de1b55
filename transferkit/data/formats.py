"""Recognising image files: by a known extension, else by content."""

from __future__ import annotations

from pathlib import Path

from transferkit.data.headers import TGA_EXTENSIONS, can_identify

__all__ = ["EXTENSIONS", "is_image", "is_system_name"]

EXTENSIONS = TGA_EXTENSIONS | frozenset(
    f".{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "gif", "bmp", "dib", "tif", "tiff", "webp"),
        *("avif", "avifs", "heic", "heif", "hif", "ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "jpx", "jpf", "ico"),
        *("qoi", "pcx"),
    )
)
"""An unreadable file with one of these extensions is a damaged image; any other unreadable file is not an image."""

_NO_PICTURE = frozenset(
    f".{extension}"
    for extension in (
        # Camera raw: TIFF by its first bytes, but Pillow reads only its thumbnail.
        *("dng", "nef", "nrw", "cr2", "cr3", "arw", "orf", "rw2", "pef", "srw", "raf", "3fr", "iiq"),
        # Multi-resolution slides, and arrays, tables and texts often found next to images: no need to open them.
        *("svs", "ndpi", "scn", "npy", "npz", "csv", "tsv", "json", "jsonl", "xml", "txt", "md", "yaml", "yml"),
        *("html", "py", "zip", "tar", "gz", "pdf", "svg", "mp4", "avi", "mov"),
    )
)

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
    | {"system volume information", "icon\r"}
)


def is_image(path: Path) -> bool:
    """Whether a file is an image.

    A file with an image extension is, whatever its content. Without an extension, or with an unknown one, it is opened
    and is an image if it can be read as one. Camera raw files are not: only their thumbnail could be read.

    Args:
        path: A file that exists.
    """
    extension = path.suffix.lower()
    if extension in EXTENSIONS:
        return True
    return extension not in _NO_PICTURE and can_identify(path)


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or was made by an operating system or file manager.

    Example:
        >>> is_system_name(".DS_Store"), is_system_name("Thumbs.db"), is_system_name("cat")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES
