"""Related published weights: nearly the same architecture with another normalisation."""

from __future__ import annotations

import re
from functools import cache

__all__ = ["native_group_norm"]

RESNET = re.compile(r"resnet(?:v2_)?(\d+)")


def native_group_norm(name: str) -> str | None:
    """Name of timm weights trained with group normalisation, for an architecture with batch normalisation.

    The same architecture comes first, then ResNets of the same depth (Wu & He, ECCV 2018; BiT, Kolesnikov et al., ECCV
    2020).

    Args:
        name: "SOURCE/ARCHITECTURE", with or without a tag.

    Returns:
        A name for `load`; None if no such weights are known.

    Example:
        >>> native_group_norm("torchvision/resnet50:IMAGENET1K_V2")
        'timm/resnet50_gn.a1h_in1k'
        >>> native_group_norm("timm/resnetv2_101.a1h_in1k"), native_group_norm("timm/mobilenetv3_large_100")
        ('timm/resnetv2_101x1_bit.goog_in21k_ft_in1k', None)
    """
    architecture = re.split(r"[.:]", name.rpartition("/")[2])[0]
    candidates = [f"{architecture}_gn"]
    if found := RESNET.fullmatch(architecture):
        depth = found[1]
        candidates += [f"resnet{depth}_gn", f"resnetv2_{depth}x1_bit.goog_in21k_ft_in1k"]
    known = _pretrained()
    return next((f"timm/{full}" for short in candidates for full in known if _is(full, short)), None)


def _is(full: str, short: str) -> bool:
    return short in (full, full.partition(".")[0])


@cache
def _pretrained() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_pretrained())
