"""Extrapolated learning curves against what more images really bring, task by task.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_data_need.py --root tasks [--out benchmarks/data_need.json]

For every task with 300 training images or more: draw a quarter (and an eighth) of them, measure the learning curve of
the joined probe on these alone, extrapolate it to all training images, and compare with the held-back accuracy that
all of them give.
Recorded: whether the 80 % interval holds that accuracy, the error of the median, and n-hat / N, the number of
images forecast for that accuracy over the true one. The joined probe's own curve is extrapolated; nothing sees the test
images. The same with the prior learnt without the task: of `PRIORS`, the one that does best on all other tasks; and
with each family of curves alone, where the default is the mixture of all.

Ceilings, per task, of the probability that n-hat / N is in [0.5, 2], from the smooth curve through all points of the
whole task: `ceiling` for a forecaster who knows this curve exactly, and only meets the noise of the held-back accuracy
of N images; `ceiling of the shape` for one who knows its shape exactly, and its level from the known images alone.

Estimate: features once per task (a frozen pass), then a probe and a curve per draw: 2 s; the priors 30 s in all.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from regret.measuring import measure_features, parse_tasks, write_result

from transferkit.features import FeatureTable
from transferkit.measure import (
    CurvePrior,
    fitted_images,
    fitting_threads,
    forecast_curve,
    learning_curves,
    ridge_paths,
    stratified_sample,
)
from transferkit.measure.curve_families import FAMILIES, USUAL
from transferkit.measure.data_need import MIN_POINTS
from transferkit.records import JOINED, CurvePoint, Folds

SHARES = (0.25, 0.125)
"""Of the training images that are known when the curve is extrapolated."""

FEWEST = 300
"""Training images of a task."""

QUANTILES = (0.5, 0.1, 0.9)

FOUR = 4
"""Different numbers of images that a curve needed before; results on such curves are summarised apart."""

DECIDABLE = 0.8
"""Ceiling of the shape from which a task counts as decidable."""

PRIORS = [
    CurvePrior(slope=slope, slope_deviation=spread, factor=factor, factor_deviation=deviation)
    for (slope, spread), factor, deviation in itertools.product(
        ((0.24, 0.12), (0.24, 0.2), (0.2, 0.1)), (0.9, 0.92, 0.94, 0.96), (0.05, 0.08)
    )
]


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
    whole = [point for point in measured.evidence.curves if point.stage == JOINED]
    for share in SHARES:
        ceilings = measure_ceilings(fitted_images(whole, folds), len(folds), share)
        for draw in range(draws):
            size = max(round(share * len(folds)), classes)
            rows = stratified_sample(folds.labels, size, np.random.default_rng(draw))
            points = joined_curve(table, folds, rows, classes=classes, seed=draw)
            row = {"task": folder.name, "share": share, "draw": draw, "images": size, "all": len(folds), "truth": truth}
            yield {**row, **ceilings, **extrapolate(points, len(folds), truth)}


def measure_ceilings(points: Sequence[CurvePoint], images: int, share: float) -> dict[str, float]:
    """Probability of n-hat / N in [0.5, 2] for who knows the curve, or only its shape.

    On the probit scale the measured accuracy of all N images has the standard error e; the level seen on the share s of
    them has the standard error d, from images of which the others are independent. The difference of the two, less what
    both have in common, has the variance (1 - s) e^2 + (1 - s)^2 d^2.
    """
    normal, curve = NormalDist(), forecast_curve(points)
    half, now, double = (normal.inv_cdf(curve.accuracy_at(times * images)[0]) for times in (0.5, 1, 2))

    def deviation(probit: float, tested: float) -> float:
        right = normal.cdf(probit)
        return math.sqrt(right * (1 - right) / tested) / normal.pdf(probit)

    def reached(error: float) -> float:
        return round(normal.cdf((double - now) / error) - normal.cdf((half - now) / error), 3)

    known = normal.inv_cdf(curve.accuracy_at(share * images)[0])
    whole, level = deviation(now, images), deviation(known, share * images)
    return {
        "ceiling": reached(whole),
        "ceiling of the shape": reached(math.hypot(math.sqrt(1 - share) * whole, (1 - share) * level)),
    }


def extrapolate(points: Sequence[CurvePoint], images: int, truth: float) -> dict[str, Any]:
    """What the curve says of all images; without a forecast where it has too few points."""
    kept = [[point.images, round(point.accuracy, 5), round(point.error, 5)] for point in points]
    if len({point.images for point in points}) < MIN_POINTS:
        return {"points": kept, "problem": "too short"}
    return {"points": kept, "problem": forecast_curve(points).problem, **ask(points, images, truth)}


def ask(
    points: Sequence[CurvePoint],
    images: int,
    truth: float,
    *,
    prior: CurvePrior = USUAL,
    families: Sequence[str] = tuple(FAMILIES),
) -> dict[str, Any]:
    """The accuracy of all images, and the number of images for it, as the curve says."""
    found = forecast_curve(points, prior=prior, families=families)
    middle, low, high = found.accuracy_at(images, QUANTILES)
    needed, least, most = (n if math.isfinite(n) else None for n in found.images_for(truth, QUANTILES))
    return {
        "accuracy": round(middle, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "needed": needed,
        "least": least,
        "most": most,
    }


def ask_again(rows: Sequence[dict[str, Any]], **how: Any) -> list[dict[str, Any]]:
    """The rows that have a forecast, with another one."""
    answers = []
    for row in rows:
        if "accuracy" in row:
            points = [CurvePoint(stage=JOINED, images=n, accuracy=a, error=e) for n, a, e in row["points"]]
            answers.append({**row, **ask(points, row["all"], row["truth"], **how)})
    return answers


def learn_elsewhere(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the forecasts of the prior that does best on all tasks but the row's own."""
    told = [row for row in rows if "accuracy" in row]
    answers = [ask_again(told, prior=prior) for prior in PRIORS]

    def loss(asked: Sequence[dict[str, Any]], task: str) -> float:
        return statistics.mean(
            3.0 if row["needed"] is None else min(abs(math.log2(row["needed"] / row["all"])), 3.0)
            for row in asked
            if row["task"] != task
        )

    best = {task: min(answers, key=lambda asked: loss(asked, task)) for task in {row["task"] for row in told}}
    return [best[row["task"]][i] for i, row in enumerate(told)]


