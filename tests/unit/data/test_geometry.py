"""Pixels equal to those of timm's evaluation transform, but for the rounding of another resampler."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from transferkit.core.errors import OptionError
from transferkit.data import to_pixels
from transferkit.records import CropMode, Interpolation, Preprocessing, View


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def wanted(
    size: int, crop_pct: float, crop_mode: CropMode = "center", interpolation: Interpolation = "bicubic"
) -> Preprocessing:
    return Preprocessing(
        size=size,
        mean=(0.48, 0.45, 0.4),
        std=(0.2, 0.2, 0.2),
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def timms(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    transform = create_transform(
        input_size=(3, preprocessing.size, preprocessing.size),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    return np.asarray(transform(image))


def check_equal(pixels: np.ndarray, expected: np.ndarray, interpolation: str) -> None:
    """Exact with Pillow's filters. Torch's round between rows and columns as well, in an order of their own.

    On noise, where a shift by one pixel is 85 grey levels: at most 1 with bilinear. Bicubic overshoots, and that is
    clipped between the two passes, so single pixels at hard edges differ by more.
    """
    off = np.abs(pixels.astype(int) - expected)
    if interpolation == "bilinear":
        assert off.max() <= 1
    elif interpolation == "bicubic":
        assert off.mean() <= 1
        assert (off > 2).mean() <= 0.15
    else:
        assert off.max() == 0


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(70, 41), (41, 70), (33, 33), (8, 8), (200, 9)])
def test_equal_to_timm(crop_mode: CropMode, interpolation: Interpolation, size: tuple[int, int]) -> None:
    preprocessing = wanted(32, 0.875, crop_mode, interpolation)
    pixels = to_pixels(picture(*size), preprocessing)
    assert pixels.dtype == np.uint8
    check_equal(pixels, timms(picture(*size), preprocessing), interpolation)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 210), (210, 300), (95, 310), (20, 14)])
def test_smooth_pictures_are_within_two_grey_levels(
    crop_mode: CropMode, interpolation: Interpolation, size: tuple[int, int]
) -> None:
    smooth = picture(9, 7).resize(size, Image.Resampling.BICUBIC)
    preprocessing = wanted(64, 0.875, crop_mode, interpolation)
    off = np.abs(to_pixels(smooth, preprocessing).astype(int) - timms(smooth, preprocessing))
    assert off.max() <= 2
    assert off.mean() <= 0.3


def test_a_picture_of_the_right_size_keeps_its_values() -> None:
    image = picture(32, 32)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        pixels = to_pixels(image, wanted(32, 1.0, interpolation=interpolation))
        assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(8, 48),
    crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0, 1.15, 1.2, 1.5]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_equal_to_timm_at_any_size(width: int, height: int, size: int, crop_pct: float, crop_mode: CropMode) -> None:
    preprocessing = wanted(size, crop_pct, crop_mode)
    # resize_side forgives the rounding of crop_pct, timm does not; where they differ there is nothing to compare.
    if preprocessing.resize_side == math.floor(size / crop_pct) and not (
        crop_mode == "border" and max(width, height) > 2 * preprocessing.resize_side * min(width, height)
    ):
        expected = timms(picture(width, height), preprocessing)
        check_equal(to_pixels(picture(width, height), preprocessing), expected, "bicubic")


def test_equal_to_torchvision() -> None:
    transform = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(35), transforms.PILToTensor()])
    image = picture(97, 61)
    check_equal(to_pixels(image, wanted(35, 0.875, interpolation="bilinear")), transform(image).numpy(), "bilinear")


def test_border_pads_with_the_mean_and_keeps_every_pixel() -> None:
    pixels = to_pixels(Image.new("RGB", (32, 16), (255, 0, 0)), wanted(32, 1.0, "border"))
    assert pixels[:, 0, 0].tolist() == [122, 115, 102]
    assert (pixels[0] == 255).sum() == 32 * 16


def test_the_answer_is_contiguous_and_can_be_written() -> None:
    pixels = to_pixels(picture(20, 20), wanted(16, 1.0))
    pixels[0, 0, 0] = 7
    assert pixels.flags["C_CONTIGUOUS"]


def seen(name: str, crop_mode: CropMode, crop_pct: float = 1.0, *, mirrored: bool = False) -> View:
    return View(name=name, crop_mode=crop_mode, crop_pct=crop_pct, mirrored=mirrored)


VIEWS = (
    seen("crop", "center", 0.875),
    seen("pad", "border"),
    seen("crop+mirror", "center", 0.875, mirrored=True),
    seen("squash+mirror", "squash", mirrored=True),
)


@pytest.mark.parametrize("size", [(70, 41), (41, 70), (33, 33)])
def test_views_are_the_pictures_of_each_alone_in_their_order(size: tuple[int, int]) -> None:
    several = replace(wanted(32, 1.0, "squash"), views=VIEWS)
    stack = to_pixels(picture(*size), several)
    assert (stack.shape, stack.dtype) == ((4, 3, 32, 32), np.uint8)
    for view, found in zip(VIEWS, stack, strict=True):
        alone = to_pixels(picture(*size), wanted(32, view.crop_pct, view.crop_mode))
        assert np.array_equal(found, alone[..., ::-1] if view.mirrored else alone)


def test_a_mirrored_picture_is_flipped_after_its_geometry() -> None:
    plain, mirrored = wanted(32, 0.875), replace(wanted(32, 0.875), mirrored=True)
    flipped = to_pixels(picture(70, 41), mirrored)
    assert np.array_equal(flipped[..., ::-1], to_pixels(picture(70, 41), plain))
    assert flipped.flags["C_CONTIGUOUS"]


def test_views_of_one_name_are_refused() -> None:
    with pytest.raises(OptionError, match="views must differ in name, got pad, pad"):
        replace(wanted(32, 1.0), views=(VIEWS[1], VIEWS[1]))
