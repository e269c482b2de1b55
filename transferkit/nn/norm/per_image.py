"""Normalisation that looks at one image at a time: no batch, no running statistics, the same in training and
evaluation.

Each takes the batch normalisation it replaces for its affine map, precision and device. The features come out scaled
otherwise than the network learnt them; what that costs, and what makes up for it, is for others to say.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from transferkit.nn.norm.fused import Fused, check_count, check_layout, laid_out_as, take_affine, take_followers
from transferkit.nn.norm.source import nearest_divisor, read_source

__all__ = ["GROUPS", "ChannelLayerNorm", "GroupNorm", "InstanceNorm", "LayerNorm"]

GROUPS = 32
"""The default of Wu & He (2018). Fewer are nearer to batch normalisation, and to what its weights expect."""


class GroupNorm(Fused, nn.GroupNorm):
    """Normalisation of each image's channels by groups of neighbours, over all positions.

    y = (x - mean_g) / sqrt(var_g + eps) * weight + bias with the moments of the image's group g.

    Args:
        layer: Batch normalisation whose affine map is copied; it stays as it is.
        groups: >= 1; the nearest divisor of the channels is taken.

    Raises:
        OptionError: If the layer is no batch normalisation, or there are < 1 groups.

    Shape:
        (N, C, ...) -> the same. A group needs two values at least: channels times positions.

    References:
        Wu & He, ECCV 2018.

    Example:
        >>> layer = GroupNorm(nn.BatchNorm2d(12), groups=5)
        >>> layer.num_groups
        4
        >>> images = torch.randn(2, 12, 3, 3)
        >>> torch.allclose(layer(images), F.group_norm(images, 4), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Module, *, groups: int = GROUPS) -> None:
        source = read_source(layer)
        super().__init__(nearest_divisor(source.channels, groups), source.channels, source.eps)
        self.asked_groups = groups
        take_affine(self, source)
        take_followers(self, layer)
        self.affine = source.weight is not None
        self.training = layer.training

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_channels, self)
        check_count(values, values.shape[1:].numel() // self.num_groups, self)
        return nn.GroupNorm.forward(self, values)


class LayerNorm(GroupNorm):
    """Normalisation of each image over all its channels and positions: one group.

    y = (x - mean) / sqrt(var + eps) * weight + bias with the moments of the image.

    Args:
        layer: Batch normalisation whose affine map is copied; it stays as it is.

    Shape:
        (N, C, ...) -> the same. An image needs two values at least.

    References:
        Ba, Kiros & Hinton, 2016. Deviation: the affine map has a weight per channel, not per value.

    Example:
        >>> images = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(LayerNorm(nn.BatchNorm2d(3))(images), F.layer_norm(images, (3, 4, 4)), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, groups=1)


class ChannelLayerNorm(Fused):
    """Normalisation of each position over the channels, as ConvNeXt has it.

    y = (x - mean_p) / sqrt(var_p + eps) * weight + bias with the moments of the channels at the image's position p.

    Args:
        layer: Batch normalisation whose affine map is copied; it stays as it is.

    Shape:
        (N, C, ...) -> the same, C >= 2.

    References:
        Liu et al., CVPR 2022.

    Example:
        >>> values = torch.randn(4, 3)
        >>> torch.allclose(ChannelLayerNorm(nn.BatchNorm1d(3))(values), F.layer_norm(values, (3,)), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        source = read_source(layer)
        self.num_channels, self.eps = source.channels, source.eps
        self.weight: torch.Tensor | None
        self.bias: torch.Tensor | None
        take_affine(self, source)
        take_followers(self, layer)
        self.training = layer.training

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_channels, self)
        check_count(values, self.num_channels, self)
        last = F.layer_norm(values.movedim(1, -1), (self.num_channels,), self.weight, self.bias, self.eps)
        return laid_out_as(last.movedim(-1, 1), values)

    def extra_repr(self) -> str:
        """As torch's own layers have it."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.weight is not None}"


class InstanceNorm(GroupNorm):
    """Normalisation of each channel of each image over its positions: a group for each.

    y = (x - mean_c) / sqrt(var_c + eps) * weight + bias with the moments of the image's channel c.

    What an image's channels are on average is lost, and with it part of what tells classes apart. It suits style.

    Args:
        layer: Batch normalisation whose affine map is copied; it stays as it is.

    Shape:
        (N, C, ...) -> the same, with two positions at least.

    References:
        Ulyanov, Vedaldi & Lempitsky, 2016.

    Example:
        >>> images = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(InstanceNorm(nn.BatchNorm2d(3))(images), F.instance_norm(images), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, groups=read_source(layer).channels)
