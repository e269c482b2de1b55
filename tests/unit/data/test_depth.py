"""Which values are black and white, against data whose range is known by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from transferkit.data.depth import DeepPixels, choose_range, fallback_range, own_range, sketch_values, to_8_bit

WORD = (0.0, 65535.0)


def deep(values: npt.NDArray[Any], **options: Any) -> DeepPixels:
    return DeepPixels(values, "test", **options)


def ramp(low: float, high: float, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """(40, 50) evenly from low to high."""
    return np.linspace(low, high, 2000).reshape(40, 50).astype(dtype)


def range_of(*images: npt.NDArray[Any], **options: Any) -> tuple[float, float] | None:
    return choose_range([sketch_values(deep(image, **options)) for image in images])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([ramp(1000, 1100, np.uint16)], (1000, 1100)),
        ([ramp(1000, 1050, np.uint16), ramp(1040, 1100, np.uint16)], (1000, 1100)),
        ([ramp(0, 0.9), ramp(0.2, 1)], (0, 1)),
        ([ramp(0, 1), ramp(0, 255)], (0, 255)),
        ([ramp(0, 200, np.int32), ramp(3, 140, np.int32)], (0, 255)),
        ([ramp(20, 3000, np.uint16)], (0, 4095)),
        ([ramp(0, 65535, np.uint16)], (0, 65535)),
        ([ramp(-1000, 3000, np.int16)], (-1000, 3000)),
        ([ramp(0, 300, np.uint16)], (0, 300)),
        ([np.full((9, 9), 77, np.int32)], (0, 255)),
        ([np.full((9, 9), -5.0, np.float32)], (-5.5, -4.5)),
    ],
    ids=["narrow", "two", "unit", "bytes", "int-bytes", "12-bit", "16-bit", "ct", "between", "flat", "flat-negative"],
)
def test_one_range_holds_for_all_images(images: list[npt.NDArray[Any]], expected: tuple[float, float]) -> None:
    assert range_of(*images) == pytest.approx(expected)


def test_a_signed_type_that_is_used_keeps_its_own_range() -> None:
    assert range_of(ramp(-30000, 20000, np.int16), declared=(-32768.0, 32767.0)) == (-32768, 32767)


@pytest.mark.parametrize("missing", [-9999.0, -32768.0, -3.4028235e38, 1e20, 65535.0])
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_a_lone_value_far_from_the_others_is_missing(missing: float, share: float) -> None:
    image = ramp(500, 600)
    image.reshape(-1)[: int(share * image.size)] = missing
    sketch = sketch_values(deep(image))
    assert sketch.missing == pytest.approx((missing,))
    low, high = choose_range([sketch]) or (0, 0)
    assert 499 < low < 541
    assert high == pytest.approx(600)


def test_infinities_and_nan_do_not_count_and_everything_missing_is_no_range() -> None:
    image = ramp(500, 600)
    image[0, :3] = np.inf, -np.inf, np.nan
    sketch = sketch_values(deep(image))
    assert sketch.not_finite == 3
    assert choose_range([sketch]) == pytest.approx((500, 600), abs=0.5)
    assert range_of(np.full((4, 4), -9999.0)) is None
    assert range_of(np.full((4, 4), np.nan)) is None
    assert range_of() is None


def test_a_value_that_the_file_calls_missing_may_lie_anywhere() -> None:
    image = ramp(10, 90, np.int16)
    image[:10] = 55
    sketch = sketch_values(deep(image, nodata=(55.0,)))
    assert (sketch.missing, sketch.stated) == ((55.0,), (55.0,))
    assert to_8_bit(deep(image, nodata=(55.0,)), (10, 90))[0, 0] == 0


@pytest.mark.parametrize(
    "image",
    [
        np.array([[0, 65535]] * 8, np.uint16),
        np.array([[0, 1000, 1001]] * 8, np.uint16),
        np.where(np.indices((40, 50))[0] < 5, 0, ramp(300, 400)).astype(np.uint16),
        ramp(-9999, 9999),
    ],
    ids=["mask", "three-tones", "dark-background", "all-the-way"],
)
def test_what_belongs_to_the_picture_is_not_missing(image: npt.NDArray[Any]) -> None:
    sketch = sketch_values(deep(image))
    assert sketch.missing == ()
    assert sketch.quantiles[0] == image.min()
    assert sketch.quantiles[-1] == image.max()


def test_a_few_hot_pixels_and_a_few_odd_images_do_not_stretch_the_range() -> None:
    rng = np.random.default_rng(0)
    hot = rng.normal(1000, 10, (100, 100)).astype(np.float32)
    hot[0, :5] = 1300, 1450, 1600, 1750, 1900
    low, high = range_of(hot) or (0, 0)
    assert 950 < low < high < 1050
    images = [rng.normal(1000, 10, (20, 20)) for _ in range(300)]
    assert (range_of(*images, rng.normal(90_000, 10, (20, 20))) or (0, 0))[1] < 1100


@pytest.mark.parametrize("images", [10, 24])
def test_one_broken_image_does_not_take_the_levels_of_all_others(images: int) -> None:
    good = [ramp(1000, 1100 + number, np.uint16) for number in range(images)]
    assert range_of(*good, ramp(0, 65535, np.uint16)) == pytest.approx((1000, 1100 + images), abs=5)
    # Several of that kind are no accident.
    assert range_of(*good, *[ramp(0, 65535, np.uint16)] * 3) == (0, 65535)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1000, 1020, 1100], [0, 51, 255]), ([900, 1200], [0, 255]), ([np.nan, np.inf, -np.inf], [0, 255, 0])],
    ids=["inside", "clipped", "not-finite"],
)
def test_levels_are_linear_between_black_and_white(values: list[float], expected: list[int]) -> None:
    assert to_8_bit(deep(np.array([values], np.float64)), (1000, 1100)).tolist() == [expected]


def test_without_a_data_set_the_file_speaks_and_for_fingerprints_the_image_does() -> None:
    dark = sketch_values(deep(ramp(1000, 1100, np.uint16), declared=WORD))
    assert fallback_range(dark) == WORD
    assert own_range(dark) == (1000, 1100)
    assert fallback_range(sketch_values(deep(np.full((2, 2), np.nan)))) == (0, 1)
