"""Top-1 accuracy on the 50,000 validation images of ImageNet-1k, as published with the weights.

torchvision states it in the meta data of its weights. timm and the packages do not; the figures below were looked up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["UNKNOWN", "Published", "published_packaged", "published_timm", "published_torchvision"]


class Published(NamedTuple):
    """A share in [0, 1], or None if it is not known, and who says so."""

    accuracy: float | None
    source: str


UNKNOWN = Published(None, "")

TIMM_RESULTS = "timm, results/results-imagenet.csv (commit 0173a139)"
TIMM: Mapping[str, float] = {
    "tf_efficientnet_lite0.in1k": 0.74830,
    "tf_efficientnet_lite1.in1k": 0.76644,
    "tf_efficientnet_lite2.in1k": 0.77464,
}
"""Name with its tag -> accuracy at the size timm tests it with."""

AUTHORS = "tensorflow/tpu, models/official/efficientnet/lite/README.md (commit 07e173cc)"
PACKAGED: Mapping[str, float] = {
    "tf_efficientnet_lite0": 0.751,
    "tf_efficientnet_lite1": 0.767,
    "tf_efficientnet_lite2": 0.776,
}
"""Of the authors' own floating-point checkpoints, from which the packaged weights were converted."""


def published_timm(full_name: str) -> Published:
    """For "ARCHITECTURE.TAG"."""
    return Published(TIMM[full_name], TIMM_RESULTS) if full_name in TIMM else UNKNOWN


def published_packaged(name: str) -> Published:
    """For a packaged network."""
    return Published(PACKAGED[name], AUTHORS) if name in PACKAGED else UNKNOWN


def published_torchvision(meta: Mapping[str, Any], full_name: str) -> Published:
    """From the meta data of a weights entry; weights without a classifier state NaN there."""
    percent = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1", math.nan)
    return Published(percent / 100, f"torchvision, meta data of {full_name}") if math.isfinite(percent) else UNKNOWN
