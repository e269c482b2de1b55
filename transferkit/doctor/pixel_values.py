"""How images were normalised, told from the values of a batch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transferkit.records import Preprocessing

__all__ = ["Extent", "ValueMisfit", "find_extent", "find_misfit", "is_grey"]

TAILS = 0.002
"""Share of the pixels beyond the extent on each side: noise and interpolation overshoot."""

SLACK = 0.05
"""Distance from black and white, in units of the range between them, that counts as reaching them."""

FLAT = 0.03
"""Extent below which pictures were made pale by mistake: 1 / 255 of [0, 1] is 0.004, normalised 0.02."""

GREY = 0.9999
"""Correlation between channels from which on they are one."""

BRIGHTEST = 20.0
"""Values beyond this are those of bytes: normalised ones end at about 3."""

NORMALISATIONS = {
    "values in [0, 1], not normalised": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "values in [0, 255], not normalised": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "values in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "the mean and standard deviation of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "the mean and standard deviation of CLIP": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}
"""Phrase -> mean and standard deviation of values in [0, 1]."""


@dataclass(frozen=True)
class Extent:
    """Darkest and brightest values of each channel, (C,) each, without the outermost pixels."""

    low: torch.Tensor
    high: torch.Tensor

    def in_units(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Extent:
        """The same before normalisation: in [0, 1] if mean and standard deviation are those that were used."""
        scale, shift = torch.tensor(std), torch.tensor(mean)
        return Extent(self.low * scale + shift, self.high * scale + shift)

    @property
    def fits(self) -> bool:
        """Whether all channels lie in [0, 1]."""
        return float(self.low.min()) >= -SLACK and float(self.high.max()) <= 1 + SLACK

    @property
    def fills(self) -> bool:
        """Whether all channels reach from black to white, and no further."""
        return self.fits and float(self.low.max()) <= SLACK and float(self.high.min()) >= 1 - SLACK

    @property
    def falls_short(self) -> bool:
        """Whether no channel reaches from black to white."""
        return bool(((self.low > SLACK) | (self.high < 1 - SLACK)).all())

    def __str__(self) -> str:
        return f"{float(self.low.min()):.3g} to {float(self.high.max()):.3g}"


@dataclass(frozen=True)
class ValueMisfit:
    """Values that are not as the backbone expects them.

    Args:
        cause: "range" or "mean_std".
        found: The values, as a phrase.
    """

    cause: str
    found: str


def find_extent(images: torch.Tensor) -> Extent:
    """Extent of (N, C, ...) images."""
    values = images.transpose(0, 1).flatten(1).float().sort(dim=1).values
    cut = int(TAILS * values.shape[1])
    return Extent(values[:, cut], values[:, values.shape[1] - 1 - cut])


def is_grey(images: torch.Tensor) -> bool:
    """Whether the channels of each image are one up to scale and shift: then no colour was wanted."""
    centred = images.flatten(2) - images.flatten(2).mean(dim=2, keepdim=True)
    length = centred.norm(dim=2)
    products = (centred * centred.roll(1, dims=1)).sum(dim=2)
    return bool((products >= GREY * length * length.roll(1, dims=1) - 1e-9).all())


def find_misfit(images: torch.Tensor, expected: Preprocessing | None) -> ValueMisfit | None:
    """What the values of (N, C, H, W) images say against the expected normalisation; None if nothing.

    Values outside [0, 1] before normalisation do; and values that do not reach from black to white there, but do so
    exactly under another normalisation. Pictures of low contrast so pass, whatever was done to them.

    Args:
        images: As the network gets them.
        expected: Mean and standard deviation; None to look for bytes alone.
    """
    extent = find_extent(images)
    if float(extent.high.max()) > BRIGHTEST and (expected is None or min(expected.std) > 1 / BRIGHTEST):
        return ValueMisfit("range", f"the values run from {extent}, as bytes do")
    if _is_flat(extent, expected):
        return ValueMisfit("range", f"the values run from {extent} alone, as after a second division by 255")
    if expected is None or images.shape[1] != len(expected.mean):
        return None
    inside = extent.in_units(expected.mean, expected.std)
    others = [
        phrase
        for phrase, (mean, std) in NORMALISATIONS.items()
        if extent.in_units(mean, std).fills and not _is_same(expected, mean, std)
    ]
    if inside.fits and not (inside.falls_short and others):
        return None
    # The other's name helps only if it is the one that explains the values.
    named = f"; they look like {others[0]}" if others else ""
    return ValueMisfit("mean_std", f"the values run from {extent}, which would be {inside} of full brightness{named}")


def _is_flat(extent: Extent, expected: Preprocessing | None) -> bool:
    """Whether all values of all channels are nearly one: pictures are never that pale. Without a checkpoint the unit is
    not known: then only values that end at 1 / 255, or lie far from zero, are told."""
    span, highest = float((extent.high - extent.low).max()), float(extent.high.max())
    if not 0 < span < FLAT:
        return False
    darkest = float(extent.low.min())
    return expected is not None or (darkest >= 0 and 0.8 < 255 * highest < 1.02) or darkest + highest < -40 * span


def _is_same(expected: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    return max(abs(a - b) for a, b in zip((*expected.mean, *expected.std), (*mean, *std), strict=True)) < SLACK / 2