def near(row: dict[str, Any]) -> bool:
    return row["needed"] is not None and 0.5 <= row["needed"] / row["all"] <= 2


def holds_number(row: dict[str, Any]) -> bool:
    return (row["least"] or math.inf) <= row["all"] <= (row["most"] or math.inf)


def over_tasks(rows: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float | None:
    """Mean over tasks, each task weighing the same."""
    tasks = {row["task"] for row in rows}
    if not tasks:
        return None
    return round(statistics.mean(statistics.mean(float(of(r)) for r in rows if r["task"] == t) for t in tasks), 3)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    told = [row for row in rows if "accuracy" in row]
    sound = [row for row in told if not row["problem"]]
    counts = {"rows": len(rows), "too short": len(rows) - len(told), "not well behaved": len(told) - len(sound)}
    if not sound:
        return counts
    decidable = [row for row in sound if row["ceiling of the shape"] >= DECIDABLE]
    return {
        **counts,
        "tasks": len({row["task"] for row in sound}),
        "interval holds the truth": over_tasks(sound, lambda row: row["low"] <= row["truth"] <= row["high"]),
        "needed / true number in [0.5, 2]": over_tasks(sound, near),
        "interval of the number holds the truth": over_tasks(sound, holds_number),
        "ceiling": over_tasks(sound, lambda row: row["ceiling"]),
        "ceiling of the shape": over_tasks(sound, lambda row: row["ceiling of the shape"]),
        "decidable tasks": len({row["task"] for row in decidable}),
        "of these, needed / true number in [0.5, 2]": over_tasks(decidable, near),
        "mean error, points": round(100 * statistics.mean(row["accuracy"] - row["truth"] for row in sound), 2),
        "mean absolute error, points": round(
            100 * statistics.mean(abs(row["accuracy"] - row["truth"]) for row in sound), 2
        ),
    }


def by_share(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    elsewhere, found = learn_elsewhere(rows), dict[str, Any]()
    alone = {name: ask_again(rows, families=(name,)) for name in FAMILIES}
    for share in SHARES:

        def summarise_both(asked: Sequence[dict[str, Any]], share: float = share) -> dict[str, Any]:
            own = [row for row in asked if row["share"] == share]
            return {
                **summarise(own),
                "curves of four sizes or more": summarise([row for row in own if len(row["points"]) >= FOUR]),
            }

        found[str(share)] = {
            **summarise_both(rows),
            "prior learnt on the other tasks": summarise_both(elsewhere),
            "one family alone": {name: summarise_both(asked) for name, asked in alone.items()},
        }
    return found


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
