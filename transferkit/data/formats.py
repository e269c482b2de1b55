"""Which files are images: by the extension where that says so, else by what is in them."""

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
"""A file of one of these that cannot be read is a damaged image; any other file that cannot be read is no image."""

_NO_PICTURE = frozenset(
    f".{extension}"
    for extension in (
        # Camera raw: TIFF by its first bytes, but what Pillow would read is a thumbnail.
        *("dng", "nef", "nrw", "cr2", "cr3", "arw", "orf", "rw2", "pef", "srw", "raf", "3fr", "iiq"),
        # Slides of many resolutions, and arrays, tables and texts that are common beside images: no need to open them.
        *("svs", "ndpi", "scn", "npy", "npz", "csv", "tsv", "json", "jsonl", "xml", "txt", "md", "yaml", "yml"),
        *("html", "py", "zip", "tar", "gz", "pdf", "svg", "mp4", "avi", "mov"),
    )
)

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
    | {"system volume information", "icon\r"}
)


def is_image(path: Path) -> bool:
    """Whether a file is meant as an image.

    Files with an image's extension are, whatever is in them. Others are opened: without an extension, or with one that
    is not known, they are images if they can be read as one. Camera raw files are not: all that can be read of them is
    their thumbnail.

    Args:
        path: A file that exists.
    """
    extension = path.suffix.lower()
    if extension in EXTENSIONS:
        return True
    return extension not in _NO_PICTURE and can_identify(path)


def is_system_name(name: str) -> bool:
    """Whether a file or folder is the system's business and not a person's: hidden, or a file manager's own.

    Example:
        >>> is_system_name(".DS_Store"), is_system_name("Thumbs.db"), is_system_name("cat")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES
