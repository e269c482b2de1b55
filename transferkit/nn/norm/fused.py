"""What all our normalisation layers are: a normalisation, then whatever the replaced module did after its own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from transferkit.core.errors import DataError
from transferkit.nn.norm.source import FOLLOWERS, NormSource

__all__ = [
    "Fused",
    "apply_affine",
    "check_count",
    "check_layout",
    "laid_out_as",
    "share_hooks",
    "take_affine",
    "take_followers",
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
"""Where torch keeps what is called around a module, its saving and its loading."""


class Fused(nn.Module):
    """A normalisation that a dropout and an activation may follow in the same module, as in timm's `BatchNormAct2d`.

    They keep timm's names, `drop` and `act`, so code that looks for them finds them, and the names of the tensors in a
    state_dict stay what they were.

    Shape:
        (N, C, ...) -> the same
    """

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        raise NotImplementedError

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same."""
        values = self.normalised(values)
        for name in FOLLOWERS:
            follower = self._modules.get(name)
            if follower is not None:
                values = follower(values)
        return values


def take_followers(replacement: nn.Module, layer: nn.Module) -> None:
    """Give a replacement the dropout and activation of the layer.

    They are the very same modules, hooks and all, unless they hold weights: the layer must not learn while it waits.
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
    """The same hooks on both, now and later: a handle that removes one removes it from both."""
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
    """The same values, in memory as those of another tensor of their shape."""
    if values.stride() == like.stride():
        return values
    return torch.empty_like(like, dtype=values.dtype).copy_(values)


def check_count(values: torch.Tensor, together: int, layer: nn.Module) -> None:
    """Raise a `DataError` for one value alone: it is its own mean, and normalised it is 0, whatever it was."""
    if together < 2:
        raise DataError(
            f"{type(layer).__name__} normalises 2 values together at least, got {together}: "
            f"shape {tuple(values.shape)}. Take fewer groups, a larger image_size, or the kind layer."
        )


def apply_affine(values: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """(N, C, ...) times a weight plus a bias per channel."""
    shape = (1, -1, *(1,) * (values.ndim - 2))
    if weight is not None:
        values = values * weight.view(shape)
    return values if bias is None else values + bias.view(shape)


def take_affine(replacement: nn.Module, source: NormSource) -> None:
    """Give a replacement a copy of the affine map; what asked for gradients still does, frozen buffers do not."""
    for name, tensor in (("weight", source.weight), ("bias", source.bias)):
        copied = None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
        replacement.register_parameter(name, copied)
