"""Progressive image size: small pictures in the first epochs, the full ones in the last."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from transferkit.core.errors import OptionError

__all__ = ["GROWN", "check_grows", "shrink", "side_at"]

GROWN = 0.6
"""Share of the epochs after which pictures have their full size: the last ones must train at the size of prediction."""

STEP, LEAST = 16, 32
"""Sides are multiples of 16 pixels and at least 32: networks halve them five times."""


def side_at(side: int, start: float, epoch: int, epochs: int) -> int:
    """Side of the pictures in an epoch, in pixels.

    Args:
        side: The full one.
        start: Share of it in the first epoch, in (0, 1].
        epoch: From 0.
        epochs: In all.

    Returns:
        A multiple of `STEP`, at least `LEAST`, or the full side.

    Example:
        >>> [side_at(96, 0.5, epoch, 10) for epoch in range(8)]
        [48, 48, 64, 64, 80, 80, 96, 96]
    """
    if epoch >= epochs - 1:
        return side  # also where there are too few epochs to grow
    share = min(1.0, start + (1 - start) * epoch / max(1.0, GROWN * epochs))
    if share == 1.0:
        return side
    return min(side, max(LEAST, STEP * math.floor(side * share / STEP)))


def shrink(images: torch.Tensor, start: float, epoch: int, epochs: int) -> torch.Tensor:
    """(N, C, H, W) images at the size of an epoch; both sides by the same factor, as near as multiples of `STEP`
    allow."""
    height, width = (side_at(side, start, epoch, epochs) for side in images.shape[-2:])
    if (height, width) == tuple(images.shape[-2:]):
        return images
    # On a CPU half precision has no such kernel.
    small = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
    return small.to(images.dtype)


def check_grows(run: Callable[[torch.Tensor], object], images: torch.Tensor, start: float) -> None:
    """Whether a network takes the smallest pictures that it would be trained on.

    Args:
        run: The network.
        images: (n, C, H, W) at the full size.
        start: As in `side_at`.

    Raises:
        OptionError: It does not, as most vision transformers.
    """
    small = shrink(images, start, 0, 2)
    try:
        with torch.no_grad():
            run(small)
    except Exception as error:  # whatever a network raises for a size it does not take
        raise OptionError(
            f"start_size={start:g} begins with pictures of {small.shape[2]} x {small.shape[3]} pixels, which this "
            "network does "
            "not take: its input has one size, as that of most transformers. Leave start_size out."
        ) from error
