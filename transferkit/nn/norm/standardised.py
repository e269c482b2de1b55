"""Group normalisation after a fixed scale and shift per channel, derived from the source's statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from transferkit.core.errors import OptionError
from transferkit.nn.norm.fused import apply_affine, check_count, check_layout, copy_affine, copy_followers
from transferkit.nn.norm.source import nearest_divisor, read_source

__all__ = [
    "StandardisedGroupNorm",
    "fold",
    "standardising",
]


class StandardisedGroupNorm(nn.GroupNorm):
    """Group normalisation after a fixed scale and shift per channel, optionally blended with the source's statistics.

    With m and v the mean and variance of one image's group, after scale and shift, it computes
    `weight * (u - blend * m) / sqrt(1 - blend + blend * v) + bias`. At `blend=1` that is plain group
    normalisation: `fold` moves scale and shift into the convolution before. At 0 it is a fixed map, like frozen
    batch normalisation.

    Args:
        num_groups: Of neighbouring channels; divides `num_channels`.
        num_channels: C.
        blend: Share of the image's own statistics, in [0, 1].
        eps: Added to the variance.

    Attributes:
        scale, shift: (C,) buffers, initially 1 and 0.
        drop, act: Fused dropout and activation; initially the identity.

    Shape:
        (N, C, ...) -> the same

    Raises:
        OptionError: If `blend` is out of range, or the groups do not divide the channels.

    References:
        Wu & He, ECCV 2018. Deviations: scale, shift and blend.

    Example:
        >>> layer = StandardisedGroupNorm(1, 4)
        >>> images = torch.randn(2, 4, 3, 3)
        >>> torch.allclose(layer(images), nn.GroupNorm(1, 4)(images))
        True
    """

    def __init__(self, num_groups: int, num_channels: int, *, blend: float = 1.0, eps: float = 1e-5) -> None:
        if not 0 <= blend <= 1:
            raise OptionError(f"blend must be in [0, 1], got {blend!r}.")
        if num_groups < 1 or num_channels % num_groups:
            raise OptionError(
                f"{num_channels} channels cannot be divided into {num_groups} equal groups. Choose a divisor."
            )
        super().__init__(num_groups, num_channels, eps=eps)
        self.asked_groups = num_groups
        self.blend = float(blend)
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", torch.ones(num_channels))
        self.register_buffer("shift", torch.zeros(num_channels))
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same."""
        check_layout(input, self.num_channels, self)
        check_count(input, input.shape[1:].numel() // self.num_groups, self)
        normalised = apply_affine(self.normalised(input), self.weight, self.bias).to(input.dtype)
        output: torch.Tensor = self.act(self.drop(normalised))
        return output

    def normalised(self, input: torch.Tensor) -> torch.Tensor:
        """The same before `weight` and `bias`."""
        scaled = apply_affine(input, self.scale, self.shift)
        if self.blend == 1:
            return F.group_norm(scaled, self.num_groups, eps=self.eps)
        shape = (len(scaled), self.num_channels, *(1,) * (scaled.ndim - 2))
        mean, variance = (self._spread(moment).view(shape) for moment in self._moments(scaled))
        return (scaled - self.blend * mean) * (1 - self.blend + self.blend * variance + self.eps).rsqrt()

    def _moments(self, scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, G) mean and variance of each group; per channel first, which is fast in every memory layout."""
        shape = (len(scaled), self.num_groups, self.num_channels // self.num_groups)
        positions = tuple(range(2, scaled.ndim))
        by_channel = (part.mean(positions) if positions else part for part in (scaled, scaled.square()))
        mean, square = (part.reshape(shape).mean(2) for part in by_channel)
        return mean, (square - mean.square()).clamp(min=0)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """(N, G) -> (N, C)."""
        return values.repeat_interleave(self.num_channels // self.num_groups, dim=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blend={self.blend}"


def fold(conv: nn.Conv2d, norm: StandardisedGroupNorm) -> tuple[nn.Conv2d, nn.GroupNorm]:
    """The same map as a convolution and a plain `nn.GroupNorm`, without the norm's dropout and activation.

    Args:
        conv: The convolution whose output only the norm uses.
        norm: At `blend=1`.

    Returns:
        Copies; the convolution has a bias.

    Raises:
        OptionError: If `blend` is below 1, which `nn.GroupNorm` cannot do, or the channels differ.
    """
    if norm.blend != 1:
        raise OptionError(f"Only blend=1 is group normalisation, but this layer has {norm.blend}. Fit it with blend=1.")
    if conv.out_channels != norm.num_channels:
        raise OptionError(
            f"The convolution has {conv.out_channels} output channels, but the norm takes {norm.num_channels}."
        )
    folded = copy.deepcopy(conv)
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps).to(conv.weight)
    with torch.no_grad():
        bias = torch.zeros_like(norm.shift) if conv.bias is None else conv.bias
        folded.weight.mul_(norm.scale[:, None, None, None])
        folded.bias = nn.Parameter(bias * norm.scale + norm.shift)
        plain.weight.copy_(norm.weight)
        plain.bias.copy_(norm.bias)
    return folded, plain


@torch.no_grad()
def standardising(layer: nn.Module, *, groups: int = 1, blend: float = 1.0) -> StandardisedGroupNorm:
    """A `StandardisedGroupNorm` whose scale and shift standardise channels by the source's statistics.

    Args:
        layer: Batch normalisation; its affine map, dropout and activation are copied; not modified.
        groups: >= 1; the nearest divisor of the channels is taken.
        blend: As for `StandardisedGroupNorm`.

    Example:
        >>> standardising(nn.BatchNorm2d(4)).num_groups
        1
    """
    source = read_source(layer)
    norm = StandardisedGroupNorm(nearest_divisor(source.channels, groups), source.channels, blend=blend)
    norm.asked_groups = groups
    norm = norm.to(source.like)
    if source.mean is not None and source.variance is not None:
        norm.scale.copy_((source.variance + source.eps).rsqrt())
        norm.shift.copy_(-source.mean * norm.scale)
    copy_affine(norm, source)
    norm.affine = source.weight is not None
    copy_followers(norm, layer)
    return norm.train(layer.training)
