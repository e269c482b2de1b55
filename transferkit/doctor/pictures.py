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

__all__ = ["check_pictures"]

FEWEST = 4

CLOSER = 0.5
"""Mean colours must come this much closer by an exchange of red and blue."""

UNEQUAL = 0.15
"""Distance of the factor from 1, and of the shift from 0, in standard deviations of the normalised pixels."""

BYTES = 20.0
"""Factor from which on values were not divided by 255."""


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
        DataError: There are fewer than four, or numbers differ.

    Example:
        >>> wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> arrays = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8) // (1, 2, 3)
        >>> right = torch.from_numpy(arrays.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        >>> [one.cause for one in check_pictures(list(arrays), right.flip(1), wants)]
        ['channel_order']
        >>> check_pictures(list(arrays), right, wants)
        ()
    """
    if len(pictures) < FEWEST or len(pictures) != len(prepared) or prepared.shape[1:2] != (3,):
        raise DataError(
            f"Expected {FEWEST} pictures or more, and as many (3, H, W) images, got {len(pictures)} and "
            f"{tuple(prepared.shape)}."
        )
    opened, found = [_open(one) for one in pictures], _colours(prepared.float())
    if is_grey(prepared.float()):
        opened = [one.convert("L").convert("RGB") for one in opened]
    # A script may crop otherwise than the checkpoint; what belongs to the pictures' borders must not count as a shift.
    geometries = [
        replace(preprocessing, crop_mode="squash", crop_pct=1.0, views=(), mirrored=False),
        replace(preprocessing, views=(), mirrored=False),
    ]
    references = [
        _colours(normalise(torch.from_numpy(np.stack([to_pixels(one, how) for one in opened])), how))
        for how in geometries
    ]
    nearest = min(references, key=lambda one: min(_left_over(one, found), _left_over(one, found.flip(2))))
    return tuple(_compare(nearest, found))


def _open(picture: Any) -> Image.Image:
    if isinstance(picture, (str, Path)):
        return Image.open(picture).convert("RGB")
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return Image.fromarray(np.asarray(picture, dtype=np.uint8)).convert("RGB")


def _colours(images: torch.Tensor) -> torch.Tensor:
    """(N, 2, 3) mean and upper spread of each channel."""
    mean, spread = images.mean(dim=(2, 3)), images.std(dim=(2, 3))
    return torch.stack([mean, mean + spread], dim=1).double()


def _compare(expected: torch.Tensor, found: torch.Tensor) -> Iterator[Symptom]:
    plain, swapped = _left_over(expected, found), _left_over(expected, found.flip(2))
    if swapped < CLOSER * plain and plain > UNEQUAL / 10:
        found = found.flip(2)
        yield Symptom(
            cause="channel_order",
            severity="alarm",
            evidence="The channels come in reverse order (BGR): exchanged, the pictures' mean colours differ from "
            f"the checkpoint's by {swapped:.2g} instead of {plain:.2g} standard deviations.",
            remedy="Convert to RGB: OpenCV reads BGR.",
        )
    factors, shifts = _fit(expected, found)
    if float(factors.mean()) > BYTES:
        yield Symptom(
            cause="range",
            severity="alarm",
            evidence=f"Values are {float(factors.mean()):.3g} times those that the checkpoint expects.",
            remedy="Divide by 255 before mean and standard deviation.",
        )
    elif float((factors - 1).abs().max()) > UNEQUAL or float(shifts.abs().max()) > UNEQUAL:
        said = [", ".join(f"{float(one):.3g}" for one in values) for values in (factors, shifts)]
        yield Symptom(
            cause="mean_std",
            severity="alarm",
            evidence=f"Values are those that the checkpoint expects times ({said[0]}) plus ({said[1]}), per channel.",
            remedy="Use the checkpoint's mean and standard deviation.",
        )


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
