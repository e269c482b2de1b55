"""Clamping activations (ReLU6) that keep their output for the backward pass, not their input.

A value was clamped if the output lies on a bound, so gradients are the same to the bit. torch keeps the input, and of
one that is overwritten a copy, although the next layer keeps the output anyway: a third of all activations in networks
with ReLU6, and one pass over them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transferkit.nn.overriding import Override, is_rewritten, is_traced, is_transformed

__all__ = ["clamp_sparingly"]


class _Clamp(torch.autograd.Function):
    """min(max(values, lowest), highest), in place if wanted; the output is kept."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, lowest: float, highest: float, inplace: bool) -> torch.Tensor:
        ctx.bounds = lowest, highest
        if inplace:
            ctx.mark_dirty(values)
        clamp = nn.functional.hardtanh_ if inplace else nn.functional.hardtanh
        output = clamp(values, lowest, highest)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        lowest, highest = ctx.bounds
        return torch.ops.aten.hardtanh_backward.default(gradients[0], output, lowest, highest), None, None, None


class _SparingClamp:
    """The replaced method of an activation.

    Args:
        clamp: Its bounds, and whether it works in place, are read at each call.
    """

    def __init__(self, clamp: nn.Hardtanh) -> None:
        self.clamp = clamp

    def run(self, values: torch.Tensor) -> torch.Tensor:
        """The activation's output."""
        clamp = self.clamp
        if not values.requires_grad or not torch.is_grad_enabled() or is_traced() or is_transformed():
            return type(clamp).forward(clamp, values)
        output: torch.Tensor = _Clamp.apply(values, clamp.min_val, clamp.max_val, clamp.inplace)
        return output


def clamp_sparingly(network: nn.Module) -> list[Override]:
    """Let the clamping activations of a network keep their outputs; outputs and gradients are the same to the bit.

    Args:
        network: Nothing in it but the `forward` of its `nn.ReLU6` and `nn.Hardtanh` changes.

    Returns:
        Handles to undo it.

    Example:
        >>> layers = nn.Sequential(nn.ReLU6(inplace=True))
        >>> handles = clamp_sparingly(layers)
        >>> values = torch.tensor([-1.0, 2.0, 7.0], requires_grad=True)
        >>> layers(values * 1).sum().backward()
        >>> values.grad
        tensor([0., 1., 0.])
    """
    clamps = [module for module in network.modules() if type(module) in (nn.ReLU6, nn.Hardtanh)]
    return [Override(clamp, _SparingClamp(clamp).run) for clamp in clamps if not is_rewritten(clamp)]  # type: ignore[arg-type]
