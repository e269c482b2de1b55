"""Normalisation per image: no batch, no running statistics, the same in training and evaluation.

Each copies affine map, precision and device from the batch normalisation it replaces. The output is scaled differently
from what the following layers were trained on, which costs accuracy.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from transferkit.nn.norm.fused import Fused, check_count, check_layout, copy_affine, copy_followers, laid_out_as
from transferkit.nn.norm.source import nearest_divisor, read_source

__all__ = ["GROUPS", "ChannelLayerNorm", "GroupNorm", "InstanceNorm", "LayerNorm"]

GROUPS = 32
"""The default of Wu & He (2018). Fewer groups are closer to batch normalisation and to what its weights expect."""


class GroupNorm(Fused, nn.GroupNorm):
    """Group normalisation: each image, over groups of neighbouring channels and all positions.

    y = (x - mean_g) / sqrt(var_g + eps) * weight + bias with the moments of the image's group g.

    Args:
        layer: Batch normalisation whose affine map is copied; not modified.
        groups: >= 1; the nearest divisor of the channels is taken.

    Raises:
        OptionError: If the layer is not batch normalisation, or groups < 1.

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
        copy_affine(self, source)
        copy_followers(self, layer)
        self.affine = source.weight is not None
        self.training = layer.training

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_channels, self)
        check_count(values, values.shape[1:].numel() // self.num_groups, self)
        return nn.GroupNorm.forward(self, values)


class LayerNorm(GroupNorm):
    """Layer normalisation: each image, over all channels and positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias with the moments of the image.

    Args:
        layer: Batch normalisation whose affine map is copied; not modified.

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
    """Layer normalisation over the channels at each position, as in ConvNeXt.

    y = (x - mean_p) / sqrt(var_p + eps) * weight + bias with the moments of the channels at the image's position p.

    Args:
        layer: Batch normalisation whose affine map is copied; not modified.

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
        copy_affine(self, source)
        copy_followers(self, layer)
        self.training = layer.training

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_channels, self)
        check_count(values, self.num_channels, self)
        last = F.layer_norm(values.movedim(1, -1), (self.num_channels,), self.weight, self.bias, self.eps)
        return laid_out_as(last.movedim(-1, 1), values)

    def extra_repr(self) -> str:
        """As in torch's layers."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.weight is not None}"


class InstanceNorm(GroupNorm):
    """Instance normalisation: each channel of each image, over positions.

    y = (x - mean_c) / sqrt(var_c + eps) * weight + bias with the moments of the image's channel c.

    The channel means of an image are lost, and with them part of what distinguishes classes. Suited to style transfer.

    Args:
        layer: Batch normalisation whose affine map is copied; not modified.

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
