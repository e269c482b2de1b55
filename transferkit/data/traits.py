"""What has to be converted before an image is upright 8-bit RGB, as phrases for people."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from transferkit.data.decode import is_clear, is_turned
from transferkit.data.deep_pixels import may_be_deep
from transferkit.data.tiff import bits_per_sample

__all__ = ["CLEAR", "REDUCED", "late_traits", "traits"]


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
"""Trait of an image whose lower bytes Pillow does not return, in a format of which they cannot be read."""

CLEAR = "transparent throughout (colours underneath used)"
"""Trait of an image that would show nothing if it were laid on white."""

LAID_ON_WHITE = "transparent (laid on white)"


def traits(image: Image.Image) -> tuple[str, ...]:
    """What has to be converted before an opened image is 8-bit RGB, as phrases; from its header alone."""
    found = [trait.phrase for trait in _TRAITS if image.mode in trait.modes]
    if image.mode in ("RGB", "RGBA", "CMYK") and _bits(image) > 8:
        found.append("16-bit colour" if may_be_deep(image) else REDUCED)
    if image.has_transparency_data:
        found.append(LAID_ON_WHITE)
    return tuple(found)


def late_traits(image: Image.Image, found: tuple[str, ...]) -> tuple[str, ...]:
    """The traits of a loaded image: `found` in its header, and those that only its pixels or the end of the file show.

    Apart, because a PNG has to be loaded to find EXIF behind its pixels, and forgets then how they were stored.
    """
    if LAID_ON_WHITE in found and is_clear(image):
        found = tuple(CLEAR if trait == LAID_ON_WHITE else trait for trait in found)
    return (*found, "rotated by EXIF") if is_turned(image) else found


def _bits(image: Image.Image) -> int:
    """Bits per value in the file, as far as its header says."""
    if bits := bits_per_sample(image):
        return bits
    tiles = getattr(image, "tile", None) or ()
    arguments = tiles[0].args if tiles else ""
    if image.format == "PPM" and isinstance(arguments, tuple) and len(arguments) > 1:
        return 16 if isinstance(arguments[1], int) and arguments[1] > 255 else 8
    return 16 if ";16" in str(arguments) else 8
