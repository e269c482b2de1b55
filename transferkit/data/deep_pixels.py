"""The values of images deeper than 8 bits, or signed, which Pillow returns only in part.

Which of them are black and white is in `depth`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from transferkit.data.depth import DeepPixels, Range
from transferkit.data.headers import open_header
from transferkit.data.image_errors import ImageError
from transferkit.data.tiff import bits_per_sample, missing_values, sample_format

__all__ = ["load_deep", "may_be_deep"]


def may_be_deep(image: Image.Image) -> bool:
    """Whether an opened image can hold values deeper than 8 bits, or signs, as far as its header says."""
    if image.mode in ("RGB", "RGBA"):
        return _raw_mode(image)[:-1] in ("RGB;16", "RGBA;16", "RGBX;16")
    return image.mode == "F" or image.mode.startswith("I") or (image.mode == "L" and image.format == "TIFF")


def load_deep(image: Image.Image, *, name: str = "image") -> DeepPixels | None:
    """The values of an opened image, which is decoded, if they are deeper than 8 bits; else None.

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
    """(H, W, 3) the lower byte of 16-bit colours, of which Pillow keeps the upper; None if it has none.

    Pillow reads the lower byte when told that the file has the other byte order.
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
    """Pillow's name of how the file stores a pixel; "" if the image is decoded already, or its format does not say."""
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


def _deep_grey(image: Image.Image) -> DeepPixels | None:
    """The values of a loaded greyscale image that is deeper than 8 bits or has signs."""
    bits, sample = bits_per_sample(image), sample_format(image)
    values = np.asarray(image) if image.mode == "F" or image.mode.startswith("I") else None
    if values is None:
        if image.mode != "L" or bits != 8 or sample != 2:
            return None
        values = np.asarray(image).view(np.int8)  # Pillow loses the sign
    elif image.mode == "I" and bits == 32 and sample == 1:
        values = values.view(np.uint32)  # likewise
    kind, declared = _depth(image, bits, sample)
    return DeepPixels(values, kind, declared, missing_values(image))


def _depth(image: Image.Image, bits: int, sample: int) -> tuple[str, Range | None]:
    """The type of the values, for people, and the least and greatest that it can hold, where that is informative."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return f"{bits or 16}-bit unsigned", (0.0, 2.0 ** (bits or 16) - 1)
    if image.mode == "F":
        return "32-bit float", None
    if bits in (8, 16):
        return f"{bits}-bit signed", (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    return f"32-bit {'unsigned' if bits == 32 and sample == 1 else 'signed'}", None
