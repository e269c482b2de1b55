"""Are held-back accuracies unbiased? With few images of many classes, and with random labels.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_held_back.py --tasks tasks [--cache DIR]

*Small classes.* 20 and 40 classes with 5 images each, 5 draws per task with that many classes: the held-back accuracy
of the ridge probe on all stages joined, in memory and with streamed features, and the accuracy on the test images of
the same classes. Streaming starts above 2,048 images, so it is forced here.

*Random labels.* 40 images in 6 slightly different takes each, one class per
image, the takes as groups; and 80 images in three exact copies each. All held-back accuracies of `analyze`, `rank` and
`adapt` are listed, as the mean over five draws; chance is one in three.

Estimate: a frozen pass over the images of four tasks, which the bank keeps (4 minutes on two cores), then eigen-
decompositions of at most 200 x 200: seconds. Writes benchmarks/held_back.json.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from regret.paths import MODEL, ROOT, SIZE, write

import transferkit as tk
from transferkit.core.provenance import environment
from transferkit.data import open_data
from transferkit.features import FeatureBank, FeatureTable
from transferkit.measure import fit_ridge, ridge
from transferkit.records import Folds
from transferkit.workflow.measure import read_features

FOUND = ROOT / "benchmarks" / "held_back.json"
TASKS = ("characters", "glyphs", "families", "scripts")
DRAWS = 5
PER_CLASS = 5
CLASSES = 3
"""Of random labels."""


@contextmanager
def streaming() -> Iterator[None]:
    """Force streaming of features, however few they are."""
    usual = ridge._fits_memory
    ridge._fits_memory = lambda *sizes: False  # type: ignore[assignment]
    try:
        yield
    finally:
        ridge._fits_memory = usual


def small_classes(tasks: Path, bank: FeatureBank) -> list[dict[str, Any]]:
    """A row per task and number of classes."""
    backbone, rows = tk.load_backbone(MODEL, image_size=SIZE), []
    for name in TASKS:
        data = open_data(tasks / name, progress=False)
        table = read_features(backbone, data, bank=bank, pooling="avg+max").table
        train, test = data.indices("train"), data.indices("test")
        for classes in (20, 40):
            if classes > data.summary.num_classes:
                continue
            draws = [one_draw(table, data.labels, train, test, classes, seed) for seed in range(DRAWS)]
            means = {key: round(statistics.fmean(draw[key] for draw in draws), 4) for key in draws[0]}
            rows.append({"task": name, "classes": classes, **means})
            print(rows[-1], flush=True)
    return rows


def one_draw(
    table: FeatureTable, labels: np.ndarray, train: np.ndarray, test: np.ndarray, classes: int, seed: int
) -> dict[str, float]:
    """Held-back and test accuracy on some of the classes, 5 images of each."""
    rng = np.random.default_rng(seed)
    among = np.sort(rng.permutation(np.unique(labels))[:classes])
    drawn = np.concatenate([rng.permutation(train[labels[train] == label])[:PER_CLASS] for label in among])
    tested = test[np.isin(labels[test], among)]
    folds = Folds.alone(np.searchsorted(among, labels[drawn]))
    drawn, folds = drawn[folds.order], folds.take(folds.order)
    small = table.take(drawn)

    def held_back() -> tuple[float, Any]:
        head = fit_ridge(small.chunks, folds.labels, table.blocks, classes=classes, folds=folds)
        return float(head.path.accuracy[head.path.best]), head

    in_memory, head = held_back()
    with streaming():
        streamed, _ = held_back()
    named = (table.take(tested).load(list(table.blocks)) @ head.weight.T + head.bias).argmax(axis=1)
    right = float((named == np.searchsorted(among, labels[tested])).mean())
    return {"in memory": in_memory, "streamed": streamed, "test": right}


def nothing_to_learn(tasks: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Kind -> estimate -> its mean over draws, and the range expected by chance."""
    pictures = sorted((tasks / "stamps").glob("train/*/*.png"))
    kinds = {"takes of one picture are a group": write_takes, "three copies": write_copies}
    return {kind: at_chance(pictures, make) for kind, make in kinds.items()}


