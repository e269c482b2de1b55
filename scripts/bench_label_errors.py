"""Planted label errors: how well they are found, and in how many seconds, beside cleanlab on the same features.

    pip install cleanlab
    python scripts/make_tasks.py --out tasks
    python scripts/bench_label_errors.py --root tasks [--out benchmarks/label_errors.json]

A tenth of the training labels of each task is changed, symmetrically (to any other class) or by class (to the class
that the probe confuses it with most). All contestants get the same features, those of all stages joined
(EfficientNet-Lite0, 96 px, from the bank), and rank the images by suspicion; the average precision of that ranking is
recorded (1: all wrong labels come first; the share of wrong labels by chance), with the seconds it took from features
to ranking.

    held_back   `find_label_errors` on the exact held-back scores of the ridge probe
    in_sample   the same on the scores of the fit to all images, at the same penalty
    cleanlab    `get_label_quality_scores` on five-fold probabilities of scikit-learn's logistic regression,
                standardised, as its
                documentation does it
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from regret.measuring import measure_features, parse_tasks, write_result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from transferkit.features import FeatureTable
from transferkit.measure import RidgeHead, find_label_errors, fit_ridge, fitting_threads
from transferkit.records import Folds

SHARE = 0.1
Rank = Callable[[FeatureTable, np.ndarray, int], np.ndarray]


def fit(table: FeatureTable, labels: np.ndarray, classes: int) -> tuple[RidgeHead, np.ndarray]:
    """The ridge probe, and its held-back scores in the order of the images."""
    folds = Folds.alone(labels)
    order = folds.order
    with fitting_threads(len(labels)):
        head = fit_ridge(
            table.take(order).chunks, labels[order], table.blocks, classes=classes, folds=folds.take(order)
        )
    return head, head.held_back[np.argsort(order)]


def held_back(table: FeatureTable, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion from exact held-back scores."""
    return find_label_errors(fit(table, labels, classes)[1], labels).suspicion


def in_sample(table: FeatureTable, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion from the scores of a fit that has seen the labels."""
    head, _ = fit(table, labels, classes)
    scores = np.concatenate([chunk @ head.weight.T + head.bias for chunk in table.chunks()])
    return find_label_errors(scores, labels).suspicion


def cleanlab(table: FeatureTable, labels: np.ndarray, classes: int) -> np.ndarray:
    """Suspicion by cleanlab."""
    from cleanlab.rank import get_label_quality_scores

    rows = np.concatenate(list(table.chunks()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    probabilities = cross_val_predict(model, rows, labels, cv=5, method="predict_proba")
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


def confused_with(table: FeatureTable, labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,) the class with the highest mean held-back score on the images of each, besides itself."""
    _, scores = fit(table, labels, classes)
    means = np.stack([scores[labels == k].mean(axis=0) for k in range(classes)])
    np.fill_diagonal(means, -np.inf)
    return means.argmax(axis=1)


def measure_task(folder: Path, cache: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for every kind of error, seed and contestant."""
    measured = measure_features(folder, cache)
    table, labels = measured.features(measured.train), measured.folds.labels
    classes = int(labels.max()) + 1
    nearest, rows = confused_with(table, labels, classes), []
    for kind in ("symmetric", "by class"):
        for seed in range(seeds):
            given = plant(labels, kind, nearest, np.random.default_rng(seed))
            for name, rank in CONTESTANTS.items():
                start = time.perf_counter()
                suspicion = rank(table, given, classes)
                seconds = time.perf_counter() - start
                precision = float(average_precision_score(given != labels, suspicion))
                row = {"task": folder.name, "images": len(labels), "kind": kind, "seed": seed, "contestant": name}
                rows.append({**row, "average_precision": round(precision, 4), "seconds": round(seconds, 3)})
                print(rows[-1], flush=True)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Task and kind -> contestant -> mean average precision and median seconds."""
    found: dict[str, Any] = {}
    for task, kind in dict.fromkeys((row["task"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["task"], row["kind"]) == (task, kind)]
        found[f"{task}, {kind}"] = {
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
