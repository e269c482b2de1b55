"""Unlabelled images beside few labelled ones: gain of a linear probe, and whether the held-back check picks right.

    python scripts/make_tasks.py --out tasks [--hand-signs hand_signs.tar]
    python scripts/bench_unlabelled.py run --root tasks      # rows as they come: benchmarks/unlabelled.json
    python scripts/bench_unlabelled.py networks --root tasks # fixmatch and dann against lp_ft and the probe
    python scripts/bench_unlabelled.py table                 # gains by task and number of labels

In each row 5 or 20 images per class of a task's training folder keep their labels, and the other ones are unlabelled;
both are a draw. A ridge probe on the selected features of all stages of EfficientNet-Lite0 (96 px) is fitted to the
labelled ones alone, with pseudo-labels and with label spreading; `measure_unlabelled` chooses among the three on
labelled images that are held back, as `adapt(unlabelled=)` does. All are scored on the task's own test images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import transferkit as tk
from transferkit.core.provenance import environment
from transferkit.measure import select_features
from transferkit.measure.scaled_rows import scale_rows
from transferkit.measure.unlabelled import UNLABELLED_METHODS, learn_from_unlabelled
from transferkit.options import PassOptions
from transferkit.records import Folds
from transferkit.scarce.unlabelled import measure_unlabelled
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import fit_to_images, open_backbone, open_bank, open_images

RESULT = Path(__file__).parents[1] / "benchmarks" / "unlabelled.json"
MODEL, SIZE, DRAWS, LEVELS = "packaged/tf_efficientnet_lite0", 96, 2, (5, 20)
TASKS = ("hand_signs", "stamps", "textures", "orientation", "digits", "fashion", "glyphs")
EPOCHS = 8
NETWORK_RUNS = [
    *((task, task, images, strategy) for images in LEVELS for task in ("stamps", "hand_signs")
      for strategy in ("linear_probe", "linear_probe+unlabelled", "lp_ft", "fixmatch")),
    *(("photo_tiles", "photo_tiles_grey", None, strategy) for strategy in ("linear_probe", "lp_ft", "dann")),
]  # fmt: skip
"""Task, task of the test images, labels per class (None: all), strategy."""
MOST_TRAIN, MOST_TEST = 1500, 800
"""Images of a task that are run; a random sample of more."""


class SparseTask:
    """A task's features and labels.

    Args:
        root: Folder of the task.
        work: Folder of the feature bank.
    """

    def __init__(self, root: Path, work: Path) -> None:
        options = PassOptions(image_size=SIZE, cache=work, progress=False)
        backbone, data = open_backbone(MODEL, options), open_images(root, options)
        fit_to_images(backbone, data)
        rng = np.random.default_rng(0)
        train, test = (rng.permutation(data.indices(split))[:most] for split, most in
                       (("train", MOST_TRAIN), ("test", MOST_TEST)))  # fmt: skip
        rows = np.concatenate([train, test])
        table = read_features(backbone, data, bank=open_bank(options), pooling="avg+max", among=rows, progress=False)
        self.blocks = table.table.blocks
        self.features = table.table.load(list(self.blocks))
        self.labels, self.train = data.labels[rows], len(train)
        self.groups = data.groups[rows]
        self.classes = data.summary.num_classes

    def score(self, images: int, draw: int) -> dict[str, Any]:
        """Test accuracies of a draw of labelled images, and what held-back accuracy chose."""
        rng, own = np.random.default_rng(draw), self.labels[: self.train]
        order = rng.permutation(self.train)
        labelled = np.concatenate([order[own[order] == label][:images] for label in range(self.classes)])
        rows = np.concatenate([labelled, np.setdiff1d(order, labelled), np.arange(self.train, len(self.labels))])
        features, labels, known = self.features[rows], self.labels[rows], len(labelled)
        folds = Folds(labels[:known], self.groups[rows[:known]], np.arange(known))
        start = time.perf_counter()
        gain = measure_unlabelled(
            features[: self.train], self.blocks, folds, classes=self.classes, selected=True, seed=draw
        )
        seconds = time.perf_counter() - start
        reached = self._test(features, labels, folds)
        return {
            **{name or "plain": round(value, 4) for name, value in reached.items()},
            "chosen": gain.best or "plain",
            "held_back": {"plain": round(gain.plain, 4), **{name: round(v, 4) for name, v in gain.gains.items()}},
            "error": {name: round(v, 4) for name, v in gain.errors.items()},
            "seconds": round(seconds, 1),
        }

    def _test(self, features: NDArray[np.float32], labels: NDArray[np.int64], folds: Folds) -> dict[str | None, float]:
        known = len(folds)
        seen = features[: self.train]
        weights = np.ones(self.train)
        scaled = scale_rows(lambda: [seen], self.blocks, np.arange(self.train), weights=weights)
        chosen = select_features(
            lambda: [features[:known]], labels[:known], self.blocks, classes=self.classes, folds=folds
        )
        values = ((features - scaled.mean) * scaled.scale * chosen.emphasis).astype(np.float32)
        products = values @ values.T
        truth, found = labels[self.train :], dict[str | None, float]()
        for method in (None, *UNLABELLED_METHODS):
            probe = learn_from_unlabelled(
                products, np.arange(known), labels[:known], np.arange(known, self.train), classes=self.classes,
                method=method,
            )  # fmt: skip
            found[method] = float((probe.scores(products[self.train :]).argmax(axis=1) == truth).mean())
        return found


def run(root: Path, work: Path, tasks: list[str]) -> None:
    """All rows that are missing."""
    for name in tasks:
        missing = [key for key in _keys(name) if not any(key.items() <= row.items() for row in read_rows())]
        if not missing:
            continue
        task = SparseTask(root / name, work)
        for key in missing:
            row = {**key, **task.score(key["images"], key["draw"])}
            print(json.dumps(row), flush=True)
            write_rows([*read_rows(), row])


def _keys(task: str) -> list[dict[str, Any]]:
    return [{"task": task, "images": images, "draw": draw} for draw in range(DRAWS) for images in LEVELS]


def read_rows(kind: str = "rows") -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text(encoding="utf-8")).get(kind, []) if RESULT.is_file() else []


def run_networks(root: Path, work: Path) -> None:
    """Rows of networks that are missing: what `adapt` returns, on the target's test images."""
    for source, target, images, strategy in NETWORK_RUNS:
        key = {"task": source, "target": target, "images": images, "strategy": strategy}
        if any(key.items() <= row.items() for row in read_rows("networks")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = {**key, **_run_network(root, work, Path(folder), key)}
        print(json.dumps(row), flush=True)
        write_rows(read_rows(), [*read_rows("networks"), row])


def _run_network(root: Path, work: Path, folder: Path, key: dict[str, Any]) -> dict[str, Any]:
    rng, unlabelled = np.random.default_rng(0), []
    for kind in sorted((root / key["task"] / "train").iterdir()):
        files = sorted(kind.iterdir())
        order, kept = rng.permutation(len(files)), key["images"] or len(files)
        (folder / "train" / kind.name).mkdir(parents=True)
        for position in order[:kept]:
            (folder / "train" / kind.name / files[position].name).symlink_to(files[position].resolve())
        unlabelled += [files[position] for position in order[kept:]]
    (folder / "test").symlink_to((root / key["target"] / "test").resolve())
    if key["target"] != key["task"]:
        unlabelled = [file for file in sorted((root / key["target"] / "train").rglob("*")) if file.is_file()]
    unlabelled = [unlabelled[position] for position in rng.permutation(len(unlabelled))[:MOST_TRAIN]]
    uses = key["strategy"] not in ("lp_ft", "linear_probe")
    start = time.perf_counter()
    result = tk.adapt(
        MODEL, folder, strategy=key["strategy"].split("+")[0], unlabelled=unlabelled if uses else None, image_size=64,
        views=1, geometry="crop", cache=work, progress=False,
        train=None if key["strategy"].startswith("linear") else {"epochs": EPOCHS, "folds": 2},
    )  # fmt: skip
    training, test = result.record.training, result.metrics["test"].accuracy
    held_back = {} if training is None else {
        **{one.name: round(one.accuracy, 4) for one in training.candidates if one.name != "average"},
        "weight": training.kept.weight,
    }  # fmt: skip
    seconds = round(time.perf_counter() - start, 1)
    return {"unlabelled": len(unlabelled) if uses else 0, "test": round(test, 4), **held_back, "seconds": seconds}


def write_rows(rows: list[dict[str, Any]], networks: list[dict[str, Any]] | None = None) -> None:
    head = {
        "script": "scripts/bench_unlabelled.py",
        "date": time.strftime("%Y-%m-%d"),
        "model": f"{MODEL} at {SIZE} px, selected features of all stages",
        "machine": environment(seed=0, device="cpu"),
    }
    kinds = {"rows": rows, "networks": read_rows("networks") if networks is None else networks}
    lists = [f' "{kind}": [\n' + ",\n".join(map(json.dumps, some)) + "\n]" for kind, some in kinds.items()]
    RESULT.write_text(json.dumps(head, indent=1)[:-2] + ",\n" + ",\n".join(lists) + "\n}\n", encoding="utf-8")


def table_lines() -> Iterator[str]:
    """Gains in points over the plain probe, in Markdown; the last lines are the mean and the worst."""
    yield "| task | labels per class | plain | pseudo-labels | label spreading | as chosen |"
    yield "|-|-|-|-|-|-|"
    rows, gains = read_rows(), []
    for task in dict.fromkeys(row["task"] for row in rows):
        for images in LEVELS:
            own = [row for row in rows if row["task"] == task and row["images"] == images]
            if not own:
                continue
            gained = [[100 * (row[name] - row["plain"]) for row in own]
                      for name in ("pseudo_labels", "label_spreading")]  # fmt: skip
            chosen = [100 * (row[row["chosen"]] - row["plain"]) for row in own]
            gains += chosen
            plain = 100 * np.mean([row["plain"] for row in own])
            cells = [f"{np.mean(one):+.1f}" for one in (*gained, chosen)]
            yield f"| {task} | {images} | {plain:.1f} | {' | '.join(cells)} |"
    if gains:
        yield f"| mean over {len(gains)} rows | | | | | {np.mean(gains):+.2f} |"
        yield f"| worst row | | | | | {min(gains):+.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "networks", "table"))
    parser.add_argument("--root", type=Path, help="the tasks")
    parser.add_argument("--work", type=Path, default=Path("bench_unlabelled"), help="folder of the feature bank")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, comma-separated")
    options = parser.parse_args()
    if options.command != "table" and options.root is None:
        parser.error(f"{options.command} needs --root TASKS")
    if options.command == "networks":
        run_networks(options.root, options.work)
    elif options.command == "run":
        run(options.root, options.work, options.tasks.split(","))
    else:
        print("\n".join(table_lines()))


if __name__ == "__main__":
    main()
