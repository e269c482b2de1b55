"""JPEG decoded at a fraction of its size: the same part of the picture, against ramps whose values are known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data import PixelStore, decode, open_data, predictable_pixels, scaled, to_pixels
from transferkit.data.geometry import crop_offset, resized_size
from transferkit.data.image_errors import ImageError
from transferkit.data.scaled import MARGIN, SCALES, choose_scale, read_pixels
from transferkit.records import Interpolation, Preprocessing, View

GEOMETRIES = {
    "crop": View(name="crop", crop_mode="center", crop_pct=0.875),
    "full": View(name="full", crop_mode="center"),
    "squash": View(name="squash", crop_mode="squash"),
    "pad": View(name="pad", crop_mode="border"),
    "zoom": View(name="zoom", crop_mode="center", crop_pct=0.7),
    "wide": View(name="wide", crop_mode="border", crop_pct=1.25),
}

ROUNDING = 0.5
"""Grey levels by which rounding and JPEG may move a ramp on average."""

SHIFT = 0.13
"""Pixels by which it may seem shifted in any row or column: a filter cut off at the picture's edge shifts it by 0.1
there. One that took a picture of 643 px, decoded as 81 px of 8, for 648 px would shift it by 0.19 at the right edge."""


def wanted(size: int = 24, geometry: str = "crop", interpolation: Interpolation = "bicubic") -> Preprocessing:
    plain = Preprocessing(size=size, mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, interpolation=interpolation)
    return plain.seen_as(GEOMETRIES[geometry])


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, both from 0 to 255; blue is 128."""
    x, y = (255 * (np.arange(side) + 0.5) / side for side in (width, height))
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return Image.fromarray(np.rint(np.stack([red, green, np.full_like(red, 128)], axis=2)).astype(np.uint8))


