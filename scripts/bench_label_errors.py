"""Planted label errors: how well they are found, and in how many seconds, beside cleanlab on the same features.

    pip install cleanlab
    python scripts/make_tasks.py --out tasks
    python scripts/bench_label_errors.py --root tasks [--out benchmarks/label_errors.json]

A tenth of the training labels of each task is changed, symmetrically (to any other class) or by class (to the class
that the probe confuses it with most). All contestants get the same features, those of all stages joined, or of all but
the last, which is the widest (EfficientNet-Lite0, 96 px, from the bank, in memory), and rank the images by suspicion;
the average precision of that ranking is recorded (1: all wrong labels come first; the share of wrong labels by
chance), with the seconds it took from features to ranking.

    held_back   `find_label_errors` on the exact held-back scores of the ridge probe
    in_sample   the same on the scores of the fit to all images, at the same penalty
    cleanlab    `get_label_quality_scores` on five-fold probabilities of scikit-learn's logistic regression,
                standardised, as its
                documentation does it
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from regret.measuring import measure_features, parse_tasks, write_result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from transferkit.measure import RidgeHead, find_label_errors, fit_ridge, fitting_threads
from transferkit.records import Folds

SHARE = 0.1


@dataclass(frozen=True)
class Features:
    """Features of some stages.

    Args:
        rows: (N, D) float32.
        blocks: Stage -> its columns.
    """

    rows: np.ndarray
    blocks: Mapping[str, slice]


Rank = Callable[[Features, np.ndarray, int], np.ndarray]


def fit(features: Features, labels: np.ndarray, classes: int) -> tuple[RidgeHead, np.ndarray]:
    """The ridge probe, and its held-back scores in the order of the images."""
    folds = Folds.alone(labels)
    order = folds.order
    ordered = features.rows[order]
    with fitting_threads(len(labels)):
        head = fit_ridge(
            lambda: iter([ordered]), labels[order], features.blocks, classes=classes, folds=folds.take(order)
        )
    return head, head.held_back[np.argsort(order)]


def held_back(features: Features, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion from exact held-back scores."""
    return find_label_errors(fit(features, labels, classes)[1], labels).suspicion


def in_sample(features: Features, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion from the scores of a fit that has seen the labels."""
    head, _ = fit(features, labels, classes)
    return find_label_errors(features.rows @ head.weight.T + head.bias, labels).suspicion


def cleanlab(features: Features, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion by cleanlab."""
    from cleanlab.rank import get_label_quality_scores

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    probabilities = cross_val_predict(model, features.rows, labels, cv=5, method="predict_proba")
    return -get_label_quality_scores(labels, probabilities)


CONTESTANTS: dict[str, Rank] = {"held_back": held_back, "in_sample": in_sample, "cleanlab": cleanlab}


def plant(labels: np.ndarray, kind: str, nearest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a tenth are wrong."""
    changed = labels.copy()
    wrong = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    classes = len(nearest)
    if kind == "symmetric":
        changed[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    else:
        changed[wrong] = nearest[labels[wrong]]
    return changed


def confused_with(features: Features, labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,) the class with the highest mean held-back score on the images of each, besides itself."""
    _, scores = fit(features, labels, classes)
    means = np.stack([scores[labels == k].mean(axis=0) for k in range(classes)])
    np.fill_diagonal(means, -np.inf)
    return means.argmax(axis=1)


def measure_task(folder: Path, cache: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for every set of stages, kind of error, seed and contestant."""
    measured = measure_features(folder, cache)
    table, labels = measured.features(measured.train), measured.folds.labels
    classes, stages = int(labels.max()) + 1, list(table.blocks)
    sets = {
        name: Features(table.load(some), table.select(some)[0])
        for name, some in {"all stages": stages, "all but the last": stages[:-1]}.items()
    }
    nearest, rows = confused_with(sets["all stages"], labels, classes), []
    for kind, seed, used in product(("symmetric", "by class"), range(seeds), sets):
        given = plant(labels, kind, nearest, np.random.default_rng(seed))
        for name, rank in CONTESTANTS.items():
            start = time.perf_counter()
            suspicion = rank(sets[used], given, classes)
            seconds = time.perf_counter() - start
            precision = float(average_precision_score(given != labels, suspicion))
            row = {"task": folder.name, "images": len(labels), "stages": used, "kind": kind, "seed": seed}
            row |= {"contestant": name, "average_precision": round(precision, 4), "seconds": round(seconds, 3)}
            rows.append(row)
            print(row, flush=True)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Task, kind and stages -> contestant -> mean average precision and median seconds."""
    found: dict[str, Any] = {}
    for cell in dict.fromkeys((row["task"], row["kind"], row["stages"]) for row in rows):
        own = [row for row in rows if (row["task"], row["kind"], row["stages"]) == cell]
        found[", ".join(cell)] = {
            name: {
                "average_precision": round(
                    statistics.mean(r["average_precision"] for r in own if r["contestant"] == name), 4
                ),
                "seconds": statistics.median(r["seconds"] for r in own if r["contestant"] == name),
            }
            for name in dict.fromkeys(row["contestant"] for row in own)
        }
    return found


def main() -> None:
    chosen = parse_tasks(__doc__, tasks=["fashion", "stamps"])
    rows = [row for folder in chosen.folders for row in measure_task(folder, chosen.cache, chosen.seeds)]
    write_result("scripts/bench_label_errors.py", rows, summarise, chosen.out)


if __name__ == "__main__":
    main()
