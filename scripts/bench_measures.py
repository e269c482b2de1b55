"""How well measures of transferability rank stages and backbones by their test accuracy.

    python scripts/make_tasks.py --out TASKS
    python scripts/bench_measures.py --tasks TASKS [--cache DIR] [--workers 2] [--out benchmarks/measures.json]

For each task, n images per class and draw: every measure scores the training subset of every candidate, a candidate
being a backbone and one of its stages or all of them joined; the ground truth is the accuracy on the task's test images
of a ridge probe fitted on the same subset, and of a logistic one at n = 20 where that is quick. Results per cell:
Kendall's tau weighted towards the top (scipy's hyperbolic weights), and regret, the accuracy of the best candidate
minus that of the measure's top-ranked one.

Two rows do not use the task: the accuracy published with the backbone, and a candidate's mean accuracy over all
other tasks. A measure that is not better than these and k-NN is of no use.

Estimate: 30 candidates x 9 measures on up to 1,000 images; the largest is an eigendecomposition of 1,000 x 1,000,
0.2 s on one core. 19 tasks take about 15 minutes on two idle cores once the bank holds the features. Seconds are CPU
seconds on one thread, so that a busy machine does not change them. Finished tasks are kept in --work: a second run
resumes from there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import weightedtau

from transferkit import load_backbone
from transferkit.core.progress import track
from transferkit.core.provenance import environment
from transferkit.data import Data, open_data
from transferkit.features import FeatureBank, FeatureTable
from transferkit.measure import MEASURES, bootstrap_ranks, fit_ridge, ridge_paths
from transferkit.measure.ridge import principal_coordinates
from transferkit.nn import Backbone
from transferkit.records import JOINED, TOP
from transferkit.workflow.measure import read_features

MODELS = tuple(f"packaged/tf_efficientnet_lite{size}" for size in (0, 1, 2))
IMAGE_SIZE = 96
POOLING = "avg+max"
PER_CLASS = {5: 3, 20: 2, 100: 1}
"""Images per class -> draws: more with few images, where results vary more."""

MAX_IMAGES = 1000
LOGISTIC_AT = 20
LOGISTIC_STRENGTH = 30.0
LOGISTIC_IMAGES = 400
"""Tasks of many classes are left out of the logistic check: its cost grows with images times classes."""

SEED = 0
RESAMPLES = 5000

Scores = dict[str, float]
"""Candidate -> number."""


class Cell(NamedTuple):
    """One training subset of one task."""

    task: str
    per_class: int
    draw: int

    @property
    def key(self) -> str:
        return f"{self.task}/{self.per_class}/{self.draw}"


class Split(NamedTuple):
    """One subset of one task on one backbone: (N, D) and (T, D) features of all stages, concatenated."""

    backbone: Backbone
    blocks: Mapping[str, slice]
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


# ---- one cell --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=3)
def open_model(model: str) -> Backbone:
    return load_backbone(model, image_size=IMAGE_SIZE)


@lru_cache(maxsize=1)
def open_task(root: str, cache: str) -> tuple[Data, dict[str, FeatureTable]]:
    data = open_data(root, progress=False)
    bank = FeatureBank(cache, limit=2**40)
    tables = {
        model: read_features(open_model(model), data, bank=bank, pooling=POOLING, progress=False).table
        for model in MODELS
    }
    return data, tables


def draw_subset(data: Data, cell: Cell) -> np.ndarray:
    """Indices of n training images per class, fewer where there are no more, `MAX_IMAGES` in all."""
    rng = np.random.default_rng([SEED, cell.per_class, cell.draw])
    train = data.indices("train")
    each = min(cell.per_class, per_class_at_most(data.summary.num_classes))
    parts = [rng.permutation(train[data.labels[train] == label])[:each] for label in range(data.summary.num_classes)]
    return np.sort(np.concatenate(parts))


def scale_jointly(features: np.ndarray, blocks: Mapping[str, slice]) -> np.ndarray:
    """Features as scaled for the joined probe: unit variance per feature, then total variance 1 per stage."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    for block in blocks.values():
        varies = deviation[block] > 1e-6 * deviation[block].max()
        centred[:, block] *= np.where(varies, 1 / np.where(varies, deviation[block], 1), 0) / np.sqrt(varies.sum())
    return centred


def select(split: Split, stage: str) -> tuple[np.ndarray, np.ndarray, dict[str, slice]]:
    """Training features, test features and blocks of one candidate."""
    if stage == JOINED:
        return split.train, split.test, dict(split.blocks)
    block = split.blocks[stage]
    return split.train[:, block], split.test[:, block], {stage: slice(0, block.stop - block.start)}


