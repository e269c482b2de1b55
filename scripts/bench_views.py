"""Gain of geometries and views: test accuracy of probes and of fine-tuned networks, and the time per view.

    python scripts/make_tasks.py --out tasks [--hand-signs hand_signs.tar]
    python scripts/bench_views.py run --tasks tasks       # probes: one geometry, averages, views=auto
    python scripts/bench_views.py tune --tasks tasks      # a fine-tuned network's gain from views at prediction: hours
    python scripts/bench_views.py score                   # the tables, from benchmarks/views.json; seconds

`run` and `tune` resume if interrupted: benchmarks/views.json is rewritten after each cell. A cell is a task
at one number of images per class and one draw of them, as in scripts/bench_regret.py. In it the head that `adapt` would
keep is fitted to the features of each view or average, on all stages joined and on the selected features, and
tested on the task's own test images. "auto" is the choice of views=auto by the training images alone; it includes
flips only if its test on held-back images found them safe. Gains are over the checkpoint's own crop, in points;
means are over tasks, within a task over its cells. Seconds per view are those of the pass that filled the bank, so
they are known only if `run` begins with an empty one (--cache DIR).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from regret.fine_tuning import OPTIONS
from regret.paths import MODEL, SIZE, write
from regret.running import levels_of, shrink

from transferkit.core.provenance import environment
from transferkit.data import Data, open_data
from transferkit.decision import starting_rate
from transferkit.features import FeatureBank, FeatureTable
from transferkit.finetune import fine_tune, fit_recipe
from transferkit.nn import Backbone, Classifier, logits_of
from transferkit.options import Recipe
from transferkit.probe import choose_head, fit_heads
from transferkit.records import JOINED, SELECTED, TOP, Preprocessing
from transferkit.strategies import STRATEGIES, PlanSettings
from transferkit.workflow.finetune_run import begin_run
from transferkit.workflow.measure import measure_features, read_features
from transferkit.workflow.session import Session, load_backbone
from transferkit.workflow.views import ask_views, choose_views, fixed_views

FOUND = Path(__file__).parents[1] / "benchmarks" / "views.json"
POOLING = "avg+max"
WAYS = (
    "crop", "full", "squash", "pad", "zoom", "wide", "crop+mirror", "squash+mirror", "crop+squash", "crop+squash+zoom",
    "crop+squash+zoom+wide", "crop+squash+pad", "crop+squash+pad+mirror",
)  # fmt: skip
LEVELS = (5, 20)
BUDGETS = (None, 60.0, 10.0, 2.0)
STRATEGY = "few_layers"


def seen_as(way: str, own: Preprocessing, data: Data) -> Preprocessing:
    """The preprocessing of one variant; geometries that give the same images are run once."""
    return fixed_views(ask_views(views=way), own, data)


def time_passes(backbone: Backbone, data: Data, read: Callable[..., Any]) -> dict[str, float]:
    """View -> seconds per image, of the views whose features were not in the bank."""
    own, seconds = backbone.spec.preprocessing, {}
    for view in seen_as("crop+full+squash+pad+zoom+wide+mirror", own, data).each_view:
        start = time.perf_counter()
        done = read(backbone, data, preprocessing=view)
        if done.computed == len(data):
            name = f"{view.crop_mode} {view.crop_pct:g}{' mirrored' if view.mirrored else ''}"
            seconds[name] = round((time.perf_counter() - start) / done.computed, 6)
    return seconds


def fit(table: FeatureTable, data: Data, stage: str) -> dict[str, float]:
    """Held-back and test accuracy of the head that `adapt` keeps."""
    plan = STRATEGIES["linear_probe"](PlanSettings(strategy="linear_probe", stage=stage), list(table.blocks))
    train, test = data.indices("train"), data.indices("test")
    folds = data.folds.take(train)
    fits = fit_heads(plan, table.take(train), folds.labels, classes=data.summary.num_classes, folds=folds)
    head = choose_head(fits)
    named = (table.take(test).load(plan.stages) @ head.weight.T + head.bias).argmax(axis=1)
    return {
        "held_back": round(float(head.accuracy), 4),
        "test": round(float((named == data.labels[test]).mean()), 5),
    }


def run_cell(
    backbone: Backbone, data: Data, read: Callable[..., Any], pace: float, known: Mapping[str, Any], *, first: bool
) -> dict[str, Any]:
    """Accuracies of every view and average on one draw of the training images, and of the automatic choices.

    Args:
        backbone, data, read: What runs over what.
        pace: Seconds per image of a view.
        known: What this cell has already; ways in it are not run again.
        first: Whether it is the first draw of its level: choices under a budget are made in that one.
    """
    own, ways = backbone.spec.preprocessing, dict(known.get("ways", {}))
    tables = {seen_as(way, own, data): ways[way] for way in WAYS if way in ways}
    for way in (way for way in WAYS if way not in ways):
        seen = seen_as(way, own, data)
        if seen not in tables:
            table = read(backbone, data, preprocessing=seen).table
            tables[seen] = {stage: fit(table, data, stage) for stage in (JOINED, SELECTED)}
        ways[way] = tables[seen]
    chosen = {str(budget): choose(backbone, data, read, pace, budget) for budget in (BUDGETS if first else (None,))}
    auto = [what.pop("fitted") for what in chosen.values()][BUDGETS.index(None)]
    return {
        "images": len(data.indices("train")),
        "ways": {**ways, "auto": auto},
        "auto": chosen,
        "geometry": known.get("geometry") or geometry(backbone, data, read, pace),
    }


def choose(
    backbone: Backbone, data: Data, read: Callable[..., Any], pace: float, budget: float | None
) -> dict[str, Any]:
    """The choice of views=auto at this budget, and its accuracy without one."""
    found = _choose(backbone, data, read, pace, budget, ask_views())
    fitted = {stage: fit(found.table, data, stage) for stage in (JOINED, SELECTED)} if budget is None else {}
    assert found.comparison is not None
    return {"views": list(found.comparison.views), "geometry": found.comparison.geometry, "fitted": fitted}


def geometry(backbone: Backbone, data: Data, read: Callable[..., Any], pace: float) -> dict[str, Any]:
    """The choice of geometry=auto with views=1, and its accuracy."""
    found = _choose(backbone, data, read, pace, None, ask_views(views=1))
    assert found.comparison is not None
    return {
        "chosen": found.comparison.geometry,
        **{stage: fit(found.table, data, stage) for stage in (JOINED, SELECTED)},
    }


def _choose(
    backbone: Backbone, data: Data, read: Callable[..., Any], pace: float, budget: float | None, asked: Any
) -> Any:
    own = backbone.spec.preprocessing
    return choose_views(
        asked,
        own,
        data,
        partial(read, backbone, data),
        among=np.arange(len(data)),
        first=read(backbone, data, preprocessing=own),
        first_seconds=pace * len(data),
        image_seconds=pace,
        budget=budget,
    )


def opened(path: Path) -> dict[str, Any]:
    """The results so far."""
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known
    return {
        "script": "scripts/bench_views.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "model": f"{MODEL} at {SIZE} px",
        "tasks": {},
    }


def run(tasks: Path, cache: str | None, only: str | None, levels: Sequence[int], out: Path) -> None:
    """Run the missing cells, saving after each."""
    backbone, found = load_backbone(MODEL, image_size=SIZE), opened(out)
    read = partial(read_features, bank=FeatureBank(cache), pooling=POOLING, progress=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    for folder in chosen_tasks(tasks, only):
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))["content"]
        task = found["tasks"].get(folder.name)
        data = open_data(folder, progress=False)
        if task is None or task["content"] != content:
            seconds = time_passes(backbone, data, read)
            task = found["tasks"][folder.name] = {"content": content, "seconds per image": seconds, "cells": {}}
        pace = statistics.median(task["seconds per image"].values()) if task["seconds per image"] else 0.005
        for level, number in levels_of(data.labels[data.indices("train")]):
            known = task["cells"].get(f"{level} {number}", {})
            if level not in levels or {*WAYS, "auto", "geometry"} <= {*known.get("ways", ()), *known}:
                continue
            small = shrink(data, level, number)
            task["cells"][f"{level} {number}"] = run_cell(backbone, small, read, pace, known, first=number == 0)
            write(out, found)
            print(folder.name, level, number, figures(task["cells"][f"{level} {number}"]), flush=True)


def figures(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{way} {100 * cell['ways'][way][SELECTED]['test']:.1f}" for way in cell["ways"])


def chosen_tasks(tasks: Path, only: str | None) -> list[Path]:
    """Folders of the tasks, those named in `only` if any are."""
    names = None if only is None else only.split(",")
    return [path.parent for path in sorted(tasks.glob("*/task.json")) if names is None or path.parent.name in names]


# ---- Fine-tuned networks ---------------------------------------------------------------------------------------------


def tune(tasks: Path, cache: str | None, only: str | None, levels: Sequence[int], out: Path, strategy: str) -> None:
    """A network fine-tuned on one view of the first draw of each level, predicting with one view and with all."""
    backbone, found, bank = load_backbone(MODEL, image_size=SIZE), opened(out), FeatureBank(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    for folder in chosen_tasks(tasks, only):
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))["content"]
        task = found["tasks"].setdefault(folder.name, {"content": content, "seconds per image": {}, "cells": {}})
        data = open_data(folder, progress=False)
        for level, number in levels_of(data.labels[data.indices("train")]):
            tuned = task.setdefault("tuned", {})
            if number or level not in levels or f"{level} {strategy}" in tuned:
                continue
            tuned[f"{level} {strategy}"] = tune_cell(backbone, shrink(data, level, 0), bank, strategy)
            write(out, found)
            print(folder.name, level, tuned[f"{level} {strategy}"], flush=True)


def tune_cell(backbone: Backbone, data: Data, bank: FeatureBank, strategy: str) -> dict[str, Any]:
    """Test accuracy of the network with one view and with those of views=auto, and its weight in the kept blend."""
    found = measure_features(backbone, data, OPTIONS, bank=bank, views=ask_views())
    seen = backbone.with_preprocessing(found.evidence.backbone.preprocessing)
    recipe = Recipe()
    size = fit_recipe(recipe, len(found.train)).batch_size or 1
    start = starting_rate(seen.spec, optimizer=recipe.optimizer, batch_size=size)
    settings = PlanSettings(strategy=strategy, stage=TOP, lr=start.lr)
    began = time.process_time()
    session = Session(backbone=seen, data=data, measured=found, options=OPTIONS, bank=bank)
    run = begin_run(session, STRATEGIES[strategy](settings, [stage.name for stage in seen.stages]), OPTIONS)
    judged = run.judged
    # The network itself, whether or not the probe did better on held-back images.
    alone = replace(judged, verdict=replace(judged.verdict, kept=judged.verdict.candidates[-1]))
    network = fine_tune(judged.task, run.images.folds, run.runner, judged=alone).model
    return {
        "views": [view.name for view in seen.spec.preprocessing.views],
        "kept": judged.verdict.kept.weight,
        **with_and_without(network, data),
        "seconds": round(time.process_time() - began, 1),
    }


def with_and_without(model: Classifier, data: Data) -> dict[str, float]:
    """Test accuracy with one view, and with all."""
    preprocessing = model.preprocessing
    return {
        "one view": test_accuracy(model, data, preprocessing.primary),
        "all views": test_accuracy(model, data, preprocessing),
    }


def test_accuracy(model: Classifier, data: Data, preprocessing: Preprocessing) -> float:
    test = data.indices("test")
    pictures = (data.pixels(int(index), preprocessing) for index in test)
    named = logits_of(model, pictures, device=torch.device("cpu")).numpy().argmax(axis=1)
    return round(float((named == data.labels[test]).mean()), 5)


# ---- Tables ----------------------------------------------------------------------------------------------------------


def score(out: Path) -> None:
    """Add the tables to the results, and print them."""
    found = opened(out)
    tasks = {name: task for name, task in found["tasks"].items() if task["cells"]}
    found["tables"] = {
        "gain of probes": {
            stage: {way: gains(tasks, way, stage) for way in (*WAYS, "auto", "geometry")}
            for stage in (JOINED, SELECTED)
        },
        "seconds per image and view": {
            name: task["seconds per image"] for name, task in tasks.items() if task["seconds per image"]
        },
        "views=auto": {
            name: {key: cell["auto"] for key, cell in task["cells"].items()} for name, task in tasks.items()
        },
        "gain of networks": tuned_gains(found["tasks"].values()),
    }
    write(out, found)
    for stage, table in found["tables"]["gain of probes"].items():
        print(f"\n{stage}: gain over the checkpoint's own crop, points, mean over {len(tasks)} tasks")
        for way, row in table.items():
            print(f"  {way:24} {row['mean']:+.2f}, worst task {row['worst']:+.2f} ({row['worst task']})")
    print("\nnetworks, prediction with all views against one:", found["tables"]["gain of networks"])


def gains(tasks: Mapping[str, Any], way: str, stage: str) -> dict[str, Any]:
    """Mean over tasks, and the worst task."""
    each = {}
    for name, task in tasks.items():
        cells = task["cells"].values()
        pairs = [((cell["geometry"] if way == "geometry" else cell["ways"][way])[stage]["test"],
                  cell["ways"]["crop"][stage]["test"]) for cell in cells]  # fmt: skip
        each[name] = 100 * statistics.mean(after - before for after, before in pairs)
    worst = min(each, key=lambda name: each[name])
    return {
        "mean": round(statistics.mean(each.values()), 3),
        "worst": round(each[worst], 3),
        "worst task": worst,
        "tasks": {name: round(gain, 3) for name, gain in each.items()},
    }


def tuned_gains(tasks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Gain of averaging views at prediction in points, mean over the fine-tuned cells."""
    cells = [cell for task in tasks for cell in task.get("tuned", {}).values()]
    if not cells:
        return {"cells": 0}
    each = [100 * (cell["all views"] - cell["one view"]) for cell in cells]
    return {"cells": len(cells), "mean": round(statistics.mean(each), 3), "worst": round(min(each), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tune", "score"))
    parser.add_argument("--tasks", type=Path, help="folder made by scripts/make_tasks.py")
    parser.add_argument("--cache", help="folder of the feature bank")
    parser.add_argument("--only", help="names of tasks, comma-separated")
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), help="images per class")
    parser.add_argument("--strategy", default=STRATEGY, help="fine-tuning strategy of tune")
    parser.add_argument("--out", type=Path, default=FOUND)
    options = parser.parse_args()
    if options.what == "score":
        score(options.out)
        return
    if options.tasks is None:
        parser.error("--tasks is required: pass the folder made by scripts/make_tasks.py.")
    if options.what == "run":
        run(options.tasks, options.cache, options.only, options.levels, options.out)
    else:
        tune(options.tasks, options.cache, options.only, options.levels, options.out, options.strategy)


if __name__ == "__main__":
    main()
