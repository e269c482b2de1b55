"""The options of `shift`: name, type, default and sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.options import MAX_PIXELS, option

__all__ = ["ShiftOptions"]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How new images are compared with a run's training images, and what may be done about a shift."""

    remedy: str = option(
        "none",
        "What may be done about a shift: none, auto (what is likely to help most, if anything is), or the name of "
        "one, which is used only if it is likely to help.",
    )
    alpha: float = option(0.05, "Chance of calling equal sets shifted, all tests together, in (0, 0.5].")
    reject: float = option(0.01, "Share of images like those of training to call unfamiliar, in (0, 0.5].")
    max_pixels: int = option(MAX_PIXELS, "Width times height above which an image is set aside instead of decoded.")
    batch_size: int | None = option(None, "Images per batch of the frozen pass; None: fitted.")
    cache: Any = option(None, "Folder of the feature bank; None: $TRANSFERKIT_CACHE or the user's cache folder.")
    device: Any = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    seed: int = option(0, "Seed of samples and permutations.")
    progress: bool = option(True, "Show progress bars on a terminal.")

    def __post_init__(self) -> None:
        for name in ("alpha", "reject"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 0.5:
                raise OptionError(f"{name} must be in (0, 0.5], got {value!r}.")
