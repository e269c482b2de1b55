"""What the tags of a TIFF say of its bits, bands, pages and missing values."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, TiffImagePlugin

__all__ = ["bits_per_sample", "dropped_bands", "is_page", "missing_values", "sample_format", "unreadable_tiff"]

_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _NEW_SUBFILE_TYPE, _GDAL_NODATA = 258, 277, 339, 254, 42113
"""TIFF tags."""

_NO_PAGE = 1 | 4
"""Bits of a TIFF's NewSubfileType: a smaller version of another page, a mask."""

_COLOURS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3, "LA": 2, "RGBX": 4, "P": 1, "PA": 2}
"""Pillow mode -> number of bands of the file that it holds."""

_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floats"}


def unreadable_tiff(encoded: bytes) -> str:
    """Bands and depth of a TIFF that Pillow cannot open, with the remedy; "" if it is no TIFF."""
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


def bits_per_sample(image: Image.Image) -> int:
    """Bits per value of an opened TIFF; 0 for any other format."""
    return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (0,))[0])


def sample_format(image: Image.Image) -> int:
    """1 if the values of an opened image are unsigned integers, 2 if signed, 3 if floats; 1 where no TIFF says."""
    return int(getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0])


def is_page(image: Image.Image, number: int) -> bool:
    """Whether a frame of an opened TIFF is a page, and no smaller version of one and no mask."""
    image.seek(number)
    return not int(getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)) & _NO_PAGE


def dropped_bands(image: Image.Image) -> int:
    """The number of bands of an opened TIFF that Pillow does not return."""
    bands = int(getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 0))
    return max(0, bands - _COLOURS.get(image.mode, bands))


def missing_values(image: Image.Image) -> tuple[float, ...]:
    """The value that GDAL wrote where nothing was measured, as declared and as a 32-bit float holds it; often none."""
    try:
        value = float(str(getattr(image, "tag_v2", {})[_GDAL_NODATA]).strip(" \0"))
    except (KeyError, ValueError):
        return ()
    return (value, float(np.float32(value))) if np.float32(value) != value else (value,)
