"""Zero-shot classes from attributes: accuracy on seen and unseen combinations, with and without the penalty.

    python scripts/make_tasks.py --out tasks --only combinations
    python scripts/bench_zero_shot.py run --root tasks     # rows as they come: benchmarks/zero_shot.json
    python scripts/bench_zero_shot.py table                # means over the draws, with intervals

The 96 classes of the task are six letters in 16 styles (bold, italic, serif, mono); the table has these four attributes
and one for each letter. A draw makes some combinations unseen: none of their images is fitted to, and nothing is chosen
on them. Everything that is chosen (model, penalties, penalty on seen classes) is chosen with seen combinations turned
unseen. Accuracy is the mean over classes on the task's test images, among all 96 classes. EfficientNet-Lite0 at 96 px,
all stages joined.

The table "pairs" has the products of two attributes as well, as a richer description would.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from regret_tasks.text import combination_table
from scipy import stats

from transferkit.core.provenance import environment
from transferkit.features import FeatureTable
from transferkit.measure.attributes import fit_attributes, select_attribute_model
from transferkit.measure.ridge import principal_coordinates
from transferkit.measure.seen_unseen import DomainAnswers, score_domains
from transferkit.options import PassOptions
from transferkit.records import Folds
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import fit_to_images, open_backbone, open_bank, open_images

RESULT = Path(__file__).parents[1] / "benchmarks" / "zero_shot.json"
MODEL, TASK, SIZE, DRAWS = "packaged/tf_efficientnet_lite0", "combinations", 96, 12

SETTINGS = (
    # share of unseen classes, images per class, table, method
    (0.2, 3, "attributes", "auto"),
    (0.5, 3, "attributes", "auto"),
    (0.8, 3, "attributes", "auto"),
    (0.2, 3, "pairs", "auto"),
    (0.5, 3, "pairs", "auto"),
    (0.8, 3, "pairs", "auto"),
    (0.8, 20, "pairs", "auto"),
    (0.8, 20, "attributes", "auto"),
    (0.2, 3, "attributes", "eszsl"),
    (0.2, 3, "attributes", "dap"),
    (0.2, 20, "attributes", "auto"),
)

Floats = npt.NDArray[np.float64]


class CombinationTask:
    """Features, labels and attributes of the task.

    Args:
        root: Folder of the task.
        work: Folder of the feature bank.
    """

    def __init__(self, root: Path, work: Path) -> None:
        options = PassOptions(image_size=SIZE, cache=work, progress=False)
        backbone, data = open_backbone(MODEL, options), open_images(root, options)
        fit_to_images(backbone, data)
        self._table: FeatureTable = read_features(backbone, data, bank=open_bank(options), pooling="avg+max").table
        self._labels = data.labels
        self._rows = {split: data.indices(split) for split in ("train", "test")}
        known = combination_table()
        self.attributes = np.array([list(known[name].values()) for name in data.summary.classes], dtype=np.float64)

    def score(self, share: float, images: int, table: str, method: str, *, draw: int) -> dict[str, Any]:
        """Accuracies of a draw of unseen classes."""
        rng, classes = np.random.default_rng(draw), len(self.attributes)
        order = rng.permutation(classes)
        seen = classes - round(share * classes)
        place = np.argsort(order)  # seen classes come first
        described = self.attributes[order] if table == "attributes" else with_pairs(self.attributes)[order]
        rows = np.concatenate([self._draw(rng, label, images) for label in order[:seen]])
        labels, train = place[self._labels[rows]], self._table.take(rows)
        start = time.perf_counter()
        coordinates = principal_coordinates(train.chunks, len(rows), train.blocks)
        selection = select_attribute_model(
            coordinates.values,
            Folds.alone(labels),
            described,
            seen=seen,
            method=method,
        )
        weight, bias = coordinates.to_raw(*fit_attributes(coordinates.values, labels, described, selection.model))
        test = self._rows["test"]
        scores = np.concatenate([chunk @ weight.T + bias for chunk in self._table.take(test).chunks()])
        found = {"model": list(vars(selection.model).values()), "seconds": round(time.perf_counter() - start, 2)}
        answers = score_domains(scores, place[self._labels[test]], np.arange(classes) < seen)
        promised = {"calibrated": selection.calibrated.harmonic, "plain": selection.plain.harmonic}
        return {
            **found,
            **_figures(answers, selection.seen_penalty),
            "held_back": {k: round(v, 4) for k, v in promised.items()},
        }

    def _draw(self, rng: np.random.Generator, label: int, images: int) -> npt.NDArray[np.int64]:
        train = self._rows["train"]
        return rng.permutation(train[self._labels[train] == label])[:images]


def with_pairs(attributes: Floats) -> Floats:
    """The attributes, and the products of two that occur."""
    pairs = np.array([[a * b for a, b in itertools.combinations(row, 2)] for row in attributes])
    return np.concatenate([attributes, pairs[:, pairs.any(axis=0)]], axis=1)


def _figures(answers: DomainAnswers, penalty: float) -> dict[str, float]:
    plain, calibrated = answers.accuracy(0.0), answers.accuracy(penalty)
    best = answers.accuracy(answers.best_penalty())
    figures = {
        "seen": plain.seen,
        "unseen": plain.unseen,
        "harmonic": plain.harmonic,
        "calibrated_seen": calibrated.seen,
        "calibrated_unseen": calibrated.unseen,
        "calibrated_harmonic": calibrated.harmonic,
        "best_harmonic": best.harmonic,
        "among_unseen": answers.among_unseen,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def run(root: Path, work: Path) -> None:
    """All settings that are missing."""
    rows = read_rows()
    task = CombinationTask(root / TASK, work)
    for (share, images, table, method), draw in itertools.product(SETTINGS, range(DRAWS)):
        key = {"share": share, "images": images, "table": table, "method": method, "draw": draw}
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append({**key, **task.score(share, images, table, method, draw=draw)})
        print(json.dumps(rows[-1]), flush=True)
        write_rows(rows)


def read_rows() -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []


def write_rows(rows: list[dict[str, Any]]) -> None:
    head = {
        "script": "scripts/bench_zero_shot.py",
        "date": time.strftime("%Y-%m-%d"),
        "model": f"{MODEL} at {SIZE} px, all stages joined",
        "machine": environment(seed=0, device="cpu"),
    }
    lines = ",\n".join(json.dumps(row) for row in rows)
    RESULT.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean, in percent."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def table_lines() -> Iterator[str]:
    """A line for each setting, in Markdown."""
    rows = read_rows()
    yield "| unseen | images | table | method | draws | plain: seen, unseen | H | calibrated | H | ratio | best H |"
    yield "|-|-|-|-|-|-|-|-|-|-|-|"
    for share, images, table, method in SETTINGS:
        key = {"share": share, "images": images, "table": table, "method": method}
        own = [row for row in rows if key.items() <= row.items()]
        if len(own) < 2:
            continue
        mean = {name: float(np.mean([row[name] for row in own])) for name in own[0] if "seen" in name}
        ratio = [row["calibrated_harmonic"] / max(row["harmonic"], 1e-9) for row in own]
        yield (
            f"| {100 * share:.0f} % | {images} | {table} | {method} | {len(own)} "
            f"| {100 * mean['seen']:.1f}, {100 * mean['unseen']:.1f} | {interval([row['harmonic'] for row in own])} "
            f"| {100 * mean['calibrated_seen']:.1f}, {100 * mean['calibrated_unseen']:.1f} "
            f"| {interval([row['calibrated_harmonic'] for row in own])} | {np.mean(ratio):.2f} "
            f"| {100 * np.mean([row['best_harmonic'] for row in own]):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--root", type=Path, help="the tasks")
    parser.add_argument("--work", type=Path, default=Path("bench_zero_shot"), help="folder of the feature bank")
    options = parser.parse_args()
    if options.command == "run":
        if options.root is None:
            parser.error("run needs --root TASKS")
        run(options.root, options.work)
    else:
        print("\n".join(table_lines()))


if __name__ == "__main__":
    main()
