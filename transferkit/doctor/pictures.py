"""Whether a script's own pipeline gives the backbone the pictures it was trained on: values and channel order, whatever
the geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data import to_pixels
from transferkit.doctor.pixel_values import is_grey
from transferkit.nn.model import normalise
from transferkit.records import Preprocessing, Symptom
from transferkit.records.preprocessing import CropMode

__all__ = ["check_pictures"]

FEWEST = 4

CLOSER = 0.5
"""Mean colours must come this much closer by an exchange of red and blue."""

UNEQUAL = 0.15
"""Distance of the factor from 1, and of the shift from 0, in standard deviations of the normalised pixels."""

BYTES = 20.0
"""Factor from which on values were not divided by 255; its inverse, from which down they were twice."""

OTHER_GEOMETRIES: tuple[tuple[CropMode, float], ...] = (
    ("squash", 1.0),
    ("squash", 0.875),
    ("center", 1.0),
    ("center", 0.875),
    ("center", 0.75),
    ("border", 1.0),
)
"""Crop modes and shares that scripts have, beside those of the checkpoint."""


def check_pictures(
    pictures: Sequence[Any], prepared: torch.Tensor, preprocessing: Preprocessing
) -> tuple[Symptom, ...]:
    """Compare pictures as the script prepares them with what the checkpoint's own preprocessing makes of them.

    Mean and spread of each channel of each picture are compared, so crops, sizes and mirroring do not matter.

    Args:
        pictures: Files, PIL images or (H, W, 3) uint8 arrays; four or more.
        prepared: (N, 3, H, W) float, the same pictures as the network gets them.
        preprocessing: The checkpoint's (`Backbone.spec.preprocessing`).

    Raises:
        DataError: There are fewer than four, numbers differ, or these are no pictures.

    Example:
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> arrays = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8) // (1, 2, 3)
        >>> right = torch.from_numpy(arrays.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        >>> [one.cause for one in check_pictures(list(arrays), right.flip(1), wants)]
        ['channel_order']
        >>> check_pictures(list(arrays), right, wants)
        ()
    """
    if len(pictures) < FEWEST or len(pictures) != len(prepared) or prepared.dim() != 4 or prepared.shape[1] != 3:
        raise DataError(
            f"Expected {FEWEST} pictures or more, and as many (3, H, W) images, got {len(pictures)} and "
            f"{tuple(prepared.shape)}."
        )
    if not bool(torch.isfinite(prepared).all()):
        raise DataError("Some prepared pixels are NaN or infinite.")
    opened, found = [_open(one) for one in pictures], _colours(prepared.float())
    if is_grey(prepared.float()):
        opened = [one.convert("L").convert("RGB") for one in opened]
    references = []
    for how in _geometries(preprocessing):
        pixels = torch.from_numpy(np.stack([to_pixels(one, how) for one in opened]))
        references.append(_colours(normalise(pixels, how)))
    return tuple(_compare(references, found, preprocessing))


def _geometries(preprocessing: Preprocessing) -> Iterator[Preprocessing]:
    """The checkpoint's own and others: a script may crop otherwise, and what belongs to the pictures' borders must not
    count as a shift."""
    own = replace(preprocessing, views=(), mirrored=False)
    yield own
    for mode, share in OTHER_GEOMETRIES:
        yield replace(own, crop_mode=mode, crop_pct=share)


def _open(picture: Any) -> Image.Image:
    if isinstance(picture, (str, Path)):
        return Image.open(picture).convert("RGB")
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    array = np.asarray(picture)
    is_shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_shaped or array.dtype.kind not in "iu" or not 0 <= array.min() <= array.max() <= 255:
        raise DataError(
            f"Expected pictures as files, PIL images or (H, W, 3) uint8 arrays, got {array.shape} {array.dtype}."
        )
    return Image.fromarray(array.astype(np.uint8)).convert("RGB")


def _colours(images: torch.Tensor) -> torch.Tensor:
    """(N, 2, 3) mean and upper spread of each channel."""
    mean, spread = images.mean(dim=(2, 3)), images.std(dim=(2, 3))
    return torch.stack([mean, mean + spread], dim=1).double()


def _compare(references: list[torch.Tensor], found: torch.Tensor, preprocessing: Preprocessing) -> Iterator[Symptom]:
    exchanged = [found.flip(2)]
    # Values in another range were not normalised by the checkpoint's constants.
    if 1 / BYTES < float(_fit(references[0], found)[0].mean()) < BYTES:
        exchanged.append(_exchanged_before(found, preprocessing))
    nearest = min(references, key=lambda one: min(_left_over(one, two) for two in (found, *exchanged)))
    plain = _left_over(nearest, found)
    best = min(exchanged, key=lambda one: _left_over(nearest, one))
    swapped = _left_over(nearest, best)
    if swapped < CLOSER * plain and plain > UNEQUAL / 10:
        found = best
        yield Symptom(
            cause="channel_order",
            severity="alarm",
            evidence="The channels come in reverse order (BGR): exchanged, the pictures' mean colours differ from "
            f"the checkpoint's by {swapped:.2g} instead of {plain:.2g} standard deviations.",
            remedy="Convert to RGB: OpenCV reads BGR.",
        )
    fits = [_fit(one, found) for one in references]
    if any(map(_is_equal, fits)):
        return
    factors, shifts = _fit(nearest, found)
    size = float(factors.mean())
    if size > BYTES or size < 1 / BYTES:
        yield Symptom(
            cause="range",
            severity="alarm",
            evidence=f"Values are {size:.3g} times those that the checkpoint expects.",
            remedy="Divide by 255 once, before mean and standard deviation.",
        )
    else:
        said = [", ".join(f"{float(one):.3g}" for one in values) for values in (factors, shifts)]
        yield Symptom(
            cause="mean_std",
            severity="alarm",
            evidence=f"Values are those that the checkpoint expects times ({said[0]}) plus ({said[1]}), per channel.",
            remedy="Use the checkpoint's mean and standard deviation.",
        )


def _exchanged_before(found: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Colours with red and blue exchanged before they are normalised, each by the constants of its place."""
    mean, std = (torch.tensor(one, dtype=found.dtype) for one in (preprocessing.mean, preprocessing.std))
    return ((found * std + mean).flip(2) - mean) / std


def _is_equal(fit: tuple[torch.Tensor, torch.Tensor]) -> bool:
    factors, shifts = fit
    return float((factors - 1).abs().max()) <= UNEQUAL and float(shifts.abs().max()) <= UNEQUAL


def _fit(expected: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3,) factor and shift of each channel: found = factor * expected + shift, by medians over pictures."""
    spread, theirs = (one[:, 1] - one[:, 0] for one in (expected, found))
    factor = (theirs.sum(dim=0) / spread.sum(dim=0).clamp_min(1e-9)).clamp_min(1e-9)
    shift = (found[:, 0] - factor * expected[:, 0]).median(dim=0).values
    return factor, shift


def _left_over(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Root mean square of what one factor and one shift for all channels leave unexplained in the mean colours, in
    units of the factor."""
    x, y = expected[:, 0].flatten(), found[:, 0].flatten()
    spread, theirs = (float((one[:, 1] - one[:, 0]).mean()) for one in (expected, found))
    factor = theirs / max(spread, 1e-9)
    rest = y - factor * x
    return float((rest - rest.mean()).pow(2).mean().sqrt()) / max(factor, 1e-9)
