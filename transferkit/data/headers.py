"""An image file opened as far as its header: format (by content, whatever its name), size, number of frames."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from PIL import Image

from transferkit.core.file_kinds import kind_of
from transferkit.data.image_errors import ImageError
from transferkit.data.members import ImageFile, Member
from transferkit.data.tiff import is_page, unreadable_tiff

__all__ = [
    "TGA_EXTENSIONS",
    "can_identify",
    "count_frames",
    "heic_hint",
    "open_header",
    "read_bytes",
]

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "HEIF"),
    *("QOI", "DDS", "SGI", "SUN", "PCX", "TGA"),
)
"""Pictures only: Pillow would hand a file that holds PostScript to Ghostscript, whatever its name says."""

TGA_EXTENSIONS = frozenset({".tga", ".icb", ".vda", ".vst"})
"""TGA has no mark of its own in its first bytes: only a file of this name is tried as one."""

_MOST_PAGES = 1_000
"""Pages of a TIFF that are counted."""


def read_bytes(file: str | ImageFile | bytes | IO[bytes]) -> bytes:
    """The encoded bytes behind a path, a member of an archive, or a file object."""
    if isinstance(file, bytes):
        return file
    if not isinstance(file, (str, Path, Member)):
        return file.read()
    try:
        encoded = (Path(file) if isinstance(file, str) else file).read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", str(file)) from None
    except OSError as error:
        raise ImageError("unreadable", str(file), str(error.strerror)) from None
    if isinstance(file, Member) and len(encoded) < file.size:
        raise ImageError("truncated", str(file), f"{file.archive.name} is shorter than its index says")
    return encoded


def open_header(encoded: bytes, *, name: str, max_pixels: int) -> Image.Image:
    """The image with its header read and no pixel decoded.

    Raises:
        ImageError: The file is empty, no image that can be read, or larger than `max_pixels`.
    """
    if not encoded:
        raise ImageError("zero_byte", name)
    image = _identify(encoded, name)
    if image is None:
        raise ImageError("unreadable", name, heic_hint(name) or unreadable_tiff(encoded) or _other_kind(encoded))
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("oversized", name, f"{width} x {height}, max_pixels is {max_pixels:,}", size=image.size)
    return image


def _identify(encoded: bytes, name: str) -> Image.Image | None:
    # Not Image.open: it warns about large images, and a warning cannot be silenced for one thread only.
    for load_plugins in (Image.preinit, Image.init, _load_heif):
        load_plugins()
        for format_name in FORMATS:
            if format_name == "TGA" and Path(name).suffix.lower() not in TGA_EXTENSIONS:
                continue
            image = _open_as(format_name, encoded, name) if format_name in Image.OPEN else None
            if image is not None:
                return image
    return None


def _open_as(format_name: str, encoded: bytes, name: str) -> Image.Image | None:
    factory, accept = Image.OPEN[format_name]
    if accept is not None and not _accepts(accept, encoded[:16]):
        return None
    try:
        if accept is not None and accept(encoded[:16]) is not True:
            return None
        return factory(io.BytesIO(encoded), "")
    except (SyntaxError, IndexError, TypeError, struct.error):
        return None  # Pillow's sign for "not this format after all"
    except Image.DecompressionBombError:
        raise ImageError("oversized", name) from None
    except Exception as error:
        raise ImageError("unreadable", name, str(error)) from None


def _accepts(accept: Callable[[bytes], bool | str], first: bytes) -> bool:
    try:
        return accept(first) is True  # a text says that the format cannot be read here
    except (IndexError, struct.error):  # fewer bytes than the format's own mark
        return False


def _load_heif() -> None:
    """Let Pillow read HEIC, where pillow-heif is installed."""
    if "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()


def _other_kind(encoded: bytes) -> str:
    """What the file is instead of an image, if its first bytes say."""
    kind = kind_of(encoded[:512])
    return "" if kind is None else f"{kind.name}. {kind.remedy}"


def heic_hint(name: str) -> str:
    """The package to install for a file named as HEIC, where HEIC cannot be read; else ""."""
    if Path(name).suffix.lower() not in (".heic", ".heif", ".hif") or find_spec("pillow_heif") is not None:
        return ""
    return "HEIC images need pillow-heif: pip install pillow-heif"


def can_identify(path: Path) -> bool:
    """Whether a file's content is an image of one of `FORMATS`, whatever the name says; damaged ones may not be."""
    try:
        with path.open("rb") as file:
            if not _magic(file.read(16)):
                return False
        return _identify(path.read_bytes(), str(path)) is not None
    except (ImageError, OSError):
        return False


def _magic(first: bytes) -> bool:
    """Whether the first bytes are those of an image: large files of other kinds need not be read to their end."""
    Image.init()
    _load_heif()
    known = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accept is not None and _accepts(accept, first) for accept in known)


def count_frames(encoded: bytes, *, name: str, max_pixels: int) -> int:
    """Frames of an animation or pages of a file, smaller versions of a page and masks left out; at least 1."""
    try:
        image = open_header(encoded, name=name, max_pixels=max_pixels)
        frames = int(getattr(image, "n_frames", 1))
        if frames == 1 or image.format != "TIFF":
            return frames
        return max(1, sum(is_page(image, number) for number in range(min(frames, _MOST_PAGES))))
    except Exception:  # what lies behind the first frame may be damaged, and nobody reads it
        return 1
