"""An image file as 8-bit RGB, or the exact reason why not.

Leaves geometry to `geometry`, and arrays and tensors to `arrays`.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from transferkit.core.errors import DataError
from transferkit.core.file_kinds import kind_of
from transferkit.data.depth import DeepPixels, Range, fallback_range, sketch_values, to_8_bit

__all__ = [
    "FAULTS",
    "MAX_PIXELS",
    "TGA_EXTENSIONS",
    "ImageError",
    "can_identify",
    "count_frames",
    "decode",
    "dropped_bands",
    "flatten",
    "heic_hint",
    "late_traits",
    "load_deep",
    "may_be_deep",
    "open_header",
    "to_grey",
    "to_rgb",
    "traits",
]

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gigabyte of RGB."""

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "HEIF"),
    *("QOI", "DDS", "SGI", "SUN", "PCX", "TGA"),
)
"""Pictures only: Pillow would hand a file that holds PostScript to Ghostscript, whatever its name says."""

TGA_EXTENSIONS = frozenset({".tga", ".icb", ".vda", ".vst"})
"""TGA has no mark of its own in its first bytes: only a file of this name is tried as one."""

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
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _NEW_SUBFILE_TYPE, _GDAL_NODATA = 258, 277, 339, 254, 42113
"""TIFF tags."""

_NO_PAGE = 1 | 4
"""Bits of a TIFF's NewSubfileType: a smaller version of another page, a mask."""

_COLOURS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3, "LA": 2, "RGBX": 4, "P": 1, "PA": 2}
"""Mode -> bands of the file that it shows."""


class ImageError(DataError):
    """One image cannot be decoded.

    Args:
        kind: A key of `FAULTS`.
        name: The file, for people.
        detail: What is known beyond the kind.
        size: Width and height in pixels, if they are known.
    """

    def __init__(self, kind: str, name: str, detail: str = "", *, size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(f"{name}: {FAULTS[kind]}{f' ({detail})' if detail else ''}.")
        self.kind = kind
        self.detail = detail
        self.size = size


def decode(
    file: str | Path | bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS, value_range: Range | None = None
) -> Image.Image:
    """The image as 8-bit RGB, upright.

    EXIF rotation is applied; transparency is laid on white, but of an image that is transparent throughout the colours
    underneath are taken; palettes, CMYK, LAB and greyscale become RGB. Of an animation or of several pages, the first.

    Args:
        file: A path, the encoded bytes, or a binary file object.
        max_pixels: Width times height above which the header alone is refused, before anything is decoded.
        value_range: (black, white) of values deeper than 8 bits, in stored units. None takes what the file declares
            (0 to 65535), or what its own values need: images of one data set are comparable only with one range.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        DataError: The file is missing, empty, no image, damaged, or larger than `max_pixels`.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.fromarray(np.full((3, 4), 1020, np.uint16)).save(buffer, format="PNG")
        >>> decode(buffer.getvalue(), value_range=(1000, 1100)).getpixel((0, 0))
        (51, 51, 51)
    """
    name = str(file) if isinstance(file, (str, Path)) else str(getattr(file, "name", "image"))
    image = open_header(read_bytes(file), name=name, max_pixels=max_pixels)
    return to_rgb(image, name=name, value_range=value_range)


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
        raise ImageError("unreadable", name, heic_hint(name) or _unusual_tiff(encoded) or _other_kind(encoded))
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


def _load_heif() -> None:
    """Let Pillow read HEIC, where pillow-heif is installed."""
    if "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()


def _other_kind(encoded: bytes) -> str:
    """What is in the file instead of an image, if its first bytes say."""
    kind = kind_of(encoded[:512])
    return "" if kind is None else f"{kind.name}. {kind.remedy}"


def heic_hint(name: str) -> str:
    """What to install, if a file's name says HEIC and nothing here can read that; else ""."""
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
    """Whether the first bytes are those of an image, so that large files of other kinds are not read to their end."""
    Image.init()
    _load_heif()
    known = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accept is not None and _accepts(accept, first) for accept in known)


def _accepts(accept: Callable[[bytes], bool | str], first: bytes) -> bool:
    try:
        return accept(first) is True  # a text says that the format cannot be read here
    except (IndexError, struct.error):  # fewer bytes than the format's own mark
        return False


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


