"""Images to predictions through whatever computes the probabilities; a result and a toy answer to the same names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.unit.result.result_toys import draw_pictures, make_model, make_result
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.running import BATCH
from transferkit.records import PixelClassifier, Predictor, Preprocessing, View
from transferkit.result import ImagePredictor

PLAIN = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


class Brightness:
    """Its second probability is the mean of the pixels."""

    classes = ("dark", "bright")

    def __init__(self, preprocessing: Preprocessing = PLAIN) -> None:
        self.preprocessing = preprocessing
        self.shapes: list[tuple[int, ...]] = []

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        self.shapes.append(pixels.shape)
        bright = pixels.reshape(len(pixels), -1).mean(axis=1) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (12, 9), (level,) * 3)


def test_a_result_and_toys_are_what_the_protocols_say() -> None:
    result, toy = make_result(), Brightness()
    assert isinstance(result, Predictor)
    assert isinstance(result, PixelClassifier)
    assert isinstance(toy, PixelClassifier)
    assert not isinstance(toy, Predictor)
    assert isinstance(ImagePredictor(toy), Predictor)


def test_a_classifier_of_pixels_predicts_images() -> None:
    toy = Brightness()
    found = ImagePredictor(toy).predict([grey(0), grey(51), grey(255)])
    assert found.classes == toy.classes == ImagePredictor(toy).classes
    assert found.labels == ["dark", "dark", "bright"]
    np.testing.assert_allclose(found.probabilities[:, 1], [0, 0.2, 1], atol=1e-6)
    assert toy.shapes == [(3, 3, 8, 8)]


@pytest.mark.parametrize(("views", "sizes"), [(0, [32, 32, 6]), (3, [10, 10, 10, 10, 10, 10, 10])])
def test_batches_are_as_large_as_memory_allows_however_many_views_there_are(views: int, sizes: list[int]) -> None:
    crops = tuple(View(name=f"zoom {n}", crop_mode="center", crop_pct=1 - n / 10) for n in range(views))
    toy = Brightness(Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", views=crops))
    assert len(ImagePredictor(toy).predict([grey(9)] * 70)) == 70
    assert [shape[0] for shape in toy.shapes] == sizes
    assert max(shape[0] * max(1, views) for shape in toy.shapes) <= BATCH


def test_failures_are_listed_beside_the_others() -> None:
    predictor = ImagePredictor(Brightness())
    found = predictor.predict([grey(0), "nowhere.png", grey(255)], on_error="skip")
    assert found.labels == ["dark", "bright"]
    assert [(failure.item, failure.position) for failure in found.failures] == [("nowhere.png", 1)]
    with pytest.raises(DataError, match=r"nowhere\.png"):
        predictor.predict([grey(0), "nowhere.png"])
    with pytest.raises(DataError, match="No image could be read"):
        predictor.predict(["nowhere.png"], on_error="skip")
    with pytest.raises(OptionError, match="Unknown on_error 'ignore'"):
        predictor.predict(grey(0), on_error="ignore")


def test_a_warning_is_the_callers() -> None:
    """Deep images for a model of another range: what is said points at the line that called `predict`."""
    ranged = Preprocessing(
        size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", value_range=(1000.0, 2000.0)
    )
    with pytest.warns(UserWarning, match="1 of these images have 8 bits") as caught:
        ImagePredictor(Brightness(ranged)).predict(grey(7))
    assert caught[0].filename == __file__


def test_pixels_go_the_same_way_as_images() -> None:
    result = make_result(make_model())
    pictures = draw_pictures(3)
    found = result.predict(pictures, device="cpu").probabilities
    from transferkit.data import to_pixels

    pixels = np.stack([to_pixels(Image.fromarray(picture), result.preprocessing) for picture in pictures])
    pixels.flags.writeable = False  # as arrays out of shared memory are
    np.testing.assert_array_equal(result.probabilities(pixels), found)
    assert result.probabilities(pixels[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 1, 1, 3, 8, 8), np.uint8),
    ],
)
def test_other_arrays_are_an_error_that_says_what_to_call(pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"Expected prepared pixels, \(N, 3, H, W\).*predict\(images\)"):
        make_result().probabilities(pixels)
