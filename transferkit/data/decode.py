"""An image file as 8-bit RGB, or the exact reason why not.

Leaves geometry to `geometry`, and arrays and tensors to `arrays`.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from transferkit.errors import DataError

__all__ = ["FAULTS", "MAX_PIXELS", "ImageError", "decode", "open_header", "to_grey", "to_rgb", "traits"]

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gigabyte of RGB."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "HEIF")
"""Photographic formats only: Pillow would hand a file that holds PostScript to Ghostscript, whatever its name says."""

FAULTS = {
    "missing": "there is no such file",
    "zero_byte": "the file is empty (0 bytes)",
    "unreadable": "not an image that can be read",
    "truncated": "cut off or damaged: the header reads, the pixels do not",
    "oversized": "more pixels than max_pixels allows",
}
"""Fault kind -> what it means."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 258  # TIFF tag


class ImageError(DataError):
    """One image cannot be decoded.

    Args:
        kind: A key of `FAULTS`.
        name: The file, for people.
        detail: What is known beyond the kind.
    """

    def __init__(self, kind: str, name: str, detail: str = "") -> None:
        super().__init__(f"{name}: {FAULTS[kind]}{f' ({detail})' if detail else ''}.")
        self.kind = kind


def decode(file: str | Path | bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as 8-bit RGB, upright.

    EXIF rotation is applied; transparency is laid on white; palettes, CMYK and greyscale become RGB; deeper greyscale
    is scaled to 8 bits, not clipped. Of an animation, the first frame.

    Args:
        file: A path, the encoded bytes, or a binary file object.
        max_pixels: Width times height above which the header alone is refused, before anything is decoded.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        DataError: The file is missing, empty, no image, damaged, or larger than `max_pixels`.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (4, 3), 200).save(buffer, format="PNG")
        >>> decode(buffer.getvalue()).getpixel((0, 0))
        (200, 200, 200)
    """
    name = str(file) if isinstance(file, (str, Path)) else str(getattr(file, "name", "image"))
    image = open_header(read_bytes(file), name=name, max_pixels=max_pixels)
    return to_rgb(image, name=name)


def read_bytes(file: str | Path | bytes | IO[bytes]) -> bytes:
    """The encoded bytes behind a path or file object."""
    if isinstance(file, bytes):
        return file
    if not isinstance(file, (str, Path)):
        return file.read()
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", str(file)) from None
    except OSError as error:
        raise ImageError("unreadable", str(file), str(error.strerror)) from None


def open_header(encoded: bytes, *, name: str, max_pixels: int) -> Image.Image:
    """The image with its header read and no pixel decoded; raises `ImageError` if that is as far as it can go."""
    if not encoded:
        raise ImageError("zero_byte", name)
    image = _identify(encoded, name)
    if image is None:
        raise ImageError("unreadable", name)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("oversized", name, f"{width} x {height}, max_pixels is {max_pixels:,}")
    return image


def _identify(encoded: bytes, name: str) -> Image.Image | None:
    # Not Image.open: it warns about large images, and a warning cannot be silenced for one thread only.
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for format_name in FORMATS:
            image = _open_as(format_name, encoded, name) if format_name in Image.OPEN else None
            if image is not None:
                return image
    return None


def _open_as(format_name: str, encoded: bytes, name: str) -> Image.Image | None:
    factory, accept = Image.OPEN[format_name]
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


def to_rgb(image: Image.Image, *, name: str = "image") -> Image.Image:
    """Any PIL image as upright 8-bit RGB; raises `ImageError` of kind "truncated" where pixels are missing."""
    _load(image, name)
    turn = _TURNS.get(_orientation(image))
    try:
        rgb = _flatten(image)
    except ValueError as error:  # e.g. LAB, which Pillow cannot convert
        raise ImageError("unreadable", name, str(error)) from None
    return rgb if turn is None else rgb.transpose(turn)


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Image.DecompressionBombError:
        raise ImageError("oversized", name) from None
    except Exception as error:  # each decoder has its own: OSError, SyntaxError, EOFError, struct.error, ...
        raise ImageError("truncated", name, str(error)) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata is no reason to lose the picture
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_of_deep(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    layered = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(layered, mask=layered.getchannel("A"))
    return white


def _grey_of_deep(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    low, high = _value_range(image, values)
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))


def _value_range(image: Image.Image, values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Black and white of a greyscale deeper than 8 bits: the declared depth, or the values' own range if none is."""
    declared = _declared_bits(image)
    if declared is not None:
        return 0.0, 2.0**declared - 1
    least, most = float(values.min()), float(values.max())
    ceilings = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    fits = [ceiling for ceiling in ceilings if least >= 0 and most <= ceiling]
    return (0.0, fits[0]) if fits else (least, most)


def _declared_bits(image: Image.Image) -> int | None:
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        return int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def to_grey(image: Image.Image, *, name: str = "image") -> Image.Image:
    """A cheap greyscale of an opened image, for fingerprints: JPEG is decoded at an eighth where that is enough."""
    image.draft("L", (_DRAFT_SIDE, _DRAFT_SIDE))
    return to_rgb(image, name=name).convert("L")


_DRAFT_SIDE = 64  # four times the side of the fingerprint's thumbnail


@dataclass(frozen=True)
class _Trait:
    modes: tuple[str, ...]
    phrase: str


_TRAITS = (
    _Trait(("1", "L", "LA", "La"), "greyscale"),
    _Trait(("P", "PA"), "palette"),
    _Trait(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"), "16-bit or deeper"),
    _Trait(("CMYK",), "CMYK"),
)


def traits(image: Image.Image) -> tuple[str, ...]:
    """What has to be converted before an opened image is upright 8-bit RGB, as phrases; read from its header."""
    found = [trait.phrase for trait in _TRAITS if image.mode in trait.modes]
    if image.has_transparency_data:
        found.append("transparent (laid on white)")
    if _orientation(image) in _TURNS:
        found.append("rotated by EXIF")
    return tuple(found)