def true_accuracy(split: Split, stage: str) -> float:
    train, test, blocks = select(split, stage)
    classes = int(split.train_labels.max()) + 1
    head = fit_ridge(lambda: [train], split.train_labels, blocks, classes=classes)
    return float(((test @ head.weight.T + head.bias).argmax(axis=1) == split.test_labels).mean())


def logistic_accuracy(split: Split, stage: str) -> float:
    from sklearn.linear_model import LogisticRegression

    train, test, blocks = select(split, stage)
    coordinates = principal_coordinates(lambda: [train], len(train), blocks)
    model = LogisticRegression(C=LOGISTIC_STRENGTH, max_iter=1000, tol=1e-3)
    model.fit(coordinates.values, split.train_labels)
    return float(model.score((test - coordinates.mean) @ coordinates.basis, split.test_labels))


def joined_path(split: Split) -> np.ndarray:
    """(N,) whether the joined probe classifies each training image correctly when it is left out."""
    classes = int(split.train_labels.max()) + 1
    path = ridge_paths(lambda: [split.train], split.train_labels, split.blocks, classes=classes)[JOINED]
    return path.right[path.best]


def score(name: str, split: Split, stage: str) -> float:
    """Score of a candidate by a measure."""
    function, labels = MEASURES[name].function, split.train_labels
    if MEASURES[name].needs == "source_probabilities":
        average = split.train[:, split.blocks[TOP]][:, : split.backbone.stages[-1].channels]
        head = split.backbone.head
        assert head is not None
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        return function(softmax((average @ weight.T + bias).astype(np.float64), axis=1), labels)
    if stage != JOINED:
        return function(select(split, stage)[0], labels)
    if name == "press":
        return float(joined_path(split).mean())
    return function(scale_jointly(split.train, split.blocks), labels)


def run_task(cells: Sequence[Cell], root: str, cache: str) -> list[dict[str, Any]]:
    warnings.simplefilter("error")
    return [run_cell(cell, root, cache) for cell in cells]


def run_cell(cell: Cell, root: str, cache: str) -> dict[str, Any]:
    """Scores, truths and seconds of all candidates of one cell."""
    data, tables = open_task(root, cache)
    chosen, test = draw_subset(data, cell), data.indices("test")
    scores: dict[str, Scores] = {name: {} for name in MEASURES}
    seconds: dict[str, Scores] = {name: {} for name in MEASURES}
    truth: Scores = {}
    logistic: Scores = {}
    hits = []
    for model, table in tables.items():
        backbone = open_model(model)
        stages = [stage.name for stage in backbone.stages]
        split = Split(
            backbone,
            table.blocks,
            table.take(chosen).load(stages),
            data.labels[chosen],
            table.take(test).load(stages),
            data.labels[test],
        )
        hits.append(joined_path(split))
        for stage in (*stages, JOINED):
            candidate = f"{model.rpartition('_')[2]} {stage}"
            truth[candidate] = true_accuracy(split, stage)
            if cell.per_class == LOGISTIC_AT and len(chosen) <= LOGISTIC_IMAGES:
                logistic[candidate] = logistic_accuracy(split, stage)
            for name, measure in MEASURES.items():
                if measure.needs == "source_probabilities" and stage != TOP:
                    continue
                start = time.process_time()
                scores[name][candidate] = score(name, split, stage)
                seconds[name][candidate] = time.process_time() - start
    found = bootstrap_ranks(np.stack(hits))
    return {
        "key": cell.key,
        "images": len(chosen),
        "classes": data.summary.num_classes,
        "test": len(test),
        "truth": truth,
        "logistic": logistic,
        "scores": scores,
        "seconds": seconds,
        "rank": {"low": found.low.tolist(), "high": found.high.tolist(), "best": found.best.tolist()},
    }


# ---- all cells -------------------------------------------------------------------------------------------------------


def list_cells(tasks: Path) -> Iterator[Cell]:
    """Every subset that differs from a smaller one."""
    for root in sorted(folder.parent for folder in tasks.glob("*/train")):
        counts = [len(list(folder.iterdir())) for folder in (root / "train").iterdir()]
        sizes = sorted(PER_CLASS)
        for size, smaller in zip(sizes, [0, *sizes], strict=False):
            if min(max(counts), per_class_at_most(len(counts))) > smaller:
                yield from (Cell(root.name, size, draw) for draw in range(PER_CLASS[size]))


