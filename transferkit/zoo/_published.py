"""Top-1 accuracy on the 50,000 validation images of ImageNet-1k, as published with the weights.

torchvision states it in the metadata of its weights. timm and the packages do not; their figures are listed below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["UNKNOWN", "Published", "published_packaged", "published_timm", "published_torchvision"]


class Published(NamedTuple):
    """A published accuracy in [0, 1], or None if unknown, and its source."""

    accuracy: float | None
    source: str


UNKNOWN = Published(None, "")

TIMM_RESULTS = "timm, results/results-imagenet.csv (commit 0173a139)"
TIMM: Mapping[str, float] = {
    "tf_efficientnet_lite0.in1k": 0.74830,
    "tf_efficientnet_lite1.in1k": 0.76644,
    "tf_efficientnet_lite2.in1k": 0.77464,
}
"""Name with tag -> accuracy at timm's test size."""

AUTHORS = "tensorflow/tpu, models/official/efficientnet/lite/README.md (commit 07e173cc)"
PACKAGED: Mapping[str, float] = {
    "tf_efficientnet_lite0": 0.751,
    "tf_efficientnet_lite1": 0.767,
    "tf_efficientnet_lite2": 0.776,
}
"""Of the authors' floating-point checkpoints, from which the packaged weights were converted."""


def published_timm(full_name: str) -> Published:
    """Published accuracy of timm's "ARCHITECTURE.TAG"."""
    return Published(TIMM[full_name], TIMM_RESULTS) if full_name in TIMM else UNKNOWN


def published_packaged(name: str) -> Published:
    """Published accuracy of a packaged network."""
    return Published(PACKAGED[name], AUTHORS) if name in PACKAGED else UNKNOWN


def published_torchvision(meta: Mapping[str, Any], full_name: str) -> Published:
    """Published accuracy from the metadata of torchvision weights; NaN there means no classifier."""
    percent = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1", math.nan)
    return Published(percent / 100, f"torchvision, meta data of {full_name}") if math.isfinite(percent) else UNKNOWN
