"""An image file as upright 8-bit RGB, or the exact reason why not.

Leaves geometry to `geometry`, arrays and tensors to `arrays`.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import ExifTags, Image

from transferkit.data.deep_pixels import load_deep
from transferkit.data.depth import DeepPixels, Range, fallback_range, sketch_values, to_8_bit
from transferkit.data.headers import open_header, read_bytes
from transferkit.data.image_errors import ImageError
from transferkit.data.members import ImageFile, Member
from transferkit.options import MAX_PIXELS

__all__ = ["decode", "flatten", "is_clear", "is_turned", "orientation_of", "to_grey", "to_rgb"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_DRAFT_SIDE = 64  # four times the side of the fingerprint's thumbnail


def decode(
    file: str | ImageFile | bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS, value_range: Range | None = None
) -> Image.Image:
    """The image as 8-bit RGB, upright.

    EXIF rotation is applied. Transparent images are laid on white; one that is transparent throughout keeps the colours
    underneath. Palettes, CMYK, LAB and greyscale become RGB. Of an animation or of several pages, the first is read.

    Args:
        file: A path, a member of an archive, the encoded bytes, or a binary file object.
        max_pixels: Width times height above which the header alone is refused, before anything is decoded.
        value_range: (black, white) of values deeper than 8 bits, in stored units. None takes what the file declares
            (0 to 65535), or what its own values need: images of one data set are comparable only with one range.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        DataError: The file is missing, empty, no image, damaged, or larger than `max_pixels`.

    Example:
        >>> import io
        >>> import numpy as np
        >>> buffer = io.BytesIO()
        >>> Image.fromarray(np.full((3, 4), 1020, np.uint16)).save(buffer, format="PNG")
        >>> decode(buffer.getvalue(), value_range=(1000, 1100)).getpixel((0, 0))
        (51, 51, 51)
    """
    name = str(file) if isinstance(file, (str, Path, Member)) else str(getattr(file, "name", "image"))
    image = open_header(read_bytes(file), name=name, max_pixels=max_pixels)
    return to_rgb(image, name=name, value_range=value_range)


def to_rgb(image: Image.Image, *, name: str = "image", value_range: Range | None = None) -> Image.Image:
    """Any PIL image as upright 8-bit RGB; raises `ImageError` of kind "truncated" where pixels are missing.

    Args:
        image: Perhaps not loaded yet.
        name: What to call it in an error.
        value_range: As in `decode`.
    """
    rgb = flatten(image, load_deep(image, name=name), name=name, value_range=value_range)
    return rgb.copy() if rgb is image else rgb


def to_grey(image: Image.Image, *, name: str = "image") -> Image.Image:
    """A cheap greyscale of an opened image, for fingerprints: JPEG is decoded at an eighth where that is enough."""
    image.draft("L", (_DRAFT_SIDE, _DRAFT_SIDE))
    return to_rgb(image, name=name).convert("L")


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that an image is to be rotated or mirrored."""
    return orientation_of(image) in _TURNS


def flatten(
    image: Image.Image, deep: DeepPixels | None, *, name: str = "image", value_range: Range | None = None
) -> Image.Image:
    """A loaded image as upright 8-bit RGB: itself if it is that already. `deep` is the result of `load_deep` for it."""
    turn = _TURNS.get(orientation_of(image))
    try:
        rgb = _flatten(image) if deep is None else _flatten_deep(image, deep, value_range)
    except ValueError as error:  # a mode that Pillow cannot convert
        raise ImageError("unreadable", name, str(error)) from None
    return rgb if turn is None else rgb.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 is upright, and what broken metadata counts as."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata is no reason to lose the picture
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return _from_lab(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
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