def encoded(image: Image.Image, format_name: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    how = {"quality": 95, "subsampling": 0} if format_name != "PNG" else {}
    image.save(buffer, format=format_name, **{**how, **options})
    return buffer.getvalue()


def read(raw: bytes, preprocessing: Preprocessing, *, max_pixels: int = 10**8) -> npt.NDArray[np.uint8]:
    return read_pixels(raw, preprocessing, name="it", max_pixels=max_pixels, range_for=lambda _: None)


def expected_ramp(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(S,) red by column and (S,) green by row, NaN where there is a border."""
    lines = []
    for side in resized_size(size, preprocessing):
        at = np.arange(preprocessing.size) + crop_offset(side, preprocessing.size)
        lines.append(np.where((at >= 0) & (at < side), 255 * (at + 0.5) / side, np.nan))
    return lines[0], lines[1]


def check_ramp(pixels: npt.NDArray[np.uint8], size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Each row and column is where it belongs, and the border has its colour."""
    red, green = expected_ramp(size, preprocessing)
    inside = ~(np.isnan(red)[None, :] | np.isnan(green)[:, None])
    sides = resized_size(size, preprocessing)
    for channel, values, side in zip(pixels, (red[None, :], green[:, None]), sides, strict=False):
        off = np.where(inside, np.abs(channel - values), 0.0)
        for axis in (0, 1):
            counts = np.maximum(inside.sum(axis=axis), 1)
            assert (off.sum(axis=axis) / counts).max() <= ROUNDING + SHIFT * 255 / side
    assert np.abs(pixels[2].astype(float) - 128)[inside].max() <= 2
    fill = np.rint(255 * np.array(preprocessing.mean)) if preprocessing.crop_mode == "border" else np.zeros(3)
    assert (pixels[:, ~inside] == fill[:, None]).all()


def decoded_size(raw: bytes, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """(width, height) of what is decoded for a geometry."""
    monkeypatch.setattr(scaled, "view_pixels", lambda picture_for, view: picture_for(view).image.size)
    size: Any = read(raw, preprocessing)
    return size


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(640, 480), (479, 637), (501, 501), (1603, 299), (333, 1200)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_every_geometry_shows_its_part_of_the_picture(
    geometry: str, size: tuple[int, int], interpolation: Interpolation
) -> None:
    preprocessing = wanted(24, geometry, interpolation)
    assert choose_scale(size, preprocessing) > 1
    check_ramp(read(encoded(ramp(*size)), preprocessing), size, preprocessing)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 700),
    height=st.integers(20, 700),
    size=st.integers(16, 64),
    geometry=st.sampled_from(sorted(GEOMETRIES)),
    turn=st.integers(1, 8),
)
def test_any_size_and_orientation_shows_the_same_part(
    width: int, height: int, size: int, geometry: str, turn: int
) -> None:
    preprocessing = wanted(size, geometry)
    raw = stored_turned(ramp(width, height), turn)
    pixels, full = read(raw, preprocessing), to_pixels(decode(raw), preprocessing)
    assert np.abs(pixels.astype(int) - full).mean() <= 1
    if choose_scale((width, height), preprocessing) == 1:
        assert np.array_equal(pixels, full)


def stored_turned(upright: Image.Image, turn: int, **options: Any) -> bytes:
    """A JPEG whose EXIF says how to turn it so that it looks like `upright`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[274] = turn
    return encoded(upright.transpose(undo[turn]) if turn in undo else upright, exif=exif, **options)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (643, 485), (486, 644)])
def test_orientation_is_applied(turn: int, size: tuple[int, int]) -> None:
    preprocessing = wanted(24, "full")
    check_ramp(read(stored_turned(ramp(*size), turn), preprocessing), size, preprocessing)


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_pictures_are_decoded_at_a_fraction_that_keeps_their_edges(
    turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    even, odd = stored_turned(ramp(648, 480), turn), stored_turned(ramp(643, 485), turn)
    assert decoded_size(even, wanted(24, "full"), monkeypatch) == (81, 60)
    keeps_edges = turn in (1, 5)
    assert decoded_size(odd, wanted(24, "full"), monkeypatch) == ((81, 61) if keeps_edges else (643, 485))


@pytest.mark.parametrize(
    ("size", "side", "decoded"),
    [
        ((500, 375), 96, (500, 375)),
        ((500, 375), 64, (250, 188)),
        ((2000, 1500), 224, (1000, 750)),
        ((2000, 1500), 96, (500, 375)),
        ((2000, 1500), 48, (250, 188)),
        ((24, 24), 24, (24, 24)),
        ((9, 7), 24, (9, 7)),
    ],
)
def test_what_is_decoded_is_still_twice_as_large_as_the_resized_picture(
    size: tuple[int, int], side: int, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded_size(encoded(ramp(*size)), wanted(side), monkeypatch) == decoded


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    side=st.integers(8, 512),
    geometry=st.sampled_from(sorted(GEOMETRIES)),
    whole=st.booleans(),
)
def test_the_smallest_fraction_with_the_margin_is_chosen(
    size: tuple[int, int], side: int, geometry: str, whole: bool
) -> None:
    preprocessing = wanted(side, geometry)
    shrinkage = min(full / target for full, target in zip(size, resized_size(size, preprocessing), strict=True))

    def fits(scale: int) -> bool:
        return shrinkage / scale >= MARGIN and not (whole and any(full % scale for full in size))

    chosen = choose_scale(size, preprocessing, whole=whole)
    assert chosen == 1 or fits(chosen)
    assert not any(fits(scale) for scale in SCALES if scale > chosen)


def test_small_images_other_formats_and_nearest_are_read_at_full_size() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    small = noise.crop((0, 0, 60, 45))
    for raw, wants in (
        (encoded(small), wanted()),
        (encoded(noise, "PNG"), wanted()),
        (encoded(noise, "WEBP"), wanted()),
        (encoded(noise), wanted(interpolation="nearest")),
    ):
        assert np.array_equal(read(raw, wants), to_pixels(decode(raw), wants))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {"progressive": True}), ("RGB", {"subsampling": 2}), ("CMYK", {}), ("L", {}), ("RGB", {"quality": 50})],
    ids=["progressive", "chroma", "cmyk", "grey", "coarse"],
)
def test_every_kind_of_jpeg(mode: str, options: dict[str, Any]) -> None:
    raw = encoded(ramp(643, 482).convert(mode), **options)
    pixels, full = read(raw, wanted(32)), to_pixels(decode(raw), wanted(32))
    assert choose_scale((643, 482), wanted(32)) > 1
    assert np.abs(pixels.astype(int) - full).mean() <= 1
    if mode == "L":
        assert np.array_equal(pixels[0], pixels[1])
        assert np.ptp(pixels) > 100


def test_of_several_pictures_in_a_file_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    black = Image.new("RGB", (640, 480))
    raw = encoded(ramp(640, 480), "MPO", save_all=True, append_images=[black])
    check_ramp(read(raw, wanted()), (640, 480), wanted())
    assert decoded_size(raw, wanted(), monkeypatch) == (80, 60)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused_as_at_full_size(kept: float, progressive: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    raw = encoded(noise, progressive=progressive, quality=50)
    cut = raw[: int(kept * len(raw))]
    for reader in (lambda: read(cut, wanted()), lambda: decode(cut)):
        with pytest.raises(ImageError, match="cut off or damaged") as caught:
            reader()
        assert caught.value.kind == "truncated"


def test_max_pixels_counts_what_is_stored() -> None:
    raw = encoded(ramp(640, 480))
    assert read(raw, wanted(), max_pixels=640 * 480).shape == (3, 24, 24)
    with pytest.raises(DataError, match=r"it: more pixels than max_pixels allows \(640 x 480, max_pixels is 307,199\)"):
        read(raw, wanted(), max_pixels=640 * 480 - 1)


def test_a_view_has_the_same_pixels_alone_and_among_others() -> None:
    rough = Image.fromarray(np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    raw, plain = encoded(rough), wanted(60, "full")
    views = tuple(replace(view, name=f"{name}", mirrored=name == "pad") for name, view in GEOMETRIES.items())
    stack = read(raw, replace(plain, views=views))
    scales = {choose_scale(rough.size, plain.seen_as(view)) for view in views}
    assert len(scales) > 1
    for view, pixels in zip(views, stack, strict=True):
        assert np.array_equal(pixels, read(raw, plain.seen_as(view)))


def test_the_range_is_asked_for_once() -> None:
    asked: list[object] = []
    views = tuple(GEOMETRIES.values())
    read_pixels(
        encoded(ramp(640, 480)),
        replace(wanted(60), views=views),
        name="it",
        max_pixels=10**8,
        range_for=lambda deep: asked.append(deep),
    )
    assert asked == [None]


def test_frozen_pass_training_and_prediction_get_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            rough = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
            (tmp_path / name / f"{number}.jpg").write_bytes(encoded(rough))
    data, wants = open_data(tmp_path, test=0.0, progress=False), wanted(24)
    found = dict(predictable_pixels(tmp_path, wants))
    store = PixelStore(data, np.arange(len(data)), wants, progress=False)
    for index, item in enumerate(data.items):
        path = tmp_path / item
        assert np.array_equal(data.pixels(index, wants), read(path.read_bytes(), wants))
        assert np.array_equal(found[str(path)], data.pixels(index, wants))
        assert np.array_equal(store[index].numpy(), data.pixels(index, wants))
        assert not np.array_equal(data.pixels(index, wants), to_pixels(data.image(index), wants))


def test_an_image_that_the_caller_opened_is_left_at_its_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(ramp(640, 480)))
    with Image.open(tmp_path / "a.jpg") as mine:
        ((_, pixels),) = predictable_pixels(mine, wanted())
        assert mine.size == (640, 480)
        check_ramp(pixels, (640, 480), wanted())
