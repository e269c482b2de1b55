"""Every kind of image file, against pixel values known by construction."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from transferkit.core.errors import DataError
from transferkit.data import decode
from transferkit.data.image_errors import ImageError


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """The header of a bomb; there is nothing behind it to decode."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 100, 0, 0)), (200, 100, 0)),
        (Image.new("RGBA", (2, 2), (200, 100, 0, 255)), (200, 100, 0)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (2, 2), (0, 51)), (204, 204, 204)),
        (Image.new("RGB", (2, 2), (9, 8, 7)).quantize(4), (9, 8, 7)),
    ],
    ids=["rgb", "grey", "bit", "clear", "opaque", "red-at-a-fifth", "grey-alpha", "palette"],
)
def test_modes_become_rgb_on_white(image: Image.Image, expected: tuple[int, ...]) -> None:
    decoded = decode(encoded(image))
    assert decoded.mode == "RGB"
    assert pixel(decoded) == expected


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_entry_is_laid_on_white(format_name: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    decoded = decode(encoded(image, format_name, transparency=1))
    assert pixel(decoded, (0, 0)) == (10, 20, 30)
    assert pixel(decoded, (1, 0)) == (255, 255, 255)


def test_a_transparent_colour_without_alpha_channel_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8))
    decoded = decode(encoded(image, transparency=(1, 2, 3)))
    assert [pixel(decoded, (x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(format_name: str) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None]
    decoded = decode(encoded(Image.fromarray(ramp), format_name))
    assert np.asarray(decoded)[0, :, 0].tolist() == list(range(256))


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert pixel(decode(encoded(Image.fromarray(np.full((2, 2), 2570, dtype=np.uint16))))) == (10, 10, 10)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([-100.0, 0.0, 400.0], [0, 51, 255]),
        ([float("nan"), 0.2, 1.0], [0, 51, 255]),
    ],
    ids=["unit", "bytes", "stretched", "nan-is-black"],
)
def test_float_tiff_is_scaled_by_its_range(values: list[float], expected: list[int]) -> None:
    decoded = decode(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert np.asarray(decoded)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 51, 255], [0, 51, 255]), ([0, 51 * 257, 65535], [0, 51, 255]), ([-100, 0, 400], [0, 51, 255])],
    ids=["8-bit", "16-bit", "stretched"],
)
def test_32_bit_tiff_is_scaled_by_the_depth_its_values_need(values: list[int], expected: list[int]) -> None:
    decoded = decode(encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF"))
    assert np.asarray(decoded)[0, :, 0].tolist() == expected


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixel(decode(encoded(red, "JPEG", quality=95)), (8, 8)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_exif_orientation_shows_the_picture_upright(orientation: int, format_name: str) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # How the camera stored it: the inverse of "row 0 is ..., column 0 is ..." in the EXIF standard, table for tag 274.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    decoded = decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), format_name, exif=exif))
    assert np.array_equal(np.asarray(decoded)[..., 0], upright)


def test_broken_exif_does_not_cost_the_picture() -> None:
    raw = encoded(Image.new("RGB", (4, 4), (50, 60, 70)), exif=b"Exif\0\0not a tiff header at all")
    assert pixel(decode(raw)) == (50, 60, 70)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(decode(raw)) == (255, 0, 0)


def test_path_bytes_and_file_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "グラフ é.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), (5, 6, 7))))
    with path.open("rb") as file:
        images = [decode(path), decode(str(path)), decode(path.read_bytes()), decode(file)]
    assert {(image.size, pixel(image)) for image in images} == {((3, 2), (5, 6, 7))}


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(format_name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    raw = encoded(noise, format_name)
    assert decode(raw).size == (64, 64)
    with pytest.raises(ImageError, match=r"cut off or damaged|not an image"):
        decode(raw[: len(raw) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_truncated_jpeg_is_named_as_such() -> None:
    raw = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(ImageError, match="cut off or damaged") as caught:
        decode(raw[:-200])
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        (b"", "zero_byte", r"empty \(0 bytes\)"),
        (b"hello, this is text", "unreadable", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unreadable", "not an image"),
        (huge_png(30_000, 30_000), "oversized", "30000 x 30000, max_pixels is 89,478,485"),
    ],
    ids=["empty", "text", "postscript", "bomb"],
)
def test_what_cannot_be_decoded_says_why(raw: bytes, kind: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=message) as caught:
            decode(raw)
    assert isinstance(caught.value, ImageError)
    assert caught.value.kind == kind


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        decode(tmp_path / "gone.png")


def test_max_pixels_counts_width_times_height() -> None:
    raw = encoded(Image.new("RGB", (10, 10)))
    assert decode(raw, max_pixels=100).size == (10, 10)
    with pytest.raises(DataError, match="10 x 10, max_pixels is 99"):
        decode(raw, max_pixels=99)


def test_a_larger_limit_is_honoured_beyond_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)


def test_threads_leave_the_warning_filters_alone() -> None:
    raws = [huge_png(10_000, 10_000), encoded(Image.new("RGB", (4, 4)))] * 20
    before = list(warnings.filters)

    def outcome(raw: bytes) -> str:
        try:
            return str(decode(raw).size)
        except ImageError as error:
            return error.kind

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, raws)) == ["oversized", "(4, 4)"] * 20
    assert list(warnings.filters) == before
