"""How similar the images are to the backbone's training data."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.core.intervals import TWO_SIDED
from transferkit.records import SimilarityDetail, StageDistance
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import format_count, format_number, format_percent, plural
from transferkit.report.charts.axes import Axis, share_axis

__all__ = ["Similarity", "write_similarity"]

OTHERS = {
    "frechet_distance": "Fréchet distance (falls as images are added)",
    "mmd": "Maximum mean discrepancy, squared and unbiased (0: identical)",
    "proxy_a_distance": "Proxy A-distance (0: indistinguishable, 2: always distinguished)",
    "emd_of_class_means": "Earth mover's distance of class means",
    "class_mean_similarity": "Similarity of class means after Cui et al. (1: identical)",
}

BY_HEAD = "head confidence"
"""Origin of a similarity that was estimated from a classifier's predictions."""


@dataclass(frozen=True, kw_only=True)
class DistanceRow(IntervalRow):
    """One stage in the plot and the table of distances."""

    w2: str
    kl: str
    channels: str


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The similarity, and the distance of each stage behind it."""

    sentence: str
    note: str
    axis: Axis | None
    rows: tuple[DistanceRow, ...]
    others: tuple[tuple[str, str], ...]


def write_similarity(detail: SimilarityDetail | None) -> Similarity | None:
    """The similarity in words and rows; None if it was not measured."""
    if detail is None:
        return None
    ends = [end for stage in detail.stages for end in (0.0, _share(stage.distance), *_interval(stage))]
    axis = share_axis(ends) if ends else None
    return Similarity(
        sentence=_describe(detail),
        note=detail.note,
        axis=axis,
        rows=() if axis is None else tuple(_write_row(stage, axis) for stage in detail.stages),
        others=tuple((OTHERS.get(name, name), format_number(value)) for name, value in detail.others.items()),
    )


def _describe(detail: SimilarityDetail) -> str:
    if detail.value is None:
        return "The similarity of the images to the backbone's training data is not known."
    said = f"Similarity {detail.value:.2f} on a scale from 0 to 1"
    if detail.low is not None and detail.high is not None:
        said += f" (95 % interval {detail.low:.2f} to {detail.high:.2f})"
    if detail.images:
        images = plural(detail.images, "training image")
        said += (
            f", estimated from the predictions of the backbone's own classifier on {images}"
            if detail.origin == BY_HEAD
            else f", measured on {images}"
        )
    return (
        f"{said}. 1 means just like the backbone's training data; 0.5 is halfway between photographs on one side and "
        "scanned digits, letters and silhouettes on the other."
    )


def _share(distance: float) -> float:
    return min(1.0, max(0.0, distance))


def _interval(stage: StageDistance) -> tuple[float, float]:
    margin = TWO_SIDED * stage.error
    return _share(stage.distance - margin), _share(stage.distance + margin)


def _write_row(stage: StageDistance, axis: Axis) -> DistanceRow:
    low, high = _interval(stage)
    return DistanceRow(
        name=stage.stage,
        value=format_percent(_share(stage.distance)),
        interval=f"± {100 * TWO_SIDED * stage.error:.1f}",
        at=axis.place(_share(stage.distance)),
        low=axis.place(low),
        high=axis.place(high),
        w2=format_number(stage.w2),
        kl=format_number(stage.kl),
        channels=format_count(stage.channels),
    )
