"""Searches of hyperparameters compared: how points are drawn, and how many epochs a good one costs.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_tune.py sweep --root tasks      # points tried on many tasks: benchmarks/tune_sweep.json
    python scripts/bench_tune.py learn                   # the points a search begins with, from the sweep
    python scripts/bench_tune.py scales --root tasks     # log-uniform, linear-uniform, grid: benchmarks/tune.json
    python scripts/bench_tune.py searches --root tasks   # 200 random trials against cheaper searches: the same file
    python scripts/bench_tune.py probes --root tasks     # 100 trials of a linear probe, in seconds: the same file
    python scripts/bench_tune.py table                   # what there is so far, with intervals
    python scripts/bench_tune.py plot                    # accuracy against epochs: docs/tuning.svg

A trial trains the later stages (`few_layers`) of EfficientNet-Lite0 on 20 images per class, and is scored on a fifth of
these that is held back, as `transferkit tune` does it. The best point of a search is then trained on all 20 per class
and scored on 400 other images of the task's training folder, which no search has seen: the figure that counts. The
tasks that searches are compared on are none of those that the starting points are learnt from.

Rows are kept as they come: a run that was stopped goes on where it was. Several processes may share the work by task.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from svg import to_svg

from transferkit.api import analyze, tune
from transferkit.core.provenance import environment
from transferkit.finetune import count_steps, fit_recipe
from transferkit.options import Recipe
from transferkit.report.charts import Chart, Dots, Line, Mark, log_axis, share_axis
from transferkit.report.charts import Point as Dot
from transferkit.tuning.default_space import default_space
from transferkit.tuning.objective import HeldBackAccuracy
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.space import Choices, Point, Range, draw_points, lay_grid
from transferkit.tuning.stages import SearchStage, plan_stages
from transferkit.tuning.starts import ADVISED, starting_points
from transferkit.tuning.study import DETAILS, SLOT, Score, Search, join_study, work
from transferkit.workflow.decide import decide_session
from transferkit.workflow.session import Session, open_session

ROOT = Path(__file__).parents[1]
SWEEP, RESULT = ROOT / "benchmarks" / "tune_sweep.json", ROOT / "benchmarks" / "tune.json"
KNOWLEDGE = ROOT / "transferkit" / "knowledge" / "search_starts.json"

MODEL, STRATEGY, PER_CLASS, OTHERS = "packaged/tf_efficientnet_lite0", "few_layers", 20, 400

LEARNT_FROM = ("characters", "counting", "families", "glyphs", "hand_signs", "location", "orientation", "photo_tiles",
               "scripts", "stamps", "textures")  # fmt: skip
COMPARED_ON = {"digits": 64, "fashion": 64}
"""Task -> image size in pixels."""

WORTHWHILE = 1e-3
"""Accuracy that another starting point has to add, averaged over the tasks."""

MOST_CLASSES = 10
"""Classes of a task of the sweep; of further ones the images are left out."""

SWEEP_SIZE, SWEEP_POINTS, STARTS = 48, 20, 7
TRIALS, WHOLE, POOL, FEW, REPEATS = 9, 200, 250, 24, 10
"""Trials of a comparison of scales; of the random search; points it draws from; trials of cheaper searches."""

PICTURE, TONES = ROOT / "docs" / "tuning.svg", ("accent", "warm")

OFF = 1.0
"""Powers of ten by which the middle of a range of rates may be off the advised one: who searches knows the four that
hold the best rate, not where in them it is."""

WAYS = ("advised settings", "one epoch", "coarse to fine", "coarse to fine, warm start", f"{WHOLE} random")
"""Searches that are compared, from cheap to dear."""

FULL = SearchStage(name="full", trials=1, share=1.0, source="random")


class Task:
    """A task opened twice: 20 images per class to search on, and the same with other images to judge on.

    Args:
        folder: Class folders below `train`.
        size: Side of the input in pixels.
        work: Folder for manifests and the feature bank.
    """

    def __init__(self, folder: Path, size: int, work: Path) -> None:
        self.name, self._size, self._work = folder.name, size, work
        paths = sorted((folder / "train").rglob("*.*"))
        labels = np.array([path.relative_to(folder / "train").parts[0] for path in paths])
        order = np.random.default_rng(0).permutation(len(paths))
        names = sorted(set(labels.tolist()))[:MOST_CLASSES]
        chosen = [row for name in names for row in order[labels[order] == name][:PER_CLASS]]
        rest = [row for row in order if row not in set(chosen) and labels[row] in names][:OTHERS]
        self._rows = {
            "train": [(paths[row], labels[row]) for row in chosen],
            "val": [(paths[row], labels[row]) for row in rest],
        }
        self.session = self._open("train")
        self.decision = decide_session(self.session, self._options(0)).decision
        self._judging: Session | None = None

    def _options(self, seed: int) -> TuneOptions:
        return TuneOptions(
            image_size=self._size,
            strategy=STRATEGY,
            views=1,
            geometry="crop",
            cache=self._work / "bank",
            progress=False,
            seed=seed,
        )

    def _open(self, *splits: str) -> Session:
        file = self._work / f"{self.name}-{'-'.join(splits)}.csv"
        with file.open("w", newline="", encoding="utf-8") as written:
            rows = [(path, label, split) for split in splits for path, label in self._rows[split]]
            csv.writer(written).writerows([("path", "label", "split"), *rows])
        return open_session(MODEL, file, self._options(0), trains=True)

    def space(self) -> dict[str, Any]:
        """The default one."""
        stages = [stage.name for stage in self.session.backbone.stages]
        return default_space(lr=self.decision.lr, images=self.images, stages=stages, strategy=STRATEGY, recipe=Recipe())

    @property
    def images(self) -> int:
        """Number to search on."""
        return len(self._rows["train"])

    @property
    def epochs(self) -> int:
        """Of a full training."""
        return fit_recipe(Recipe(), self.images).epochs or 1

    def score(self, point: Point, stage: SearchStage = FULL, *, seed: int = 0, folds: int | None = 1) -> Score:
        """What a search sees."""
        folds = None if stage.is_decider else folds
        options = replace(self._options(seed), train=Recipe(folds=folds))
        return HeldBackAccuracy(self.session, options)(point, stage, lambda step, value: None)

    def judge(self, point: Point, *, seed: int) -> float:
        """Accuracy on images that no search has seen."""
        self._judging = self._judging or self._open("train", "val")
        score = HeldBackAccuracy(self._judging, self._options(seed))(point, FULL, lambda step, value: None)
        return float(score.details["accuracy"])


class Rows:
    """Rows in a JSON file, which several processes may add to."""

    def __init__(self, file: Path, **about: Any) -> None:
        self._file, self._about = file, about

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return json.loads(self._file.read_text(encoding="utf-8"))["rows"] if self._file.is_file() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values."""
        return next((row for row in self.read() if key.items() <= row.items()), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = [*self.read(), dict(row)]
            head = {"script": "scripts/bench_tune.py", "date": time.strftime("%Y-%m-%d"), **self._about,
                    "machine": environment(seed=0, device="cpu")}  # fmt: skip
            lines = ",\n".join(json.dumps(row) for row in rows)
            text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n'
            self._file.write_text(text, encoding="utf-8")
        print(json.dumps(row), flush=True)


def relative_space() -> dict[str, Any]:
    """The default space, with rates as multiples of the decision's and depth as a share."""
    return {
        "train.lr": Range(low=1 / 30, high=30, log=True),
        "train.momentum": Choices(values=(0.8, 0.9, 0.95, 0.98)),
        "train.batch_size": Choices(values=(8, 16, 32, 64)),
        "train.dropout": Range(low=0.0, high=0.5),
        "train.weight_decay": Range(low=1e-4, high=1.0, log=True),
        "unfreeze": Choices(values=(1 / 6, 1 / 3, 1 / 2, 3 / 4)),
        "train.layer_decay": Range(low=0.5, high=1.0),
        "train.schedule": Choices(values=("cosine", "linear", "constant")),
    }


def sweep(root: Path, work: Path, tasks: Sequence[str]) -> None:
    """The same points on every task."""
    rows = Rows(SWEEP)
    points = [{**ADVISED, "train.batch_size": 16}, *draw_points(relative_space(), SWEEP_POINTS - 1, seed=0)]
    for name in tasks or LEARNT_FROM:
        if all(rows.find(task=name, number=number) for number in range(SWEEP_POINTS)):
            continue
        task = Task(root / name, SWEEP_SIZE, work)
        for number, point in enumerate(points):
            if rows.find(task=name, number=number):
                continue
            lr, stages = task.decision.lr, len(task.session.backbone.stages)
            (own,) = starting_points(task.space(), lr=lr, stages=stages, known=[point])[-1:]
            score = task.score(own)
            rows.add({"task": name, "number": number, "point": point, "value": score.value})


def learn() -> None:
    """A portfolio: each point the one that leaves the least regret beside those before, averaged over the tasks."""
    rows = Rows(SWEEP).read()
    tasks = sorted({row["task"] for row in rows})
    values = np.array([[row["value"] for row in sorted((row for row in rows if row["task"] == task),
                                                       key=lambda row: row["number"])] for task in tasks])  # fmt: skip
    points = {row["number"]: row["point"] for row in rows}
    regret = values.max(axis=1, keepdims=True) - values
    chosen, left = [0], regret[:, 0]
    while len(chosen) < STARTS + 1:
        means = np.minimum(left[:, None], regret).mean(axis=0)
        if left.mean() - means.min() < WORTHWHILE:
            break
        chosen.append(int(means.argmin()))
        left = np.minimum(left, regret[:, chosen[-1]])
        print(f"{len(chosen)} points: mean regret {100 * left.mean():.2f} points, worst {100 * left.max():.2f}")
    text = {"script": "scripts/bench_tune.py", "tasks": tasks, "points": [points[number] for number in chosen[1:]]}
    KNOWLEDGE.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def scales(root: Path, work: Path, tasks: Sequence[str]) -> None:
    """Learning rate and weight decay, drawn in three ways, equally many points, around the advised rate and off it."""
    rows = Rows(RESULT)
    for name in tasks or COMPARED_ON:
        task = Task(root / name, COMPARED_ON[name], work)
        for off, repeat in itertools.product((0.0, OFF), range(REPEATS)):
            lr = task.decision.lr * 10 ** np.random.default_rng((repeat, 19)).uniform(-off, off)
            log = {"train.lr": Range(low=lr / 100, high=lr * 100, log=True),
                   "train.weight_decay": Range(low=1e-5, high=1.0, log=True)}  # fmt: skip
            linear = {key: replace(one, log=False) for key, one in log.items()}
            drawn = {
                "log-uniform": draw_points(log, TRIALS, seed=repeat),
                "linear-uniform": draw_points(linear, TRIALS, seed=repeat),
                "grid, log": lay_grid(log, TRIALS),
            }
            for way, points in drawn.items():
                key = {"kind": "scales", "off": off, "task": name, "way": way, "repeat": repeat}
                if not rows.find(**key):
                    scored = [task.score(point, seed=repeat).value for point in points]
                    best = points[int(np.argmax(scored))]
                    rows.add({**key, "middle": lr, "held_back": max(scored), "new": task.judge(best, seed=repeat),
                              "best": best})  # fmt: skip


def search(task: Task, sampler: str, trials: int, *, seed: int, starts: Sequence[Point]) -> dict[str, Any]:
    """A search as `transferkit tune` makes it; epochs are those asked for, of all folds."""
    spent = [0.0]

    def objective(point: Point, stage: SearchStage, report: Any) -> Score:
        score = task.score(point, stage, seed=seed)
        spent[0] += stage.epochs(task.epochs) * (3 if stage.is_decider else 1)
        return score

    stages = plan_stages(sampler, trials, steps=count_steps(Recipe(), task.images))
    how = Search(space=task.space(), stages=stages, seed=seed, starts=starts)
    study, begun = join_study(how, storage=None, name="bench"), time.perf_counter()
    work(study, how, objective)
    last = [one for one in study.get_trials() if one.user_attrs[SLOT] >= trials - 3]
    best = max(last, key=lambda one: one.value)
    return {"best": best.params, "epochs": spent[0], "seconds": round(time.perf_counter() - begun, 1),
            "held_back": best.user_attrs[DETAILS]["accuracy"]}  # fmt: skip


def searches(root: Path, work: Path, tasks: Sequence[str]) -> None:
    """200 random trials in full, drawn from a pool, against searches in stages."""
    rows = Rows(RESULT)
    for name in tasks or COMPARED_ON:
        task = Task(root / name, COMPARED_ON[name], work)
        starts = starting_points(
            task.space(), lr=task.decision.lr, stages=len(task.session.backbone.stages), batch_size=16
        )
        for repeat in range(REPEATS):
            key = {"kind": "searches", "task": name, "way": "advised settings", "repeat": repeat}
            if not rows.find(**key):
                rows.add({**key, "epochs": task.epochs, "best": starts[0], "new": task.judge(starts[0], seed=repeat)})
        pool(task, rows)
        for way, sampler, begin in (
            ("coarse to fine, warm start", "coarse_to_fine", starts[: FEW // 4]),
            ("one epoch", "one_epoch", []),
            ("coarse to fine", "coarse_to_fine", []),
        ):
            for repeat in range(REPEATS):
                key = {"kind": "searches", "task": name, "way": way, "repeat": repeat}
                if not rows.find(**key):
                    found = search(task, sampler, FEW, seed=repeat, starts=begin)
                    rows.add({**key, **found, "new": task.judge(found["best"], seed=repeat)})


def pool(task: Task, rows: Rows) -> None:
    """Points tried in full once, of which each random search draws 200."""
    points = draw_points(task.space(), POOL, seed=1000)
    for number, point in enumerate(points):
        if not rows.find(kind="pool", task=task.name, number=number):
            rows.add({"kind": "pool", "task": task.name, "number": number, "value": task.score(point).value})
    values = np.array([row["value"] for row in rows.read() if row["kind"] == "pool" and row["task"] == task.name])
    for repeat in range(REPEATS):
        key = {"kind": "searches", "task": task.name, "way": f"{WHOLE} random", "repeat": repeat}
        if not rows.find(**key):
            drawn = np.random.default_rng(repeat).choice(POOL, WHOLE, replace=False)
            best = points[int(drawn[values[drawn].argmax()])]
            rows.add({**key, "epochs": WHOLE * task.epochs, "best": best, "held_back": float(values[drawn].max()),
                      "new": task.judge(best, seed=repeat)})  # fmt: skip


def probes(root: Path, work: Path, tasks: Sequence[str]) -> None:
    """Seconds of 100 trials of a linear probe, features in the bank; alone on the machine."""
    rows, given = Rows(RESULT), {"image_size": 96, "views": 1, "geometry": "crop", "cache": work, "progress": False}
    for name in tasks or ("hand_signs",):
        data = str(root / name)
        images = analyze(MODEL, data, **given).data.train_images
        for workers in (1, 2):
            begun = time.perf_counter()
            found = tune(MODEL, data, strategy="linear_probe", sampler="random", trials=100, workers=workers, **given)
            seconds = round(time.perf_counter() - begun, 1)
            best = dict(found.best.values) if found.best else None
            rows.add({"kind": "probes", "task": name, "images": images, "workers": workers, "seconds": seconds,
                      "trials": len(found.trials), "best": best})  # fmt: skip


def table() -> None:
    """Means over the repeats, and paired differences to the first way with 95 % intervals."""
    rows = Rows(RESULT).read()
    compared = (("scales", 0.0, "log-uniform"), ("scales", OFF, "log-uniform"), ("searches", None, f"{WHOLE} random"))
    for kind, off, first in compared:
        own = [row for row in rows if (row["kind"], row.get("off")) == (kind, off)]
        for task in dict.fromkeys(row["task"] for row in own):
            of_task = [row for row in own if row["task"] == task]
            base = {row["repeat"]: row["new"] for row in of_task if row["way"] == first}
            for way in dict.fromkeys(row["way"] for row in of_task):
                these = [row for row in of_task if row["way"] == way]
                mean = 100 * statistics.mean(row["new"] for row in these)
                line = f"{kind}{'' if off is None else f' {off:g}'} {task} {way}: {mean:.1f} ({len(these)})"
                gaps = [100 * (row["new"] - base[row["repeat"]]) for row in these if row["repeat"] in base]
                if way != first and len(gaps) > 1:
                    mean, half = mean_and_half(gaps)
                    line += f", to {first} {mean:+.1f} +- {half:.1f}"
                if kind == "searches":
                    line += f", epochs {statistics.mean(row['epochs'] for row in these):.0f}"
                print(line)


def plot() -> None:
    """Accuracy on new images against the epochs of a search, a line for each task: docs/tuning.svg."""
    rows = [row for row in Rows(RESULT).read() if row["kind"] == "searches"]
    marks, all_points = list[Mark](), list[Dot]()
    for task, tone in zip(COMPARED_ON, TONES, strict=True):
        points = []
        for way in WAYS:
            these = [row for row in rows if (row["task"], row["way"]) == (task, way)]
            if these:
                mean, half = mean_and_half([row["new"] for row in these])
                epochs = statistics.mean(row["epochs"] for row in these)
                title = f"{task}, {way}: {100 * mean:.1f} +- {100 * half:.1f} %"
                points.append(Dot(x=epochs, y=mean, low=mean - half, high=mean + half, title=title))
        points.sort(key=lambda one: one.x)
        all_points += points
        marks += [Line(points=points, tone=tone, weight=1, label=task), Dots(points=points, tone=tone)]
    chart = Chart(
        title="Accuracy on new images of the best point of each search against its epochs",
        x=log_axis([one.x for one in all_points], name="Epochs of all trainings of the search (log scale)"),
        y=share_axis([end for one in all_points for end in (one.low, one.high)], name="Accuracy on new images"),
        marks=marks,
        across=480,
        down=300,
    )
    PICTURE.write_text(to_svg(chart), encoding="utf-8")


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return statistics.mean(values), 0.0
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sweep", "learn", "scales", "searches", "probes", "table", "plot"))
    parser.add_argument("--root", type=Path, default=Path("tasks"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "bench_tune"))
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=[])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.verb in ("learn", "table", "plot"):
        {"learn": learn, "table": table, "plot": plot}[given.verb]()
        return
    if given.verb != "probes":
        torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    runs = {"sweep": sweep, "scales": scales, "searches": searches, "probes": probes}
    runs[given.verb](given.root, given.work, given.tasks)


if __name__ == "__main__":
    main()