def _unusual_tiff(encoded: bytes) -> str:
    """What is known of a TIFF that Pillow cannot open: bands and depth; empty if it is none."""
    if encoded[:4] not in (b"II*\0", b"MM\0*"):
        return ""
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(encoded[:8])
        stream = io.BytesIO(encoded)
        stream.seek(directory.next)
        directory.load(stream)
        bits, bands = directory.get(_BITS_PER_SAMPLE, (1,)), directory.get(_SAMPLES_PER_PIXEL, 1)
        sample = _SAMPLES.get(directory.get(_SAMPLE_FORMAT, (1,))[0], "values of an unknown kind")
    except Exception:  # a damaged directory
        return ""
    return (
        f"a TIFF with {bands} {'band' if bands == 1 else 'bands'} of {bits[0]}-bit {sample}, which Pillow cannot read: "
        "save one band as 16-bit integers or 32-bit floats, or three as 8-bit RGB"
    )


_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floats"}


def to_rgb(image: Image.Image, *, name: str = "image", value_range: Range | None = None) -> Image.Image:
    """Any PIL image as upright 8-bit RGB; raises `ImageError` of kind "truncated" where pixels are missing.

    Args:
        image: Perhaps not loaded yet.
        name: What to call it in an error.
        value_range: As in `decode`.
    """
    return flatten(image, load_deep(image, name=name), name=name, value_range=value_range)


def may_be_deep(image: Image.Image) -> bool:
    """Whether an opened image can hold values deeper than 8 bits, or signs, as far as its header says."""
    if image.mode in ("RGB", "RGBA"):
        return _raw_mode(image)[:-1] in ("RGB;16", "RGBA;16", "RGBX;16")
    return image.mode == "F" or image.mode.startswith("I") or (image.mode == "L" and image.format == "TIFF")


def flatten(
    image: Image.Image, deep: DeepPixels | None, *, name: str = "image", value_range: Range | None = None
) -> Image.Image:
    """A loaded image as upright 8-bit RGB; `deep` is what `load_deep` found in it."""
    turn = _TURNS.get(_orientation(image))
    try:
        rgb = _flatten(image) if deep is None else _flatten_deep(image, deep, value_range)
    except ValueError as error:  # a mode that Pillow cannot convert
        raise ImageError("unreadable", name, str(error)) from None
    return rgb if turn is None else rgb.transpose(turn)


def load_deep(image: Image.Image, *, name: str = "image") -> DeepPixels | None:
    """Decode an opened image; what it holds if that is deeper than 8 bits, else None.

    Raises:
        ImageError: Pixels are missing.
    """
    lower = _lower_bytes(image, name)
    _load(image, name)
    if lower is not None:
        upper = np.asarray(image)[..., :3].astype(np.uint16)
        return DeepPixels(upper * 256 + lower, "16-bit colour", (0.0, 65535.0))
    return _deep_grey(image)


def _lower_bytes(image: Image.Image, name: str) -> npt.NDArray[np.uint8] | None:
    """(H, W, 3) the lower byte of 16-bit colours, of which Pillow keeps the upper only; None if it has no such colours.

    Pillow reads the other byte if it takes the file for one of the other byte order.
    """
    if image.mode not in ("RGB", "RGBA") or not may_be_deep(image):
        return None
    stream = getattr(image, "fp", None)
    if stream is None:
        return None
    position = stream.tell()
    stream.seek(0)
    encoded = stream.read()
    stream.seek(position)
    twin = open_header(encoded, name=name, max_pixels=image.width * image.height)
    assert isinstance(twin, ImageFile.ImageFile)
    twin.tile = [tile._replace(args=_other_order(tile.args)) for tile in twin.tile]
    _load(twin, name)
    return np.asarray(twin)[..., :3]


def _raw_mode(image: Image.Image) -> str:
    """How the file stores a pixel, in Pillow's words; empty if it is decoded already, or not told."""
    tiles = getattr(image, "tile", None)
    if not tiles or tiles[0].codec_name not in ("zip", "raw", "libtiff"):
        return ""
    arguments = tiles[0].args
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _other_order(arguments: Any) -> Any:
    swap = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    if isinstance(arguments, str):
        return arguments[:-1] + swap[arguments[-1]]
    return (_other_order(arguments[0]), *arguments[1:])


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
    if image.mode == "LAB":
        return _from_lab(image)
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A")
    if _hides_all(alpha):
        return layered.convert("RGB")
    return _on_white(layered, alpha)


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def _hides_all(alpha: Image.Image) -> bool:
    return alpha.getextrema() == (0, 0)


def is_clear(image: Image.Image) -> bool:
    """Whether a loaded image is transparent throughout."""
    return image.has_transparency_data and _hides_all(image.convert("RGBA").getchannel("A"))


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert found is not None
    return found


def _flatten_deep(image: Image.Image, deep: DeepPixels, value_range: Range | None) -> Image.Image:
    levels = to_8_bit(deep, value_range or fallback_range(sketch_values(deep)))
    rgb = Image.fromarray(levels).convert("RGB")
    if image.mode != "RGBA" or _hides_all(alpha := image.getchannel("A")):
        return rgb
    return _on_white(rgb, alpha)


