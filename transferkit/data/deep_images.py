"""New images deeper than 8 bits, for a model that has a range of values or has none."""

from __future__ import annotations

from transferkit.core.errors import DataError
from transferkit.data.depth import DeepPixels, Range, ValueSketch, sketch_values
from transferkit.data.ranges import check_new

__all__ = ["DeepImages"]

UNIT, EIGHT_BIT = (0.0, 1.0), (0.0, 255.0)
"""Black and white of floats and of integers whose type says nothing, where a model was fitted on 8-bit pictures."""


WHOLE = (UNIT, EIGHT_BIT, (0.0, 65535.0))
"""Ranges in which 8-bit images mean the same as deeper ones."""


class DeepImages:
    """Deep images that a model meets in one call: scaled as its training images were, and what is to be said of them.

    Args:
        value_range: (black, white) of the model; None if its training images had 8 bits.
    """

    def __init__(self, value_range: Range | None) -> None:
        self.value_range = value_range
        self._sketches: list[ValueSketch] = []
        self._used: Range | None = value_range
        self._plain = 0

    def range_for(self, deep: DeepPixels | None, *, name: str) -> Range | None:
        """Black and white of the next image.

        Raises:
            DataError: Neither the model nor the image says what is black and what is white.
        """
        if deep is None:
            self._plain += 1
            return self.value_range
        sketch = sketch_values(deep)
        self._sketches.append(sketch)
        if self.value_range is not None:
            return self.value_range
        used = sketch.declared or (UNIT if sketch.family == "f" else EIGHT_BIT)
        seen = sketch.quantiles
        if sketch.declared is None and seen and not used[0] <= seen[0] <= seen[-1] <= used[1]:
            raise DataError(
                f"{name}: {sketch.kind} values from {seen[0]:.4g} to {seen[-1]:.4g}, and this model was fitted on "
                "8-bit images: what is black and what is white is not known. Convert the images to 8 bits as its "
                "training images were, or adapt again on images like these."
            )
        self._used = used
        return used

    @property
    def note(self) -> str:
        """A sentence where deep images do not go with the model; else empty."""
        if self.value_range not in (None, *WHOLE) and self._plain:
            return (
                f"{self._plain} of these images have 8 bits, and the model was fitted on deeper ones: they are taken "
                "as they are, 0 for black and 255 for white."
            )
        found = "" if self._used is None else check_new(self._sketches, self._used)
        if self.value_range is None and self._sketches:
            return (
                f"{len(self._sketches)} of these images are deeper than 8 bits, and the model was fitted on 8-bit "
                f"ones: each is scaled by what its file declares. {found}"
            ).strip()
        return found
