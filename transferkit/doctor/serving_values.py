"""How the values of served images follow from those of training, pixel by pixel: a line, a curve, levels, grey, or a
line of its own for each image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

__all__ = [
    "ChannelLine",
    "are_bytes",
    "best_order",
    "constants_follow",
    "curve_residual",
    "fit_line",
    "colour_share",
    "levels",
    "mix_residual",
    "other_constants",
    "own_line_residual",
    "quantisation_error",
]

Images = torch.Tensor
"""(N, C, H, W) float64."""

BINS = 64
"""Of the values of training, in which a curve has one value each."""

CYCLE = 0.01
"""Largest deviation from 1 and 0 of what a cycle of channels must give."""

SURE = 0.9999
"""Share of variance that a line explains in pictures that differ by nothing else."""

RANK = 1e-9
"""Share of the largest variance of a sum of channels below which it is rounding noise."""

DARK = 20.0
"""Brightest value of a picture in [0, 255] at least; normalised values stay below."""

ROUNDED = 1e-5
"""Values nearer than this share of their range are one level."""


@dataclass(frozen=True)
class ChannelLine:
    """served = factor * trained + shift, per channel, and how much of the variance that explains."""

    factor: torch.Tensor  # (C,)
    shift: torch.Tensor  # (C,)
    explained: float


def fit_line(trained: Images, served: Images) -> ChannelLine:
    """The best line per channel, the same for all images."""
    x, y = (one.transpose(0, 1).flatten(1) for one in (trained, served))
    x_mean, y_mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    variance = ((x - x_mean) ** 2).mean(dim=1).clamp_min(1e-12)
    factor = ((x - x_mean) * (y - y_mean)).mean(dim=1) / variance
    shift = y_mean.squeeze(1) - factor * x_mean.squeeze(1)
    residual = ((y - factor[:, None] * x - shift[:, None]) ** 2).mean()
    total = ((y - y_mean) ** 2).mean().clamp_min(1e-12)
    return ChannelLine(factor, shift, float(1 - residual / total))


def best_order(trained: Images, served: Images) -> tuple[int, ...]:
    """The order of three served channels in which they are most like those of training."""
    orders = itertools.permutations(range(3))
    return max(orders, key=lambda order: fit_line(trained, served[:, list(order)]).explained)


def constants_follow(line: ChannelLine, order: tuple[int, ...]) -> bool:
    """Whether a line is only that of channels that were normalised by the constants of another one.

    With means m, deviations s and served channel c of order o, the factor is s_c / s_o(c), the shift
    (m_c - m_o(c)) / s_o(c): along a cycle factors multiply to 1, and shifts return.
    """
    for start in range(len(order)):
        factor, shift, channel = 1.0, 0.0, start
        while True:
            own, by = float(line.factor[channel]), float(line.shift[channel])
            factor, shift, channel = own * factor, own * shift + by, order[channel]
            if channel == start:
                break
        if abs(factor - 1) > CYCLE or abs(shift) > CYCLE:
            return False
    return True


def other_constants(trained: Images, served: Images) -> tuple[int, ...] | None:
    """The order of channels whose constants grey pictures were normalised by; None where that explains nothing."""
    if trained.shape[1] != 3:
        return None
    line = fit_line(trained, served)
    is_other = (line.factor - 1).abs() + line.shift.abs() > CYCLE
    if line.explained < SURE or not bool(is_other.any()):
        return None
    orders = (order for order in itertools.permutations(range(3)) if order != (0, 1, 2))
    return next((order for order in orders if _moves_all(order, is_other) and constants_follow(line, order)), None)


def _moves_all(order: tuple[int, ...], is_other: torch.Tensor) -> bool:
    """Whether just the channels that have other values change places."""
    return all(bool(is_other[k]) == (place != k) for k, place in enumerate(order))


def mix_residual(trained: Images, served: Images) -> float:
    """Share of the variance that weighted sums of all channels leave, the same for all images and pixels."""
    x, y = (one.transpose(0, 1).flatten(1) for one in (trained, served))
    x, deviation = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    # Channels of grey pictures are equal, and their covariance has no inverse.
    weights = deviation @ x.T @ torch.linalg.pinv(x @ x.T, hermitian=True, rtol=RANK)
    return float(((deviation - weights @ x) ** 2).mean() / _variance(served))


def are_bytes(images: Images) -> bool:
    """Whether values look like those of a picture in [0, 255]."""
    return float(images.min()) >= 0 and DARK < float(images.max()) < 255.5


def own_line_residual(trained: Images, served: Images) -> float:
    """Share of the variance that a line per channel and image leaves; it follows any standardisation per image."""
    x, y = (one.flatten(2) for one in (trained, served))
    x, deviation = x - x.mean(dim=2, keepdim=True), y - y.mean(dim=2, keepdim=True)
    factor = (x * deviation).sum(dim=2, keepdim=True) / (x * x).sum(dim=2, keepdim=True).clamp_min(1e-12)
    return float(((deviation - factor * x) ** 2).mean() / _variance(served))


def curve_residual(trained: Images, served: Images) -> float:
    """Share of the variance that a curve per channel leaves: the mean of served values at each value of training."""
    left = 0.0
    for x, y in zip(*(one.transpose(0, 1).flatten(1) for one in (trained, served)), strict=True):
        order = x.argsort()
        for part_x, part_y in zip(x[order].chunk(BINS), y[order].chunk(BINS), strict=True):
            # A line inside each bin: a straight map leaves nothing.
            centred, target = part_x - part_x.mean(), part_y - part_y.mean()
            slope = (centred * target).sum() / (centred * centred).sum().clamp_min(1e-12)
            left += float(((target - slope * centred) ** 2).sum())
    return left / served.numel() / _variance(served)


def levels(images: Images) -> int:
    """Distinct values of the channel that has most."""
    channels = images.transpose(0, 1).flatten(1)
    step = (channels.amax(dim=1, keepdim=True) - channels.amin(dim=1, keepdim=True)).clamp_min(1e-12) * ROUNDED
    return max(len(torch.unique((one / width).round())) for one, width in zip(channels, step, strict=True))


def quantisation_error(images: Images) -> float:
    """Variance of rounding to as many even levels as the images have."""
    steps = max(1, levels(images) - 1)
    return (float(images.max() - images.min()) / steps) ** 2 / 12


def colour_share(images: Images) -> float:
    """Share of the variance that three channels do not have in common, up to a line each; 0 for other numbers."""
    if images.shape[1] != 3:
        return 0.0
    # Each in turn: a varying channel explains a constant one, but not the other way round.
    return 1 - min(fit_line(images[:, [k]].expand_as(images), images).explained for k in range(3))


def _variance(images: Images) -> float:
    channels = images.transpose(0, 1).flatten(1)
    return max(float(channels.var(dim=1, correction=0).mean()), 1e-12)
