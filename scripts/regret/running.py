"""Every linear head on every task: `bench_regret.py run`."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from regret.paths import MODEL, SCRIPT, SIZE, folder_of, load_model, write
from transferkit.core.progress import track
from transferkit.core.provenance import environment
from transferkit.core.serialization import to_json
from transferkit.data import Data, open_data
from transferkit.features import FeatureBank
from transferkit.options import PassOptions
from transferkit.probe import HeadFit, choose_head, fit_heads
from transferkit.records import JOINED, SELECTED, Evidence
from transferkit.strategies import STRATEGIES, PlanSettings
from transferkit.workflow.measure import Measurement, measure_features

LEVELS = {5: 3, 20: 3, 100: 2, 1000: 1}
"""Images per class at most -> draws of them."""


MOST_IMAGES = 2000


GROWTH = 1.3
"""A level counts if it has at least this many times the images of the previous one: small tasks run out of images."""


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of up to `per_class` images of each class, and no more than `MOST_IMAGES` in all."""
    rng = np.random.default_rng(seed)
    per_class = min(per_class, MOST_IMAGES // len(np.unique(labels)))
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def shrink(data: Data, per_class: int, seed: int) -> Data:
    """The same data with at most that many training images per class, drawn by `draw`; the test images stay."""
    train = data.indices("train")
    chosen = train[draw(data.labels[train], per_class, seed)]
    small = pick(data, np.sort(np.concatenate([chosen, data.indices("test")])))
    classes = data.summary.num_classes
    counts = {
        split: tuple(np.bincount(small.labels[small.splits == split], minlength=classes).tolist())
        for split in ("train", "test")
    }
    of_train = small.splits == "train"
    groups = [len(np.unique(small.groups[of_train & (small.labels == label)])) for label in range(classes)]
    small.summary = replace(data.summary, counts=counts, train_groups=tuple(groups))
    return small


def pick(data: Data, kept: np.ndarray) -> Data:
    """A subset of images, in this order; the summary is that of all."""
    chosen = copy.copy(data)
    chosen.items = tuple(data.items[index] for index in kept)
    chosen.labels, chosen.splits, chosen.content_ids = data.labels[kept], data.splits[kept], data.content_ids[kept]
    chosen.groups, chosen._rows = data.groups[kept], np.asarray(data._rows)[kept]
    return chosen


def levels_of(labels: np.ndarray) -> list[tuple[int, int]]:
    """(images per class, draw) of a task's cells."""
    cells, before = [], 0.0
    for level, draws in LEVELS.items():
        images = len(draw(labels, level, 0))
        if images < GROWTH * before:
            continue
        before = images
        cells += [(level, number) for number in range(draws if images < len(labels) else 1)]
    return cells


def representations(stages: Sequence[str]) -> tuple[str, ...]:
    """The representations that a linear head may read."""
    return (*stages, JOINED, SELECTED)


def fit(looked: Measurement, data: Data, stages: Sequence[str], stage: str, head: str) -> tuple[list[HeadFit], float]:
    """Heads on one representation, and the seconds they took (selecting features is timed in the evidence)."""
    settings = PlanSettings(strategy="linear_probe", stage=stage)
    start = time.perf_counter()
    fits = fit_heads(
        STRATEGIES["linear_probe"](settings, stages),
        looked.table.take(looked.train),
        looked.labels,
        classes=data.summary.num_classes,
        head=head,
        selection=looked.selection,
        folds=looked.folds,
    )
    return fits, time.perf_counter() - start


def rounded(value: float) -> float | None:
    """Rounded to four places; None if no image could be held back."""
    return round(value, 4) if math.isfinite(value) else None


def fit_all(looked: Measurement, data: Data, stages: Sequence[str], stage: str) -> dict[str, dict[str, Any]]:
    """Name of each strategy on one representation -> held-back and test accuracy, seconds, whether `adapt` keeps it."""
    _, alone = fit(looked, data, stages, stage, "ridge")
    fits, together = fit(looked, data, stages, stage, "auto")
    kept = choose_head(fits)
    seconds = {"ridge": alone, "logistic": together - alone, "average": together}
    test = data.indices("test")
    table = looked.table.take(test)
    _, columns = table.select(stages if stage in (JOINED, SELECTED) else [stage])
    features = np.concatenate(list(table.chunks(columns)))
    return {
        f"{stage} {found.name}": {
            "held_back": rounded(found.accuracy),
            "held_back_images": found.held_back,
            "log_loss": rounded(found.log_loss),
            "test": round(float(((features @ found.weight.T + found.bias).argmax(1) == data.labels[test]).mean()), 4),
            "seconds": round(max(seconds[found.name], 0.0), 2),
            "kept": found is kept,
        }
        for found in fits
    }


def lean(evidence: Evidence) -> dict[str, Any]:
    """The part of the evidence that decisions use."""
    return {
        "probes": [
            {key: round(value, 5) if isinstance(value, float) else value for key, value in to_json(score).items()}
            for score in evidence.probes
        ],
        "similarity": evidence.similarity,
        "seconds": {phase: round(spent, 2) for phase, spent in evidence.seconds.items()},
    }


def run_cell(backbone: Any, data: Data, bank: FeatureBank, level: int, number: int) -> dict[str, Any]:
    """Every linear head on one draw of a task's images."""
    small = shrink(data, level, number)
    looked = measure_features(backbone, small, PassOptions(progress=False), bank=bank)
    stages = [stage.name for stage in backbone.stages]
    strategies: dict[str, dict[str, Any]] = {}
    for stage in representations(stages):
        strategies |= fit_all(looked, small, stages, stage)
    return {
        "level": level,
        "draw": number,
        "images": len(looked.train),
        "train_groups": small.summary.train_groups,
        "evidence": lean(looked.evidence),
        "strategies": strategies,
    }


def run(tasks: Path, cache: str | None, only: str | None, model: str = MODEL) -> None:
    """Run all missing cells of a backbone, one file per task."""
    backbone, bank, folder = load_model(model), FeatureBank(cache), folder_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.parent.name for path in tasks.glob("*/task.json"))
    for name in [name for name in names if only is None or name in only.split(",")]:
        described = json.loads((tasks / name / "task.json").read_text(encoding="utf-8"))
        path = folder / f"{name}.json"
        data = open_data(tasks / name, progress=False)
        done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if done is None or done["content"] != described["content"]:
            done = {
                "script": SCRIPT,
                "date": date.today().isoformat(),
                "machine": environment(seed=0, device="cpu"),
                "task": name,
                "kind": described["kind"],
                "copy_of": described["copy_of"],
                "content": described["content"],
                "model": f"{model} at {SIZE} px",
                "classes": data.summary.num_classes,
                "stages": [stage.name for stage in backbone.stages],
                "test_images": len(data.indices("test")),
                "cells": [],
            }
        have = {(cell["level"], cell["draw"]) for cell in done["cells"]}
        missing = [cell for cell in levels_of(data.labels[data.indices("train")]) if cell not in have]
        for level, number in track(missing, name):
            done["cells"].append(run_cell(backbone, data, bank, level, number))
            write(path, done)
            print(
                name,
                level,
                number,
                f"{sum(s['seconds'] for s in done['cells'][-1]['strategies'].values()):.0f} s",
                flush=True,
            )
