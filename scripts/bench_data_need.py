"""Extrapolated learning curves against what more images really bring, task by task.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_data_need.py --root tasks [--out benchmarks/data_need.json]

For every task with 300 training images or more: draw a quarter (and an eighth) of them, measure the learning curve of
the joined probe on these alone, extrapolate it to all training images, and compare with the held-back accuracy that
all of them give.
Recorded: whether the 80 % interval holds that accuracy, the error of the median, and n-hat / N, the number of
images forecast for that accuracy over the true one. The joined probe's own curve is extrapolated; nothing sees the test
images. Estimate: features once per task (a frozen pass), then a probe and a curve per draw: 2 s.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from regret.measuring import measure_features, parse_tasks, write_result

from transferkit.features import FeatureTable
from transferkit.measure import (
    fitted_images,
    fitting_threads,
    forecast_curve,
    learning_curves,
    ridge_paths,
    stratified_sample,
)
from transferkit.records import JOINED, CurvePoint, Folds

SHARES = (0.25, 0.125)
"""Of the training images that are known when the curve is extrapolated."""

FEWEST = 300
"""Training images of a task."""

QUANTILES = (0.5, 0.1, 0.9)


def joined_curve(table: FeatureTable, folds: Folds, rows: np.ndarray, *, classes: int, seed: int) -> list[CurvePoint]:
    """The learning curve of all stages joined on these images alone."""
    known, some = table.take(rows), folds.take(rows)
    with fitting_threads(len(rows)):
        order = some.order
        paths = ridge_paths(
            known.take(order).chunks, some.labels[order], known.blocks, classes=classes, folds=some.take(order)
        )
        paths = {name: path.sorted_back(order) for name, path in paths.items()}
        points = learning_curves(known.chunks, some.labels, known.blocks, paths, folds=some, seed=seed)
    own = [point for point in points if point.stage == JOINED]
    return fitted_images(own, some) if own else own


def measure_task(folder: Path, cache: Path, draws: int) -> Iterator[dict[str, Any]]:
    """A row for every share and draw."""
    measured = measure_features(folder, cache)
    table, folds = measured.features(measured.train), measured.folds
    classes = measured.evidence.data.num_classes
    truth = measured.evidence.probe(JOINED).accuracy
    if truth is None or len(folds) < FEWEST:
        return
    for share in SHARES:
        for draw in range(draws):
            size = max(round(share * len(folds)), classes)
            rows = stratified_sample(folds.labels, size, np.random.default_rng(draw))
            points = joined_curve(table, folds, rows, classes=classes, seed=draw)
            row = {"task": folder.name, "share": share, "draw": draw, "images": size, "all": len(folds), "truth": truth}
            yield {**row, **extrapolate(points, len(folds), truth)}


def extrapolate(points: Sequence[CurvePoint], images: int, truth: float) -> dict[str, Any]:
    """What the curve says of all images; without a forecast where it has too few points."""
    kept = [[point.images, round(point.accuracy, 5), round(point.error, 5)] for point in points]
    if len({point.images for point in points}) < 4:
        return {"points": kept, "problem": "too short"}
    found = forecast_curve(points)
    middle, low, high = found.accuracy_at(images, QUANTILES)
    needed, least, most = (n if math.isfinite(n) else None for n in found.images_for(truth, QUANTILES))
    return {
        "points": kept,
        "problem": found.problem,
        "accuracy": round(middle, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "needed": needed,
        "least": least,
        "most": most,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares over tasks, each task weighing the same."""
    told = [row for row in rows if "accuracy" in row]
    sound = [row for row in told if not row["problem"]]

    def share(of: Sequence[dict[str, Any]], holds: Any) -> float | None:
        tasks = {row["task"] for row in of}
        return round(statistics.mean(statistics.mean(bool(holds(r)) for r in of if r["task"] == t) for t in tasks), 3)

    def near(row: dict[str, Any]) -> bool:
        return row["needed"] is not None and 0.5 <= row["needed"] / row["all"] <= 2

    counts = {"rows": len(rows), "too short": len(rows) - len(told), "not well behaved": len(told) - len(sound)}
    if not sound:
        return counts
    return {
        **counts,
        "tasks": len({row["task"] for row in sound}),
        "interval holds the truth": share(sound, lambda row: row["low"] <= row["truth"] <= row["high"]),
        "needed / true number in [0.5, 2]": share(sound, near),
        "interval of the number holds the truth": share(
            sound, lambda row: (row["least"] or math.inf) <= row["all"] <= (row["most"] or math.inf)
        ),
        "mean error, points": round(100 * statistics.mean(row["accuracy"] - row["truth"] for row in sound), 2),
        "mean absolute error, points": round(
            100 * statistics.mean(abs(row["accuracy"] - row["truth"]) for row in sound), 2
        ),
    }


def by_share(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {str(share): summarise([row for row in rows if row["share"] == share]) for share in SHARES}


def main() -> None:
    chosen = parse_tasks(__doc__)
    rows = list[dict[str, Any]]()
    for folder in chosen.folders:
        rows += measure_task(folder, chosen.cache, chosen.seeds)
        own = [r for r in rows if r["task"] == folder.name]
        print(folder.name, *(f"{r['truth']:.3f}:{r.get('accuracy', 0):.3f}" for r in own), flush=True)
    write_result("scripts/bench_data_need.py", rows, by_share, chosen.out)


if __name__ == "__main__":
    main()
