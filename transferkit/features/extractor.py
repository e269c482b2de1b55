"""The protocol of feature extractors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from transferkit.features.identity import Identity

__all__ = ["FEATURES", "Extractor", "Rows"]

FEATURES = frozenset({"features"})
"""The kind of rows that every extractor of stages has: their pooled vectors."""

Rows = Mapping[str, npt.NDArray[np.float32]]
"""Kind of rows -> (n, D), the stages side by side as the kind's identity has them."""


@runtime_checkable
class Extractor(Protocol):
    """Images in, features per stage out, with an identity that names everything that can change a number.

    Several kinds of rows can come of one pass over an image: pooled vectors of every stage, moments of their channels,
    activations at a cut.
    """

    @property
    def name(self) -> str:
        """What messages call it: the backbone's name."""
        ...

    @property
    def batch_size(self) -> int:
        """Images at once, unless the caller chooses."""
        ...

    @property
    def is_threaded(self) -> bool:
        """Whether threads call `extract` at the same time, each on one core; else batches run one after the other, and
        threads only read images."""
        ...

    def identity(self) -> Mapping[str, Identity]:
        """Kind of rows -> what fixes them but the image, as things are now. May run two fixed images."""
        ...

    def ready(self) -> AbstractContextManager[object]:
        """Inside the block `extract` may be called: networks are on their device, sessions are open."""
        ...

    def extract(self, pixels: npt.NDArray[Any], kinds: frozenset[str]) -> Rows:
        """Rows of these kinds, one per image.

        Args:
            pixels: (n, 3, H, W) uint8, or float32 that is normalised already.
            kinds: Some of `identity()`.

        Raises:
            BackboneError: If it cannot take the images.
        """
        ...
