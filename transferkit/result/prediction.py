"""From images to `Predictions`, the same for whatever computes the probabilities: files, names, depth, failures."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.data import MAX_PIXELS, DeepImages, check_prepared, predictable_pixels, prepared_tensors
from transferkit.nn import in_batches
from transferkit.records import FailedImage, PixelClassifier, Predictions, Preprocessing

__all__ = ["ImagePredictor", "nothing_read", "predict_images", "probabilities_of", "task_of"]

ON_ERROR = ("raise", "skip")

FAILURES_SHOWN = 5
"""Images named in an error, of those that could not be read."""


class ImagePredictor:
    """A `Predictor` made of a `PixelClassifier`, and as thread-safe as that is.

    Args:
        classifier: Computes probabilities of prepared pixels.

    Example:
        >>> class Brightness:
        ...     classes = ("dark", "bright")
        ...     preprocessing = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        ...     def probabilities(self, pixels):
        ...         bright = pixels.mean(axis=(1, 2, 3)) / 255
        ...         return np.stack([1 - bright, bright], axis=1).astype(np.float32)
        >>> predictor = ImagePredictor(Brightness())
        >>> predictor.predict([np.zeros((20, 30, 3), np.uint8), np.full((9, 9, 3), 250, np.uint8)]).labels
        ['dark', 'bright']
    """

    def __init__(self, classifier: PixelClassifier) -> None:
        self._classifier = classifier

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        return self._classifier.classes

    def predict(
        self, images: Any, *, on_error: str = "raise", preprocessed: bool = False, max_pixels: int = MAX_PIXELS
    ) -> Predictions:
        """Classify images; arguments as for `Result.predict`."""
        return predict_images(
            self._classifier, images, on_error=on_error, preprocessed=preprocessed, max_pixels=max_pixels
        )


def predict_images(
    classifier: PixelClassifier, images: Any, *, on_error: str, preprocessed: bool, max_pixels: int
) -> Predictions:
    """The body of every `predict`; arguments, errors and warnings as for `Result.predict`.

    Images are read as they are needed, a batch at a time.
    """
    if on_error not in ON_ERROR:
        raise OptionError(unknown_name("on_error", on_error, ON_ERROR))
    wants = classifier.preprocessing
    deep = DeepImages(wants.value_range)
    items: list[str] = []
    failures: list[FailedImage] = []

    def readable() -> Iterator[npt.NDArray[Any]]:
        named = _prepared(images, wants, deep, preprocessed=preprocessed, on_error=on_error, max_pixels=max_pixels)
        for position, (item, pixels) in enumerate(named):
            if isinstance(pixels, DataError):
                failures.append(FailedImage(item, str(pixels), position))
                continue
            items.append(item)
            yield pixels

    probabilities = probabilities_of(classifier, readable())
    if not items:
        raise nothing_read([failure.reason for failure in failures])
    if deep.note:
        warnings.warn(deep.note, stacklevel=3)  # the caller of `predict`
    return Predictions(
        tuple(items),
        tuple(classifier.classes),
        probabilities,
        tuple(failures),
        task=task_of(classifier),
        thresholds=getattr(classifier, "thresholds", ()),
    )


def task_of(classifier: PixelClassifier) -> str:
    """What its outputs are; one class per image where it does not say."""
    return str(getattr(classifier, "task", "single_label"))


def nothing_read(reasons: Sequence[str]) -> DataError:
    """The error where no image can be read.

    Args:
        reasons: One per image; the first few are shown.
    """
    return DataError(list_problems("No image could be read:", reasons[:FAILURES_SHOWN]))


def probabilities_of(classifier: PixelClassifier, pictures: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """(N, K) float32 of pictures that are prepared one by one: (3, H, W), or (V, 3, H, W) with several views, each."""
    rows = [classifier.probabilities(batch) for batch in in_batches(pictures)]
    return np.concatenate(rows) if rows else np.empty((0, len(classifier.classes)), dtype=np.float32)


def _prepared(
    images: Any, wants: Preprocessing, deep: DeepImages, *, preprocessed: bool, on_error: str, max_pixels: int
) -> Iterator[tuple[str, npt.NDArray[Any] | DataError]]:
    """Names, and a classifier's input: uint8 pictures, resized and cropped, or float tensors prepared outside."""
    check_prepared(wants, preprocessed=preprocessed)
    if wants.prepared:
        yield from prepared_tensors(images, shape=wants.shape)
        return
    yield from predictable_pixels(images, wants, max_pixels=max_pixels, deep=deep, on_error=on_error)
