"""Mixup and cutmix: batches in which pictures are mixed in pairs, with matching class shares as targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from transferkit.core.errors import DataError, OptionError
from transferkit.data.draws import drawing

__all__ = ["Mixing"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup, cutmix, or one of the two at random per batch; deterministic for a given seed.

    Leave it off for few images or short schedules: BiT-HyperRule uses it from 20,000 images on, with mixup 0.1.

    Args:
        classes: K.
        mixup: alpha of the Beta distribution of the mixing ratio, >= 0; 0 is off.
        cutmix: The same for the area of the pasted patch.

    References:
        Zhang et al., ICLR 2018 (mixup); Yun et al., ICCV 2019 (cutmix). Each image is mixed with its neighbour in the
        batch, as in torchvision.

    Example:
        >>> mix = Mixing(classes=2, mixup=1.0)
        >>> pictures, targets = mix(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), 7)
        >>> targets.sum(dim=1).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"Mixing.{name} must be >= 0, got {getattr(self, name)!r}.")

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, pictures: torch.Tensor, targets: torch.Tensor, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch, mixed.

        Args:
            pictures: (n, 3, H, W) uint8 or float.
            targets: (n,) int in [0, K), or (n, K) class shares.
            draw: A seed, from `draw_seed`.

        Returns:
            Pictures of the same dtype, uint8 rounded, and (n, K) float32 class shares; rows sum to 1.

        Raises:
            DataError: Targets are neither classes nor class shares.
        """
        if targets.ndim == 1 and targets.is_floating_point():
            raise DataError("Mixup and cutmix need classes as targets, got floats. Leave mixup and cutmix off.")
        if not self:
            return pictures, targets
        with drawing(draw):
            mixed, shares = _mixer(self)(pictures.float(), targets)
        return mixed if pictures.is_floating_point() else mixed.round_().to(pictures.dtype), shares


@lru_cache(maxsize=4)
def _mixer(mixing: Mixing) -> Any:
    from torchvision.transforms import v2

    kinds = ((v2.MixUp, mixing.mixup), (v2.CutMix, mixing.cutmix))
    mixers = [kind(alpha=alpha, num_classes=mixing.classes) for kind, alpha in kinds if alpha > 0]
    return mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)