def per_class_at_most(classes: int) -> int:
    return max(2, MAX_IMAGES // classes)


def read_lines(work: Path) -> dict[str, dict[str, Any]]:
    """Finished cells, without an incomplete last line."""
    found = {}
    for line in work.read_text(encoding="utf-8").splitlines() if work.exists() else []:
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[cell["key"]] = cell
    return found


def run_all(cells: Sequence[Cell], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    done = read_lines(arguments.work)
    waiting = [cell for cell in cells if cell.key not in done]
    # Workers are new processes and read these when they import numpy: two share the machine, and seconds are per
    # thread.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool, arguments.work.open("a") as log:
        by_name = {
            task: [cell for cell in waiting if cell.task == task] for task in dict.fromkeys(c.task for c in waiting)
        }
        futures = [
            pool.submit(run_task, group, str(arguments.tasks / task), str(arguments.cache))
            for task, group in by_name.items()
        ]
        for future in track(as_completed(futures), "measuring", total=len(futures)):
            for result in future.result():
                done[result["key"]] = result
                log.write(json.dumps(result) + "\n")
            log.flush()
    return {cell.key: done[cell.key] for cell in cells}


# ---- results ---------------------------------------------------------------------------------------------------------


def tau(scores: Sequence[float], truth: Sequence[float]) -> float:
    """Weighted tau in [-1, 1]; 0 for an uninformative order."""
    if len(set(scores)) == 1 or len(set(truth)) == 1:
        return 0.0
    value = float(weightedtau(scores, truth).statistic)
    return value if math.isfinite(value) else 0.0


def regret(scores: Sequence[float], truth: Sequence[float]) -> float:
    """Accuracy of the best minus that of the top-ranked, in points; ties at the top count by their mean."""
    favourite = np.asarray(scores) == max(scores)
    return float(100 * (max(truth) - np.asarray(truth)[favourite].mean()))


def other_tasks(cells: Mapping[str, Mapping[str, Any]], cell: Mapping[str, Any], truth: str = "truth") -> Scores:
    """Mean accuracy of each candidate over the cells of all other tasks: a prior without any image of this one."""
    task = cell["key"].split("/")[0]
    others = [other[truth] for key, other in cells.items() if key.split("/")[0] != task and other[truth]]
    return {name: float(np.mean([other[name] for other in others])) for name in cell["truth"]}


def published() -> Scores:
    return {model.rpartition("_")[2]: open_model(model).spec.published_accuracy or 0.0 for model in MODELS}


def rankings(cells: Mapping[str, Mapping[str, Any]], cell: Mapping[str, Any]) -> Iterator[tuple[str, str, Scores]]:
    """(question, row, candidate -> score): the score of each row of the table in this cell.

    "stages": all 30 candidates. "backbones": the three, judged by their joined probes.
    """
    if len({key.split("/")[0] for key in cells}) > 1:
        prior = other_tasks(cells, cell)
        yield "stages", "prior: other tasks", prior
        yield "backbones", "prior: other tasks", only(prior, JOINED)
    yield "backbones", "prior: published accuracy", published()
    for name, scores in cell["scores"].items():
        if MEASURES[name].needs == "features":
            yield "stages", name, scores
            yield "backbones", f"{name}, joined", only(scores, JOINED)
        yield "backbones", f"{name}, top", only(scores, TOP)


def only(scores: Scores, stage: str) -> Scores:
    return {name.split()[0]: value for name, value in scores.items() if name.split()[1] == stage}


def judge(cells: Mapping[str, Mapping[str, Any]], truth: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """question -> row -> cell -> {tau, regret}."""
    told: dict[str, dict[str, dict[str, dict[str, float]]]] = {"stages": {}, "backbones": {}}
    for key, cell in cells.items():
        if not cell[truth]:
            continue
        for question, row, scores in rankings(cells, cell):
            real = cell[truth] if question == "stages" else only(cell[truth], JOINED)
            names = list(real)
            one, other = [scores[name] for name in names], [real[name] for name in names]
            told[question].setdefault(row, {})[key] = {"tau": tau(one, other), "regret": regret(one, other)}
    return told


def by_task(per_cell: Mapping[str, Mapping[str, float]], what: str, keep: Callable[[str], bool]) -> dict[str, float]:
    """Task -> mean over its sizes of the mean over draws: tasks have equal weight."""
    sizes: dict[str, dict[str, list[float]]] = {}
    for key, values in per_cell.items():
        if keep(key):
            task, size, _ = key.split("/")
            sizes.setdefault(task, {}).setdefault(size, []).append(values[what])
    return {task: float(np.mean([np.mean(draws) for draws in found.values()])) for task, found in sizes.items()}


def interval(values: Sequence[float]) -> list[float]:
    """95 % percentile interval of the mean over tasks; the same tasks are drawn for every row."""
    array = np.asarray(values)
    drawn = np.random.default_rng(SEED).integers(0, len(array), (RESAMPLES, len(array)))
    return np.quantile(array[drawn].mean(axis=1), [0.025, 0.975]).round(3).tolist()


def summarise(told: Mapping[str, Mapping[str, Any]], keep: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """question -> row -> mean tau and regret over tasks, with intervals, also of the difference to k-NN."""
    summary: dict[str, dict[str, Any]] = {}
    for question, rows in told.items():
        reference = "knn" if question == "stages" else "knn, joined"
        against = {what: by_task(rows[reference], what, keep) for what in ("tau", "regret")}
        for row, per_cell in rows.items():
            line: dict[str, Any] = {}
            for what in ("tau", "regret"):
                tasks = by_task(per_cell, what, keep)
                line[what] = round(float(np.mean(list(tasks.values()))), 3)
                line[f"{what} interval"] = interval(list(tasks.values()))
                line[f"{what} minus k-NN"] = interval([tasks[task] - against[what][task] for task in tasks])
            summary.setdefault(question, {})[row] = line
    return summary


def coverage(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Whether the intervals of `transferkit rank` contain the rank on test images."""
    held, wide, sure, right = [], [], [], []
    for cell in cells.values():
        real = np.array(list(only(cell["truth"], JOINED).values()))
        least, most = 1 + (real[:, None] < real).sum(axis=1), (real[:, None] <= real).sum(axis=1)
        low, high, best = (np.array(cell["rank"][name]) for name in ("low", "high", "best"))
        held.append(float(((low <= most) & (least <= high)).mean()))
        wide.append(float((high - low + 1).mean()))
        sure.append(float(best.max()))
        right.append(float((real == real.max())[best.argmax()]))
    return {
        "share of intervals that hold the rank on test images": round(float(np.mean(held)), 3),
        "mean number of ranks in an interval": round(float(np.mean(wide)), 3),
        "mean chance given to the favourite": round(float(np.mean(sure)), 3),
        "share of favourites that are best on test images": round(float(np.mean(right)), 3),
    }


def seconds_at(cells: Mapping[str, Mapping[str, Any]], stage: str) -> dict[str, float]:
    """Measure -> median CPU seconds over backbones and the cells with 500 images or more."""
    large = [cell for cell in cells.values() if cell["images"] >= MAX_IMAGES // 2] or list(cells.values())
    found = {}
    for name in MEASURES:
        taken = [
            s for cell in large for candidate, s in cell["seconds"][name].items() if candidate.endswith(f" {stage}")
        ]
        if taken:
            found[name] = round(float(np.median(taken)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="feature bank; default: the user's")
    parser.add_argument("--work", type=Path, default=Path("bench_measures.jsonl"), help="finished cells")
    parser.add_argument("--only", help="names of tasks, comma-separated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.cache = FeatureBank(arguments.cache).folder
    wanted = arguments.only.split(",") if arguments.only else None
    cells = run_all([cell for cell in list_cells(arguments.tasks) if not wanted or cell.task in wanted], arguments)
    told = judge(cells, "truth")
    sizes = {str(size): (lambda key, size=size: key.split("/")[1] == str(size)) for size in PER_CLASS}
    results = {
        "backbones": MODELS,
        "image_size": IMAGE_SIZE,
        "pooling": POOLING,
        "tasks": {key: {name: cells[key][name] for name in ("images", "classes", "test")} for key in cells},
        "all sizes": summarise(told, lambda key: True),
        "by images per class": {
            size: summarise(told, keep) for size, keep in sizes.items() if any(keep(key) for key in cells)
        },
        "logistic probe as truth": summarise(judge(cells, "logistic"), lambda key: True),
        "seconds, top": seconds_at(cells, TOP),
        "seconds, joined": seconds_at(cells, JOINED),
        "intervals of ranks": {
            "all sizes": coverage(cells),
            **{
                size: coverage({key: cell for key, cell in cells.items() if keep(key)})
                for size, keep in sizes.items()
                if any(keep(key) for key in cells)
            },
        },
        "cells": {
            question: {
                row: {key: [round(v["tau"], 3), round(v["regret"], 2)] for key, v in per_cell.items()}
                for row, per_cell in rows.items()
            }
            for question, rows in told.items()
        },
    }
    kept = {
        "script": "scripts/bench_measures.py",
        "date": str(date.today()),
        "machine": environment(seed=SEED, device="cpu"),
        "results": results,
    }
    for question in ("stages", "backbones"):
        print(f"\n{question}")
        for row, line in sorted(results["all sizes"][question].items(), key=lambda item: -item[1]["tau"]):
            print(f"  {row:28} tau {line['tau']:6.3f} {line['tau interval']}  regret {line['regret']:6.2f}")
    print(results["intervals of ranks"], results["seconds, top"], sep="\n")
    if arguments.out is not None:
        part = arguments.out.with_suffix(".part")
        part.write_text(json.dumps(kept, separators=(",", ":")), encoding="utf-8")
        part.replace(arguments.out)


if __name__ == "__main__":
    main()
