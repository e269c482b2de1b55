"""How images become a network's input: resizing, cropping, normalisation, and the views that are averaged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from transferkit.core.limits import SMALLEST_SIDE, check_image_size
from transferkit.records._checks import require, require_positive

__all__ = ["GEOMETRIES", "CropMode", "Interpolation", "Preprocessing", "View"]


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

CropMode = Literal["center", "squash", "border"]


def _check_range(value_range: tuple[float, float] | None) -> None:
    if value_range is None:
        return
    fits = len(value_range) == 2 and all(map(math.isfinite, value_range)) and value_range[0] < value_range[1]
    require(fits, f"Preprocessing.value_range must be (black, white), finite, black < white, got {value_range!r}.")


GEOMETRIES = {
    "crop": "the checkpoint's own crop",
    "full": "the largest centre square",
    "squash": "the whole picture squeezed to a square",
    "pad": "the whole picture with borders",
    "zoom": "the middle of the picture, closer",
    "wide": "the whole picture, smaller, with borders all round",
}
"""Geometry of a view -> what it shows, in the order in which views are listed."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One view: a geometry that maps a picture to the square input, and whether it is flipped.

    Args:
        name: For display: "crop", "full", "squash", "pad", "zoom" or "wide", with "+mirror" if it is flipped.
        crop_mode, crop_pct: As in `Preprocessing`.
        mirrored: Flipped horizontally afterwards.
    """

    name: str
    crop_mode: CropMode
    crop_pct: float = 1.0
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of a checkpoint's input: geometry, then normalisation.

    Args:
        size: Side of the square input, in pixels.
        mean: Per channel (R, G, B), subtracted from values in [0, 1].
        std: Per channel, divides the result.
        interpolation: Resampling filter of the resize.
        crop_pct: Share of the resized side that the crop keeps, in (0, 2]; above 1 the picture is smaller than the
            input and gets borders.
        crop_mode: "center" resizes the short side to `size / crop_pct` and crops the centre; "squash" resizes both
            sides without keeping the aspect; "border" resizes the long side to `size / crop_pct` and pads.
        origin: Where these values come from, as a phrase for display.
        mirrored: Whether the picture is flipped horizontally after its geometry.
        views: Views that features and predictions are averaged over; empty: the geometry above only. Networks are
            trained on that geometry, whatever the views.
        value_range: (black, white) of images deeper than 8 bits, in stored units; None if there are none.
        prepared: Whether images come as preprocessed float tensors: none of the above is applied to them.
        shape: (H, W) of preprocessed tensors; None for pictures.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    origin: str = ""
    mirrored: bool = False
    views: tuple[View, ...] = ()
    value_range: tuple[float, float] | None = None
    prepared: bool = False
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_range(self.value_range)
        require(self.size >= SMALLEST_SIDE, f"Preprocessing.size must be >= {SMALLEST_SIDE} pixels, got {self.size!r}.")
        require_positive("Preprocessing", "crop_pct", self.crop_pct)
        require(self.crop_pct <= 2, f"Preprocessing.crop_pct must be <= 2, got {self.crop_pct!r}.")
        for value in self.std:
            require_positive("Preprocessing", "std", value)
        names = [view.name for view in self.views]
        require(len(set(names)) == len(names), f"Preprocessing.views must differ in name, got {', '.join(names)}.")

    @property
    def height_width(self) -> tuple[int, int]:
        """(H, W) of a network's input, in pixels."""
        return self.shape or (self.size, self.size)

    @property
    def resize_side(self) -> int:
        """Side in pixels before the crop: floor(size / crop_pct), timm's rule, robust to rounding of crop_pct."""
        return math.floor(self.size / self.crop_pct + 1e-6)

    @property
    def primary(self) -> Preprocessing:
        """The same with a single view: its own geometry."""
        return replace(self, views=()) if self.views else self

    @property
    def each_view(self) -> tuple[Preprocessing, ...]:
        """One preprocessing per view, in order, each without further views.

        Example:
            >>> plain = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
            >>> pad = View(name="pad", crop_mode="border")
            >>> both = replace(plain, views=(View(name="full", crop_mode="center"), pad))
            >>> [view.crop_mode for view in both.each_view], plain.each_view == (plain,)
            (['center', 'border'], True)
        """
        return tuple(self.seen_as(view) for view in self.views) or (self,)

    def seen_as(self, view: View) -> Preprocessing:
        """The same with the geometry of one view."""
        return replace(self, crop_mode=view.crop_mode, crop_pct=view.crop_pct, mirrored=view.mirrored, views=())

    def at(self, size: int | None) -> Preprocessing:
        """The same preprocessing at another input size; None changes nothing."""
        check_image_size(size)
        if size is None or size == self.size:
            return self
        return replace(self, size=size, origin=f"{self.origin}; size {self.size} -> {size} on request")
