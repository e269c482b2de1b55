"""The initial learning rate of fine-tuning, from the rate that the backbone was trained at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.records import BackboneSpec

__all__ = ["LR_SCALE", "StartingRate", "starting_rate"]

LR_SCALE = 0.1
"""Fine-tuning starts at a tenth of the original rate, so as not to distort the pretrained weights."""

DEFAULTS = {"sgd": (0.1, 256), "adamw": (0.01, 256)}
"""Optimizer -> default original rate and batch size, if the zoo knows none of that kind: SGD's is He et al.'s (CVPR
2016); that of adaptive ones is between EfficientNet's (RMSprop, 0.016 at 256) and timm's for ResNets (LAMB, 0.005 at
2048)."""


@dataclass(frozen=True)
class StartingRate:
    """The initial learning rate.

    Args:
        lr: Of the backbone's last stage, > 0.
        scale: `lr` as a share of the original rate at this batch size.
        why: A sentence with the numbers in it.
    """

    lr: float
    scale: float
    why: str


def starting_rate(
    backbone: BackboneSpec, *, optimizer: str, batch_size: int, scale: float | None = None
) -> StartingRate:
    """A tenth, or the given share, of the backbone's original rate, scaled to the batch size in use.

    SGD's rates scale with the batch size (Goyal et al., 2017), those of adaptive optimizers with its root (Malladi et
    al., NeurIPS 2022). A rate of one kind says nothing about the other: then a documented default is used.

    Args:
        backbone: With the rate it was trained at, if known.
        optimizer: "sgd" or "adamw".
        batch_size: Images per step, >= 1.
        scale: Share of the original rate, > 0; None for a tenth.

    Example:
        >>> from transferkit.records import Preprocessing
        >>> plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> spec = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=plain, pretrained=True)
        >>> round(starting_rate(spec, optimizer="sgd", batch_size=32).lr, 5)
        0.00125
    """
    is_sgd = optimizer == "sgd"
    known = backbone.original_lr is not None and (backbone.original_optimizer == "sgd") == is_sgd
    if known:
        assert backbone.original_lr is not None
        rate, batch, source = backbone.original_lr, backbone.original_batch, backbone.original_by
    else:
        (rate, batch), source = DEFAULTS[optimizer], f"the default for {'SGD' if is_sgd else 'adaptive optimizers'}"
    share = batch_size / batch
    original = rate * (share if is_sgd else math.sqrt(share))
    requested, scale = (", as requested," if scale is not None else ""), LR_SCALE if scale is None else scale
    lr = scale * original
    why = (
        f"Fine-tuning starts at {lr:.2g} in the last stage: {scale:g}{requested} of the original rate, {rate:g} at "
        f"batch {batch:,} ({source}), which is {original:.2g} at batch {batch_size}."
    )
    return StartingRate(lr, scale, why)
