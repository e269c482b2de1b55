"""Limits of options that several rooms share."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from transferkit.core.errors import OptionError

__all__ = ["LAYER_DECAY", "N_SPLITS", "SMALLEST_SIDE", "check_image_size", "check_limit"]

N_SPLITS = 5
"""Default number of splits in cross-validation: a fold holds back one of them."""

LAYER_DECAY = 0.75
"""Default rate of each stage relative to the one above it: the upper end of BEiT's per-block decay (0.65 to 0.75; Bao
et al., ICLR 2022). The first of 13 stages has 1/32 of the last one's rate, the first of 5 has 1/3. The 1/2.6 of ULMFiT
(Howard and Ruder, ACL 2018) is for a network of three layers."""

SMALLEST_SIDE = 8
"""Smallest side in pixels that is accepted."""

_LARGEST = 8192
"""Largest side in pixels that is accepted: above it a batch of two does not fit into memory."""


def check_image_size(size: Any) -> None:
    """Raise `OptionError` unless a side in pixels is None or an integer in the accepted range.

    Example:
        >>> check_image_size(96)
    """
    if size is None:
        return
    expected = f"image_size is the side of a square in pixels, a whole number of {SMALLEST_SIDE} or more"
    whole = int(size) if isinstance(size, (int, Integral)) and not isinstance(size, bool) else None
    if whole is not None and whole >= SMALLEST_SIDE:
        if whole <= _LARGEST:
            return
        raise OptionError(f"{expected}, up to {_LARGEST}, got {size!r}. For example image_size=96.")
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        raise OptionError(f"{expected}, got {size!r}. Give one number: image_size={size[0]}.")
    raise OptionError(f"{expected}, got {size!r}. For example image_size=96; None uses the checkpoint's own.")


def check_limit(limit: Any) -> None:
    """Raise `OptionError` unless a number of things to list is a whole number >= 1.

    Example:
        >>> check_limit(1000)
    """
    if isinstance(limit, bool) or not isinstance(limit, Integral) or int(limit) < 1:
        raise OptionError(f"limit must be a whole number >= 1, got {limit!r}. For example limit=1000.")