def _deep_grey(image: Image.Image) -> DeepPixels | None:
    """The values of a loaded greyscale image that is deeper than 8 bits or has signs."""
    tags = getattr(image, "tag_v2", {})
    bits, sample = int(tags.get(_BITS_PER_SAMPLE, (0,))[0]), int(tags.get(_SAMPLE_FORMAT, (1,))[0])
    values = np.asarray(image) if image.mode == "F" or image.mode.startswith("I") else None
    if values is None:
        if image.mode != "L" or bits != 8 or sample != 2:
            return None
        values = np.asarray(image).view(np.int8)  # Pillow loses the sign
    elif image.mode == "I" and bits == 32 and sample == 1:
        values = values.view(np.uint32)  # likewise
    kind, declared = _depth(image, bits, sample)
    return DeepPixels(values, kind, declared, _nodata(tags))


def _depth(image: Image.Image, bits: int, sample: int) -> tuple[str, Range | None]:
    """What the values are, for people, and the least and greatest that the file can hold, where that says something."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return f"{bits or 16}-bit unsigned", (0.0, 2.0 ** (bits or 16) - 1)
    if image.mode == "F":
        return "32-bit float", None
    if bits in (8, 16):
        return f"{bits}-bit signed", (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    return f"32-bit {'unsigned' if bits == 32 and sample == 1 else 'signed'}", None


def _nodata(tags: Mapping[int, Any]) -> tuple[float, ...]:
    try:
        value = float(str(tags[_GDAL_NODATA]).strip(" \0"))
    except (KeyError, ValueError):
        return ()
    return (value, float(np.float32(value))) if np.float32(value) != value else (value,)


def count_frames(encoded: bytes, *, name: str, max_pixels: int) -> int:
    """Frames of an animation or pages of a file, smaller versions of a page and masks left out; at least 1."""
    try:
        image = open_header(encoded, name=name, max_pixels=max_pixels)
        frames = int(getattr(image, "n_frames", 1))
        if frames == 1 or image.format != "TIFF":
            return frames
        return max(1, sum(_is_page(image, number) for number in range(min(frames, _PAGES_LOOKED_AT))))
    except Exception:  # what lies behind the first frame may be damaged, and nobody reads it
        return 1


_PAGES_LOOKED_AT = 1_000


def _is_page(image: Image.Image, number: int) -> bool:
    image.seek(number)
    return not int(getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)) & _NO_PAGE


def dropped_bands(image: Image.Image) -> int:
    """Bands of an opened TIFF that Pillow does not hand out."""
    bands = int(getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 0))
    return max(0, bands - _COLOURS.get(image.mode, bands))


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
    _Trait(("LAB",), "LAB"),
)


REDUCED = "16-bit colour of which only the upper 8 bits are read"
"""Trait of what Pillow hands out without its lower half, and cannot be got at."""

CLEAR = "transparent throughout (colours underneath used)"
"""Trait of what shows nothing otherwise."""

LAID_ON_WHITE = "transparent (laid on white)"


def traits(image: Image.Image) -> tuple[str, ...]:
    """What has to be converted before an opened image is 8-bit RGB, as phrases; read from its header."""
    found = [trait.phrase for trait in _TRAITS if image.mode in trait.modes]
    if image.mode in ("RGB", "RGBA", "CMYK") and _bits(image) > 8:
        found.append("16-bit colour" if may_be_deep(image) else REDUCED)
    if image.has_transparency_data:
        found.append(LAID_ON_WHITE)
    return tuple(found)


def late_traits(image: Image.Image, found: tuple[str, ...]) -> tuple[str, ...]:
    """The same of a loaded image: `found`, and what only its pixels or its end tell.

    Apart, because a PNG is loaded to look for EXIF behind its pixels, and how they were stored is forgotten then.
    """
    if LAID_ON_WHITE in found and is_clear(image):
        found = tuple(CLEAR if trait == LAID_ON_WHITE else trait for trait in found)
    return (*found, "rotated by EXIF") if _orientation(image) in _TURNS else found


def _bits(image: Image.Image) -> int:
    """Bits per value in the file, as far as its header says."""
    tags = getattr(image, "tag_v2", {})
    if _BITS_PER_SAMPLE in tags:
        return int(tags[_BITS_PER_SAMPLE][0])
    tiles = getattr(image, "tile", None) or ()
    arguments = tiles[0].args if tiles else ""
    if image.format == "PPM" and isinstance(arguments, tuple) and len(arguments) > 1:
        return 16 if isinstance(arguments[1], int) and arguments[1] > 255 else 8
    return 16 if ";16" in str(arguments) else 8
