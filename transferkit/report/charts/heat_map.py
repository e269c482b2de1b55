"""Confusion counts as a heat map: rows are true classes, columns predicted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.records import RunRecord
from transferkit.report._predictions import confusion_counts, find_held_out, name_classes
from transferkit.report._words import format_count, name_split, plural
from transferkit.report.charts.axes import class_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Box, Boxes

__all__ = ["MAX_CLASSES", "draw_heat_map"]

MAX_CLASSES = 30
"""Of more classes the report lists the pairs that are confused most often instead."""

SIDES = ((12, 40.0), (20, 31.0), (MAX_CLASSES, 26.0))
"""(classes, side of a cell in px): up to so many classes, cells of that side."""


@CHARTS.register("heat_map")
def heat_map(record: RunRecord) -> Figure | None:
    """Confusion matrix of the held-out images; None without them or with too many classes."""
    held_out = find_held_out(record)
    if held_out is None or held_out.targets is not None:
        return None
    names, split = name_classes(record, held_out), name_split(held_out.split)
    if len(names) > MAX_CLASSES:
        return None
    counts = confusion_counts(held_out.labels, held_out.probabilities.argmax(axis=1), classes=len(names))
    title = f"Confusion matrix on the {split} images; the table of classes below has the same numbers"
    return Figure(
        section="quality",
        heading=f"Confusion matrix, {split} images",
        caption="Each row holds the images of one class; the diagonal holds those classified correctly. Mistakes have "
        "an outline.",
        charts=(draw_heat_map(counts, names, title=title),),
    )


def draw_heat_map(counts: npt.NDArray[np.int64], names: Sequence[str], *, title: str) -> Chart:
    """Counts as coloured cells; cells without images are left out.

    Args:
        counts: (K, K) counts; rows are true classes, columns predicted ones.
        names: K class names, K <= `MAX_CLASSES`.
        title: What the chart shows.
    """
    side = next(side for most, side in SIDES if len(names) <= most)
    worst = int((counts - np.diag(np.diagonal(counts))).max())
    return Chart(
        title=title,
        x=class_axis(names, name="Predicted →"),
        y=class_axis(names, name="← True class", downwards=True),
        marks=(Boxes(boxes=[_cell(counts, names, int(t), int(p), worst=worst) for t, p in np.argwhere(counts)]),),
        across=len(names) * side,
        down=len(names) * side,
    )


def _cell(counts: npt.NDArray[np.int64], names: Sequence[str], true: int, predicted: int, *, worst: int) -> Box:
    count, total = int(counts[true, predicted]), int(counts[true].sum())
    right = true == predicted
    said = "classified correctly" if right else f"classified as {names[predicted]}"
    return Box(
        x=(predicted - 0.5, predicted + 0.5),
        y=(true - 0.5, true + 0.5),
        text=format_count(count) if count < 1000 else f"{count / 1000:.1f}k",
        title=f"{names[true]}: {format_count(count)} of {plural(total, 'image')} {said}",
        strength=round(count / total if right else math.sqrt(count / worst), 3),
        tone="accent" if right else "warm",
        outlined=not right,
    )
