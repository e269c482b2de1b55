"""Few labelled images: accuracy of few-shot methods by task, and what a class costs that is added without training.

    python scripts/make_tasks.py --out tasks [--hand-signs hand_signs.tar]
    python scripts/bench_scarce.py run --root tasks --work DIR     # hours on a busy machine; DIR keeps the features
    python scripts/bench_scarce.py add --root tasks --work DIR     # classes added to a classifier of the others
    python scripts/bench_scarce.py table                           # tables from benchmarks/scarce.json; seconds

Both resume if interrupted: benchmarks/scarce.json is rewritten after each row. Episodes are of 5 classes with 1 or 5
shots of each and 75 queries: 15 of each class, or class shares drawn from a Dirichlet with parameter 2 (as in the
paper on alpha-TIM) or 1. Features are whitened by what the OTHER tasks teach: the tested task and its kin (tasks of the
same source) take no part. The constants of the methods were chosen on the tasks of `CHOSEN_ON`, which are not tested
on, each whitened by the others of them.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.provenance import environment
from transferkit.data import open_data
from transferkit.features import FeatureBank
from transferkit.measure import fit_ridge
from transferkit.measure.few_shot import FEW_SHOT, FeatureSpace, Scatter, draw_episodes, late_parts, within_scatter
from transferkit.measure.few_shot.new_class import fit_new_row
from transferkit.nn import Backbone
from transferkit.records import TOP, Folds
from transferkit.scarce.few_shot import FewShotRows, answer_episodes, halved_stages, score_methods
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import load_backbone
from transferkit.workflow.views import ask_views, fixed_views

FOUND = Path(__file__).parents[1] / "benchmarks" / "scarce.json"
MODEL, SIZE, POOLING = "packaged/tf_efficientnet_lite0", 96, "avg+max"
VIEWS = ("crop", "squash", "zoom", "wide")
TESTED_ON = ("glyphs", "families", "scripts", "fashion", "hand_signs", "stamps")
CHOSEN_ON = ("digits", "textures", "photo_tiles", "counting", "location", "orientation", "photo_regions")
KIN = ({"glyphs", "families", "scripts"}, {"photo_tiles", "photo_regions"})
"""Tasks of one source, which teach each other nothing here."""

PER_CLASS, PER_TASK = 60, 800
"""Images of a class and of a task, at most; of both splits, as nothing is fitted to either."""

WAYS, QUERIES, EPISODES = 5, 15, 600
SETTINGS = [(shots, imbalance) for shots in (1, 5) for imbalance in (None, 2.0, 1.0)]
ADDED, DRAWS = (1, 5), 6


class Rows:
    """Results in one file, which several processes may add to."""

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return json.loads(FOUND.read_text(encoding="utf-8"))["rows"] if FOUND.is_file() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values."""
        return next((row for row in self.read() if key.items() <= row.items()), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        with FOUND.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = [*self.read(), dict(row)]
            head = {
                "script": "scripts/bench_scarce.py",
                "date": time.strftime("%Y-%m-%d"),
                "machine": environment(seed=0, device="cpu"),
                "model": f"{MODEL} at {SIZE} px",
            }
            lines = ",\n".join(json.dumps(row) for row in rows)
            FOUND.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
        print(json.dumps(row), flush=True)


class Task:
    """Features and labels of a task's images, from the bank.

    Args:
        folder: Of the task.
        backbone: Computes them.
        work: Folder of the bank.
    """

    def __init__(self, folder: Path, backbone: Backbone, work: Path) -> None:
        data = open_data(folder, progress=False, cache=work)
        rng, each = np.random.default_rng(0), min(PER_CLASS, PER_TASK // data.summary.num_classes)
        drawn = [rng.permutation(np.flatnonzero(data.labels == one))[:each] for one in range(data.summary.num_classes)]
        rows = np.sort(np.concatenate(drawn))
        own, bank = backbone.spec.preprocessing, FeatureBank(work)
        tables = {
            name: read_features(
                backbone,
                data,
                bank=bank,
                pooling=POOLING,
                preprocessing=fixed_views(ask_views(views=name), own, data),
                among=rows,
                progress=False,
            ).table
            for name in VIEWS
        }
        self.blocks = tables["crop"].blocks
        loaded = {name: table.load(list(self.blocks)) for name, table in tables.items()}
        self.crop = loaded["crop"]
        self.features = np.mean(list(loaded.values()), axis=0)
        self.folds = data.folds.take(rows)
        self.halved = halved_stages(backbone, POOLING)
        self.parts = late_parts(self.blocks, halved=self.halved)
        self.last = slice(self.blocks[TOP].start, (self.blocks[TOP].start + self.blocks[TOP].stop) // 2)


class Tasks:
    """Tasks and what each teaches the others, opened once."""

    def __init__(self, root: Path, work: Path) -> None:
        self._root, self._work = root, work
        self._backbone = load_backbone(MODEL, image_size=SIZE)
        self._tasks: dict[str, Task] = {}
        self._scatters: dict[str, Scatter] = {}

    def __getitem__(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = Task(self._root / name, self._backbone, self._work)
        return self._tasks[name]

    def scatter(self, name: str) -> Scatter:
        """Spread within classes of one task."""
        if name not in self._scatters:
            task = self[name]
            self._scatters[name] = within_scatter(task.features, task.folds.labels, task.parts)
        return self._scatters[name]

    def others(self, name: str) -> list[str]:
        """Tasks that a task may learn from."""
        pool = CHOSEN_ON if name in CHOSEN_ON else (*TESTED_ON, *CHOSEN_ON)
        kin = next((one for one in KIN if name in one), {name})
        return [other for other in pool if other not in kin]

    def rows(self, name: str) -> dict[str, FewShotRows]:
        """Features of a task as each kind of run has them."""
        task, others = self[name], self.others(name)
        space = FeatureSpace.of(task.parts, Scatter.mean_of([self.scatter(other) for other in others]))
        bare = FeatureSpace.of(task.parts)

        def centre(features: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
            return np.mean([features[other][:, task.last].mean(axis=0) for other in others], axis=0)

        crop = centre({other: self[other].crop for other in others})
        mean = centre({other: self[other].features for other in others})
        joined, plain = space.whiten(task.features), bare.whiten(task.features)
        return {
            "taught": FewShotRows(task.crop[:, task.last], joined, space, task.folds, crop),
            "untaught": FewShotRows(task.features[:, task.last], plain, bare, task.folds, mean),
        }


def run(root: Path, work: Path, only: Sequence[str], episodes: int) -> None:
    """All methods on all tasks."""
    found, tasks = Rows(), Tasks(root, work)
    for name in only or TESTED_ON:
        missing = [
            (shots, imbalance)
            for shots, imbalance in SETTINGS
            if not found.find(part="episodes", task=name, shots=shots, imbalance=imbalance)
        ]
        if not missing:
            continue
        rows = tasks.rows(name)
        for shots, imbalance in missing:
            asked = {"ways": WAYS, "shots": shots, "queries": QUERIES, "episodes": episodes, "imbalance": imbalance}
            drawn = list(draw_episodes(tasks[name].folds, **asked))
            hits, spent = answer_episodes(rows["taught"], drawn, list(FEW_SHOT))
            # The last layer in four views, and all stages without a prior: which part brings how much.
            others, other_spent = answer_episodes(rows["untaught"], drawn, ["last_layer", "nearest_mean", "soft_means"])
            scores = {one.method: _plain(one) for one in score_methods(hits, spent)}
            for one in score_methods(others, other_spent, base=hits["last_layer"]):
                what = "4 views" if one.method == "last_layer" else "no prior"
                scores[f"{one.method}, {what}"] = _plain(one)
            found.add({"part": "episodes", "task": name, "shots": shots, "imbalance": imbalance,
                       "episodes": episodes, "scores": scores})  # fmt: skip


def _plain(one: Any) -> dict[str, float]:
    return {
        "accuracy": round(one.accuracy, 4),
        "half": round(one.accuracy - one.low, 4),
        "gain": round(one.gain, 4),
        "gain_half": round(one.gain - one.gain_low, 4),
        "ms": round(1000 * one.seconds, 2),
    }


def add(root: Path, work: Path, only: Sequence[str]) -> None:
    """Classes added, one at a time, to a ridge classifier of all others; both halves of the images are disjoint."""
    found, tasks = Rows(), Tasks(root, work)
    for name in only or TESTED_ON:
        if all(found.find(part="add", task=name, shots=shots) for shots in ADDED):
            continue
        task = tasks[name]
        for shots in ADDED:
            results = [_add_one(task, draw, shots) for draw in range(DRAWS)]
            means = {key: round(float(np.mean([one[key] for one in results])), 4) for key in results[0]}
            found.add({"part": "add", "task": name, "shots": shots, "draws": DRAWS, **means})


def _add_one(task: Task, seed: int, shots: int) -> dict[str, float]:
    """One class of a task, drawn by the seed, added from so many shots."""
    rng = np.random.default_rng(seed)
    half = task.folds.assign_splits(2, seed=seed)
    labels, joined = task.folds.labels, task.features
    new = int(rng.integers(labels.max() + 1))
    number = np.where(labels == new, labels.max(), labels - (labels > new))
    train, test = (half == 0) & (labels != new), half == 1
    folds = Folds.alone(number[train])
    known = joined[train]
    head = fit_ridge(lambda: iter([known]), folds.labels, task.blocks, classes=int(labels.max()), folds=folds)
    held = np.zeros((len(known), int(labels.max())), dtype=np.float32)
    held[head.rows] = head.held_back
    chosen = rng.permutation(np.flatnonzero((half == 0) & (labels == new)))[:shots]
    row = fit_new_row(joined[chosen], known, folds, head.weight, head.bias, old_logits=held, seed=seed)
    logits = joined[test] @ head.weight.T + head.bias
    score = joined[test] @ row.weight + row.bias
    old, taken = labels[test] != new, score > logits.max(axis=1)
    right = logits.argmax(axis=1) == number[test]
    return {
        "before": float(right[old].mean()),
        "after": float((right & ~taken)[old].mean()),
        "recall": float(taken[~old].mean()),
        "expected_recall": row.expected_recall,
    }


def table() -> None:
    """What docs/scarce.md shows."""
    rows = Rows().read()
    episodes = [row for row in rows if row["part"] == "episodes"]
    names = [name for name in TESTED_ON if any(row["task"] == name for row in episodes)]
    for shots, imbalance in SETTINGS:
        here = {row["task"]: row for row in episodes if (row["shots"], row["imbalance"]) == (shots, imbalance)}
        if not here:
            continue
        kind = "balanced queries" if imbalance is None else f"Dirichlet({imbalance:g}) queries"
        some = next(iter(here.values()))
        print(f"\n{shots} shot{'s' if shots > 1 else ''}, {kind}, {some['episodes']} episodes a task\n")
        shown = [name for name in names if name in here]
        print("| method | " + " | ".join(shown) + " | mean gain | worst |\n|-|" + "-|" * (len(shown) + 2))
        for method in some["scores"]:
            cells = [here[name]["scores"][method] for name in shown]
            gains = [100 * cell["gain"] for cell in cells]
            figures = [f"{100 * cell['accuracy']:.1f} ± {100 * cell['half']:.1f}" for cell in cells]
            print(f"| {method} | {' | '.join(figures)} | {np.mean(gains):+.1f} | {min(gains):+.1f} |")
    _print_added([row for row in rows if row["part"] == "add"])


def _print_added(rows: Iterable[Mapping[str, Any]]) -> None:
    print("\n| task, images of the new class | old classes before | after | new class recognised | expected |")
    print("|-|-|-|-|-|")
    for row in rows:
        cells = (f"{100 * row[key]:.1f}" for key in ("before", "after", "recall", "expected_recall"))
        print(f"| {row['task']}, {row['shots']} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "add", "table"))
    parser.add_argument("--root", type=Path, default=Path("tasks"), help="made by scripts/make_tasks.py")
    parser.add_argument("--work", type=Path, default=Path("scarce_work"), help="keeps the features")
    parser.add_argument("--only", nargs="*", default=[], help="tasks")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    given = parser.parse_args()
    if given.part == "table":
        table()
    elif given.part == "run":
        run(given.root, given.work, given.only, given.episodes)
    else:
        add(given.root, given.work, given.only)


if __name__ == "__main__":
    main()
