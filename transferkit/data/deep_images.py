"""Value ranges for new images deeper than 8 bits, at prediction time."""

from __future__ import annotations

from transferkit.core.errors import DataError
from transferkit.data.depth import DeepPixels, Range, ValueSketch, sketch_values
from transferkit.data.ranges import check_new

__all__ = ["DeepImages"]

UNIT, EIGHT_BIT = (0.0, 1.0), (0.0, 255.0)
"""Black and white of floats, and of integers whose type does not define them, for a model fitted on 8-bit images."""


WHOLE = (UNIT, EIGHT_BIT, (0.0, 65535.0))
"""Ranges in which 8-bit and deeper images have the same scale."""


class DeepImages:
    """Value ranges for the deep images of one prediction call, and a note on how well they fit the model.

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
            DataError: Neither the model nor the image defines black and white.
        """
        if deep is None:
            self._plain += 1
            return self.value_range
        sketch = sketch_values(deep)
        self._sketches.append(sketch)
        if self.value_range is not None:
            return self.value_range
        used = sketch.declared or (UNIT if sketch.family == "f" else EIGHT_BIT)
        found = sketch.quantiles
        if sketch.declared is None and found and not used[0] <= found[0] <= found[-1] <= used[1]:
            raise DataError(
                f"{name}: {sketch.kind} values from {found[0]:.4g} to {found[-1]:.4g}, but this model was fitted on "
                "8-bit images, so black and white are undefined. Convert the images to 8 bits as its training images "
                "were, or adapt again on images like these."
            )
        self._used = used
        return used

    @property
    def note(self) -> str:
        """A sentence if the deep images do not fit the model's range; else empty."""
        if self.value_range not in (None, *WHOLE) and self._plain:
            return (
                f"{self._plain} of these images have 8 bits, but the model was fitted on deeper ones: they are used "
                "unchanged, with black 0 and white 255."
            )
        found = "" if self._used is None else check_new(self._sketches, self._used)
        if self.value_range is None and self._sketches:
            return (
                f"{len(self._sketches)} of these images are deeper than 8 bits, but the model was fitted on 8-bit "
                f"ones: each is scaled by the range that its file declares. {found}"
            ).strip()
        return found
