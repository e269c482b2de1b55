"""How near the data is to what the backbone was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.core.intervals import TWO_SIDED
from transferkit.records import SimilarityDetail, StageDistance
from transferkit.report._plots import Axis, fit_scale
from transferkit.report._words import format_count, format_number, format_percent, plural

__all__ = ["Similarity", "write_similarity"]

OTHERS = {
    "frechet_distance": "Fréchet distance (falls as images are added)",
    "mmd": "Maximum mean discrepancy, squared and unbiased (0: alike)",
    "proxy_a_distance": "Proxy A-distance (0: not told apart, 2: always)",
    "emd_of_class_means": "Earth mover's distance of class means",
    "class_mean_similarity": "Similarity of class means after Cui et al. (1: alike)",
}

BY_HEAD = "head confidence"
"""Origin of a similarity that was estimated from a classifier's answers."""


@dataclass(frozen=True, kw_only=True)
class DistanceRow:
    """One stage on the plot of distances; positions in % of the width."""

    name: str
    value: str
    interval: str
    at: float
    low: float
    high: float
    w2: str
    kl: str
    channels: str
    kind: str = "stage"
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The similarity, and the distance of each stage behind it."""

    sentence: str
    note: str
    scale: Axis | None
    rows: tuple[DistanceRow, ...]
    others: tuple[tuple[str, str], ...]


def write_similarity(detail: SimilarityDetail | None) -> Similarity | None:
    """What was measured of it; None if nobody looked."""
    if detail is None:
        return None
    ends = [end for stage in detail.stages for end in (0.0, _share(stage.distance), *_interval(stage))]
    scale = fit_scale(ends) if ends else None
    return Similarity(
        sentence=_describe(detail),
        note=detail.note,
        scale=scale,
        rows=() if scale is None else tuple(_write_row(stage, scale) for stage in detail.stages),
        others=tuple((OTHERS.get(name, name), format_number(value)) for name, value in detail.others.items()),
    )


def _describe(detail: SimilarityDetail) -> str:
    if detail.value is None:
        return "How near the images are to those that the backbone was trained on is not known."
    said = f"Similarity {detail.value:.2f} on a scale from 0 to 1"
    if detail.low is not None and detail.high is not None:
        said += f" (95 % interval {detail.low:.2f} to {detail.high:.2f})"
    if detail.images:
        images = plural(detail.images, "training image")
        said += (
            f", estimated from what the backbone's own classifier answers to {images}"
            if detail.origin == BY_HEAD
            else f", measured on {images}"
        )
    return (
        f"{said}. 1 is just like what the backbone was trained on; 0.5 is the middle between photographs on the one "
        "side and scanned digits, letters and silhouettes on the other."
    )


def _share(distance: float) -> float:
    return min(1.0, max(0.0, distance))


def _interval(stage: StageDistance) -> tuple[float, float]:
    margin = TWO_SIDED * stage.error
    return _share(stage.distance - margin), _share(stage.distance + margin)


def _write_row(stage: StageDistance, scale: Axis) -> DistanceRow:
    low, high = _interval(stage)
    return DistanceRow(
        name=stage.stage,
        value=format_percent(_share(stage.distance)),
        interval=f"± {100 * TWO_SIDED * stage.error:.1f}",
        at=scale.place(_share(stage.distance)),
        low=scale.place(low),
        high=scale.place(high),
        w2=format_number(stage.w2),
        kl=format_number(stage.kl),
        channels=format_count(stage.channels),
    )
