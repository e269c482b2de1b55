"""Protocols of trained models, for whoever needs their predictions.

`Predictor`: images in, `Predictions` out. A saved run, an exported model, an ensemble, a service's model.
`PixelClassifier`: prepared pixels in, probabilities out. What a runtime has to offer; `result.predict_images` makes the
rest of a `Predictor` of it: opening files, resizing, names, failures.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from transferkit.records.predictions import Predictions
from transferkit.records.preprocessing import Preprocessing

__all__ = ["PixelClassifier", "Predictor"]


@runtime_checkable
class Predictor(Protocol):
    """Images in, probabilities out. Any number of threads may call one object at the same time, and each gets the bits
    that it would get alone. The predictor prepares images itself."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        ...

    def predict(
        self, images: Any, *, on_error: str = ..., preprocessed: bool = ..., max_pixels: int = ...
    ) -> Predictions:
        """Classify images; arguments as for `Result.predict`."""
        ...


@runtime_checkable
class PixelClassifier(Protocol):
    """Prepared pixels in, probabilities out, on one device or runtime. As thread-safe as a `Predictor`.

    Example:
        >>> class Brightness:
        ...     classes = ("dark", "bright")
        ...     preprocessing = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        ...     def probabilities(self, pixels):
        ...         bright = pixels.mean(axis=(1, 2, 3)) / 255
        ...         return np.stack([1 - bright, bright], axis=1).astype(np.float32)
        >>> Brightness().probabilities(np.full((1, 3, 8, 8), 51, np.uint8)).tolist()
        [[0.800000011920929, 0.20000000298023224]]
        >>> isinstance(Brightness(), PixelClassifier), isinstance(Brightness(), Predictor)
        (True, False)
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the pixels that it takes."""
        ...

    def probabilities(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(N, K) float32, rows sum to 1.

        Args:
            pixels: (N, 3, S, S) uint8 in 0..255, resized and cropped as `preprocessing` says, or (N, V, 3, S, S) where
                it has V views, whose logits are averaged; where it says `prepared`, (N, 3, H, W) float32, taken as
                they are.
        """
        ...