def write_takes(pictures: list[Path], folder: Path, seed: int) -> tuple[Path, int]:
    """40 images in 6 takes each, slightly shifted and re-exposed; a random class per image."""
    rng, rows = np.random.default_rng(seed), []
    chosen = rng.permutation(len(pictures))[:40]
    for group, (index, label) in enumerate(zip(chosen, random_labels(rng, len(chosen)), strict=True)):
        picture = Image.open(pictures[index]).convert("RGB").resize((SIZE, SIZE))
        for take in range(6):
            shifted = np.roll(np.asarray(picture, dtype=np.float64), rng.integers(-5, 6, 2), axis=(0, 1))
            exposed = shifted * rng.uniform(0.8, 1.0) + rng.normal(0, 4, shifted.shape)
            path = folder / f"{group}_{take}.png"
            Image.fromarray(exposed.clip(0, 255).astype(np.uint8)).save(path)
            rows.append({"path": path.name, "label": f"class {label}", "group": f"picture {group}"})
    return write_manifest(folder, rows), len(chosen)


def write_copies(pictures: list[Path], folder: Path, seed: int) -> tuple[Path, int]:
    """80 images in three exact copies each; a random class per image."""
    rng, rows = np.random.default_rng(seed), []
    chosen = rng.permutation(len(pictures))[:80]
    for index, label in zip(chosen, random_labels(rng, len(chosen)), strict=True):
        for copy in range(3):
            path = folder / f"{index}_{copy}.png"
            path.write_bytes(pictures[index].read_bytes())
            rows.append({"path": path.name, "label": f"class {label}"})
    return write_manifest(folder, rows), len(chosen)


def random_labels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Labels with equal class counts, as far as possible, in random order: chance is then one in `CLASSES`."""
    return rng.permutation(np.arange(count) % CLASSES)


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "images.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def at_chance(pictures: list[Path], make: Any) -> dict[str, dict[str, float]]:
    """All held-back accuracies, mean over draws."""
    draws: list[Mapping[str, float]] = []
    for seed in range(DRAWS):
        with tempfile.TemporaryDirectory() as folder:
            manifest, independent = make(pictures, Path(folder), seed)
            draws.append(estimates(manifest, Path(folder) / "cache", seed))
            print(draws[-1], flush=True)
    error = (1 / CLASSES * (1 - 1 / CLASSES) / (independent * DRAWS)) ** 0.5
    return {
        name: {
            "mean": round(statistics.fmean(draw[name] for draw in draws), 4),
            "chance": round(1 / CLASSES, 4),
            "standard error": round(error, 4),
        }
        for name in draws[0]
    }


def estimates(manifest: Path, cache: Path, seed: int) -> dict[str, float]:
    """Name -> held-back accuracy of `adapt`, with a probe and with a network."""
    options: dict[str, Any] = {"image_size": SIZE, "views": 1, "test": 0.0, "seed": seed}
    options |= {"cache": str(cache), "progress": False}
    probe = tk.adapt(MODEL, str(manifest), strategy="linear_probe", **options)
    network = tk.adapt(MODEL, str(manifest), strategy="few_layers", train={"epochs": 3}, **options)
    ranked = tk.rank([MODEL], str(manifest), image_size=SIZE, cache=str(cache), progress=False)
    found = {f"{score.method} {score.stage}": score.accuracy for score in probe.evidence.probes}
    found |= {f"curve {p.stage} at {p.images} images": p.accuracy for p in probe.evidence.curves if p.stage == "joined"}
    found["rank"] = ranked.models[0].joined.accuracy
    for name, result in (("probe", probe), ("network", network)):
        assert result.decision.expected is not None
        found[f"expected of the {name}"] = result.decision.expected.expected_accuracy
    return {name: float(value) for name, value in found.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
    parser.add_argument("--cache", help="folder of the feature bank")
    options = parser.parse_args()
    write(
        FOUND,
        {
            "script": "scripts/bench_held_back.py",
            "date": date.today().isoformat(),
            "machine": environment(seed=0, device="cpu"),
            "model": f"{MODEL} at {SIZE} px",
            "small classes": small_classes(options.tasks, FeatureBank(options.cache)),
            "nothing to learn": nothing_to_learn(options.tasks),
        },
    )


if __name__ == "__main__":
    main()
