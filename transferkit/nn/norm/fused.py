"""Base class of the normalisation layers: a normalisation, then the replaced module's dropout and activation."""

from __future__ import annotations

import copy

import torch
from torch import nn

from transferkit.core.errors import DataError
from transferkit.nn.norm.source import FOLLOWERS, NormSource, followers_of

__all__ = [
    "Fused",
    "apply_affine",
    "check_count",
    "check_layout",
    "copy_affine",
    "copy_followers",
    "laid_out_as",
    "share_hooks",
]

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Attributes in which torch stores a module's hooks."""


class Fused(nn.Module):
    """A normalisation with optional dropout and activation in the same module, as in timm's `BatchNormAct2d`.

    They have timm's names, `drop` and `act`, so that code that looks for them and state_dict names keep working.

    Shape:
        (N, C, ...) -> the same
    """

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        raise NotImplementedError

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same."""
        values = self.normalised(values)
        for follower in followers_of(self):
            values = follower(values)
        return values


def copy_followers(replacement: nn.Module, layer: nn.Module) -> None:
    """Add the layer's dropout and activation to its replacement.

    They are the same module objects with their hooks, unless they have weights: the stored original must not be
    trained.
    """
    for name in FOLLOWERS:
        follower = layer._modules.get(name)
        if follower is None:
            continue
        if follower.state_dict():
            kept, follower = follower, copy.deepcopy(follower)
            share_hooks(follower, kept)
        replacement.add_module(name, follower)


def share_hooks(replacement: nn.Module, layer: nn.Module) -> None:
    """Share the hook dicts of both modules: a handle that removes a hook removes it from both."""
    for name in HOOKS:
        setattr(replacement, name, getattr(layer, name))


def check_layout(values: torch.Tensor, channels: int, layer: nn.Module) -> None:
    """Raise a `DataError` unless the values are (N, C, ...)."""
    if values.ndim < 2 or values.shape[1] != channels:
        raise DataError(
            f"{type(layer).__name__} expects values (N, {channels}, ...), got shape {tuple(values.shape)}. "
            "Channels come at axis 1."
        )


def laid_out_as(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The values in the memory layout of another tensor of the same shape."""
    if values.stride() == like.stride():
        return values
    return torch.empty_like(like, dtype=values.dtype).copy_(values)


def check_count(values: torch.Tensor, together: int, layer: nn.Module) -> None:
    """Raise a `DataError` if a single value would be normalised: the result would always be 0."""
    if together < 2:
        raise DataError(
            f"{type(layer).__name__} needs at least 2 values to normalise together, got {together}: "
            f"shape {tuple(values.shape)}. Use fewer groups, a larger image_size, or the kind layer."
        )


def apply_affine(values: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """(N, C, ...) times a weight plus a bias per channel."""
    shape = (1, -1, *(1,) * (values.ndim - 2))
    if weight is not None:
        values = values * weight.view(shape)
    return values if bias is None else values + bias.view(shape)


def copy_affine(replacement: nn.Module, source: NormSource) -> None:
    """Copy the affine map to a replacement, with the same requires_grad; buffers stay frozen."""
    for name, tensor in (("weight", source.weight), ("bias", source.bias)):
        copied = None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
        replacement.register_parameter(name, copied)
