"""Pooling of a stage's output, in any layout, to one vector per image."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from transferkit.core.errors import BackboneError, OptionError, unknown_name

__all__ = ["LAYOUTS", "POOLINGS", "Layout", "Pooling", "find_layout", "pool", "pooled_width", "to_grid"]

Layout = Literal["vector", "tokens", "channels_first", "channels_last"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Pooling = Literal["avg", "avg+max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

MAX_PREFIX_TOKENS = 8
"""Maximum number of class, distillation and register tokens before the patches."""


def find_layout(shape: tuple[int, ...]) -> Layout:
    """The layout of a stage's output for a square input, by its shape alone.

    Args:
        shape: With the batch first. (N, C, H, W) and (N, H, W, C) are distinguished by which two sides are equal; if
            all three are equal, channels first.

    Example:
        >>> find_layout((2, 64, 7, 7)), find_layout((2, 7, 7, 96)), find_layout((2, 197, 192))
        ('channels_first', 'channels_last', 'tokens')
    """
    if len(shape) == 2:
        return "vector"
    if len(shape) == 3:
        return "tokens"
    if len(shape) == 4 and shape[2] == shape[3]:
        return "channels_first"
    if len(shape) == 4 and shape[1] == shape[2]:
        return "channels_last"
    raise BackboneError(
        f"A stage's output must be (N, D), (N, T, C), (N, C, H, W) or (N, H, W, C) with H = W, got {shape}."
    )


def prefix_tokens(tokens: int) -> int:
    """How many of `tokens` precede a square grid of patches; 0 if that would be too many.

    Example:
        >>> prefix_tokens(197), prefix_tokens(196), prefix_tokens(201), prefix_tokens(80)
        (1, 0, 5, 0)
    """
    extra = tokens - math.isqrt(tokens) ** 2
    return extra if extra <= MAX_PREFIX_TOKENS and extra < tokens else 0


def to_grid(output: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A stage's output with channels at axis 1: (N, C), (N, C, T) without prefix tokens, or (N, C, H, W)."""
    if layout == "tokens":
        return output[:, prefix_tokens(output.shape[1]) :].transpose(1, 2)
    if layout == "channels_last":
        return output.permute(0, 3, 1, 2)
    return output


def pool(output: torch.Tensor, layout: Layout, pooling: str) -> torch.Tensor:
    """One vector per image: (N, C) for "avg", (N, 2C) for "avg+max"; a vector is unchanged.

    Raises:
        OptionError: If `pooling` is unknown.
    """
    if pooling not in POOLINGS:
        raise OptionError(unknown_name("pooling", pooling, POOLINGS))
    grid = to_grid(output, layout)
    if grid.ndim == 2:
        return grid
    axes = tuple(range(2, grid.ndim))
    average = grid.mean(dim=axes)
    return average if pooling == "avg" else torch.cat([average, grid.amax(dim=axes)], dim=1)


def pooled_width(channels: int, layout: Layout, pooling: str) -> int:
    """Width of the output of `pool`."""
    return channels if layout == "vector" or pooling == "avg" else 2 * channels
