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
    return _side(side, min(1.0, start + (1 - start) * epoch / max(1.0, GROWN * epochs)))


def _side(side: int, share: float) -> int:
    if share == 1.0:
        return side
    return min(side, max(LEAST, STEP * math.floor(side * share / STEP)))


def sizes_on_the_way(size: tuple[int, int], start: float) -> list[tuple[int, int]]:
    """Every size that pictures may have in some epoch, whatever the number of epochs, smallest first.

    Example:
        >>> sizes_on_the_way((96, 96), 0.5)
        [(48, 48), (64, 64), (80, 80), (96, 96)]
        >>> sizes_on_the_way((64, 96), 0.5)
        [(32, 48), (32, 64), (48, 64), (48, 80), (64, 96)]
    """
    steps = {STEP * step / side for side in size for step in range(1, side // STEP + 1)}
    shares = sorted({start, 1.0, *(share for share in steps if start < share < 1)})
    # A little above a step: which side of it a quotient is rounded to must not matter.
    found = [(_side(size[0], share), _side(size[1], share)) for one in shares for share in (min(1.0, one + 1e-9),)]
    return list(dict.fromkeys(found))


def shrink(images: torch.Tensor, start: float, epoch: int, epochs: int) -> torch.Tensor:
    """(N, C, H, W) images at the size of an epoch; both sides by the same factor, as near as multiples of `STEP`
    allow."""
    height, width = (side_at(side, start, epoch, epochs) for side in images.shape[-2:])
    return _resize(images, (height, width))


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if size == tuple(images.shape[-2:]):
        return images
    # On a CPU half precision has no such kernel.
    small = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return small.to(images.dtype)


def check_grows(run: Callable[[torch.Tensor], object], images: torch.Tensor, start: float) -> None:
    """Whether a network takes pictures of all sizes that it may be trained on.

    Args:
        run: The network.
        images: (n, C, H, W) at the full size.
        start: As in `side_at`.

    Raises:
        OptionError: It does not, as most vision transformers.
    """
    height, width = images.shape[-2:]
    sizes = sizes_on_the_way((height, width), start)
    refused = {size: reason for size in sizes if (reason := _refusal(run, _resize(images, size))) is not None}
    if refused:
        names = ", ".join(f"{height} x {width}" for height, width in refused)
        raise OptionError(
            f"start_size={start:g} begins with pictures of {sizes[0][0]} x {sizes[0][1]} pixels, which grow. This "
            f"network does not take {names}: its input has one size, as that of most transformers, or "
            "certain ones. Leave start_size out."
        ) from next(iter(refused.values()))


def _refusal(run: Callable[[torch.Tensor], object], images: torch.Tensor) -> Exception | None:
    try:
        with torch.no_grad():
            run(images)
    except Exception as error:  # whatever a network raises for a size it does not take
        return error
    return None
