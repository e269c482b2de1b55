"""Calibrates the scale of similarity to the source, and checks that it does not depend on the number of images.

    python scripts/make_tasks.py --out TASKS
    python scripts/calibrate_similarity.py --tasks TASKS [--cache DIR] [--write]

Measures the distance of every task from the training data of three packaged backbones, at 96 px, from its first 50,
200 and 1000 training images, and of a few tasks at other sizes. The scale is set so that the tasks in `NEAR` get
0.75 and those in `FAR` 0.25 (geometric means over tasks and backbones), so that 0.5 is the middle between
photographs on the one side and letters, scanned digits and silhouettes on the other.

The same backbones have their original classifier. A second scale maps the share of its classes
that it distinguishes among a task's images (all of them) to that similarity, for backbones without batch
normalisation; its scatter is that of families of tasks (copies and subsets of one set of images) left out of the fit.

--write stores both in transferkit/knowledge/similarity.json, and all numbers in benchmarks/similarity.json. Takes about
15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from transferkit import load_backbone
from transferkit.core.intervals import TWO_SIDED
from transferkit.core.provenance import environment
from transferkit.data import Data, open_data
from transferkit.features import FeatureBank, frozen_pass
from transferkit.measure import (
    ChannelMoments,
    HeadInformation,
    Nearness,
    Scale,
    fit_head_scale,
    fit_scale,
    measure_head_information,
    measure_nearness,
)
from transferkit.nn import Backbone
from transferkit.records import TOP
from transferkit.workflow.source_similarity import choose_sample

REPOSITORY = Path(__file__).parents[1]
MODELS = tuple(f"packaged/tf_efficientnet_lite{number}" for number in (0, 1, 2))
SIZE = 96
COUNTS = (50, 200, 1000)

NEAR = ("stamps", "stamps_animals", "stamps_fine")
"""Photographs of things, cut out on white. Tiles of photographs are not used here: enlarged to the size of the input
they are blurred, which the first stages notice."""

FAR = ("digits", "fashion", "glyphs")
"""Scanned digits, grey silhouettes of clothes, letters in many fonts."""

OTHER_SIZES = {"packaged/tf_efficientnet_lite0": (64, 128, 224)}
SIZED_TASKS = ("photo_regions", "stamps", "stamps_fine", "hand_signs", "fashion", "digits", "glyphs")
"""Tasks that are measured at other sizes too: the running statistics come from the native one."""


@dataclass(frozen=True)
class Measured:
    """The distance of the first images of a task from the source of a backbone."""

    task: str
    model: str
    size: int
    images: int
    found: Nearness
    answers: HeadInformation

    @property
    def family(self) -> str:
        """What the task is a copy or a part of."""
        return self.task.partition("_")[0]

    def describe(self, scale: Scale) -> dict[str, Any]:
        margin = TWO_SIDED * self.found.error
        return {
            "task": self.task,
            "model": self.model,
            "size": self.size,
            "images": self.images,
            "similarity": round(scale.similarity(self.found.distance), 4),
            "low": round(scale.similarity(self.found.distance + margin), 4),
            "high": round(scale.similarity(self.found.distance - margin), 4),
            "distance": round(self.found.distance, 6),
            "error": round(self.found.error, 6),
            "stages": [round(stage.distance, 5) for stage in self.found.stages],
            "head_share": round(self.answers.share, 5),
            "head_share_error": round(self.answers.error, 5),
            "head_confidence": round(self.answers.confidence, 4),
        }


def read_rows(
    backbone: Backbone, data: Data, bank: FeatureBank, most: int
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
    """Of at most so many training images, in the order in which samples grow: stage -> rows of the moments, and what
    the backbone's own classifier makes of them."""
    among = choose_sample(data.content_ids, data.indices("train"), size=most)

    def read(index: int) -> npt.NDArray[Any]:
        return data.pixels(int(among[index]), backbone.spec.preprocessing)

    done = frozen_pass(
        backbone, read, data.content_ids[among], bank=bank, sample=np.arange(len(among)), pooling="avg", progress=False
    )
    assert done.moments is not None
    moments = {stage: done.moments.load([stage]) for stage in done.moments.blocks}
    return moments, backbone.source_probabilities(done.table.load([TOP]))


def measure_task(backbone: Backbone, folder: Path, bank: FeatureBank, counts: tuple[int, ...]) -> list[Measured]:
    """One row per number of images; the last uses all images if there are fewer."""
    data = open_data(folder, progress=False)
    rows, answers = read_rows(backbone, data, bank, max(counts))
    source = {stage: ChannelMoments(*moments) for stage, moments in backbone.source_moments().items()}
    there = len(next(iter(rows.values())))
    return [
        Measured(
            folder.name,
            backbone.spec.name,
            backbone.spec.preprocessing.size,
            count,
            measure_nearness(source, {stage: part[:count] for stage, part in rows.items()}),
            measure_head_information(answers[:count]),
        )
        for count in sorted({min(count, there) for count in counts})
    ]


def measure_all(folders: list[Path], bank: FeatureBank) -> list[Measured]:
    measured = []
    for model in MODELS:
        for size in (SIZE, *OTHER_SIZES.get(model, ())):
            backbone = load_backbone(model, image_size=size)
            chosen = folders if size == SIZE else [folder for folder in folders if folder.name in SIZED_TASKS]
            for folder in chosen:
                start = time.perf_counter()
                measured += measure_task(backbone, folder, bank, COUNTS if size == SIZE else COUNTS[1:2])
                print(
                    f"{model} {size} px {folder.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
                )
    return measured


def largest(measured: list[Measured]) -> list[Measured]:
    """Each task on each backbone at the common size, from as many images as there are."""
    rows = {(row.task, row.model): row for row in measured if row.size == SIZE}  # numbers of images ascend
    return list(rows.values())


def anchor(measured: list[Measured], tasks: tuple[str, ...]) -> float:
    """Geometric mean of the distances of some tasks over the backbones, each from as many images as there are."""
    rows = [row for row in largest(measured) if row.task in tasks]
    missing = set(tasks) - {row.task for row in rows}
    if missing:
        raise SystemExit(
            f"The scale needs the tasks {', '.join(sorted(missing))}; make them with scripts/make_tasks.py."
        )
    return float(np.exp(np.mean([np.log(row.found.distance) for row in rows])))


def calibrate_head(measured: list[Measured], scale: Scale) -> dict[str, Any]:
    """The scale for a classifier's predictions, with the rank correlation of its confidence for comparison."""
    rows = largest(measured)
    similarities = np.array([scale.similarity(row.found.distance) for row in rows])
    shares = np.array([row.answers.share for row in rows])
    fitted = fit_head_scale(shares, similarities, [row.family for row in rows])
    told = np.array([fitted.similarity(share) for share in shares])
    ends = np.array([fitted.interval(row.answers.share, row.answers.error) for row in rows])
    return {
        "middle": round(fitted.middle, 5),
        "steepness": round(fitted.steepness, 4),
        "scatter": round(fitted.scatter, 4),
        "tasks": len({row.task for row in rows}),
        "rank_correlation": round(float(spearmanr(shares, similarities)[0]), 3),
        "rank_correlation_of_confidence": round(
            float(spearmanr([row.answers.confidence for row in rows], similarities)[0]), 3
        ),
        "mean_difference": round(float(np.abs(told - similarities).mean()), 3),
        "inside_interval": round(float(((ends[:, 0] <= similarities) & (similarities <= ends[:, 1])).mean()), 3),
    }


def show(measured: list[Measured], scale: Scale) -> None:
    print(f"{'task':18} {'model':32} {'px':>4} {'n':>5} similarity (95 % interval)")
    for row in sorted(measured, key=lambda row: (row.size != SIZE, row.task, row.model, row.size, row.images)):
        said = row.describe(scale)
        print(
            f"{row.task:18} {row.model:32} {row.size:4} {row.images:5} "
            f"{said['similarity']:.3f} ({said['low']:.3f} to {said['high']:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
    parser.add_argument("--cache", type=Path, help="folder of the feature bank; a second run computes nothing")
    parser.add_argument("--write", action="store_true", help="store the scale and the numbers in the repository")
    options = parser.parse_args()
    folders = sorted(path for path in options.tasks.iterdir() if (path / "train").is_dir())
    measured = measure_all(folders, FeatureBank(options.cache))
    near, far = anchor(measured, NEAR), anchor(measured, FAR)
    scale = fit_scale(near, far)
    show(measured, scale)
    head = calibrate_head(measured, scale)
    origin = {"version": 1, "script": "scripts/calibrate_similarity.py", "date": date.today().isoformat()}
    kept = {
        **origin,
        "middle": round(scale.middle, 5),
        "steepness": round(scale.steepness, 4),
        "near": {"tasks": list(NEAR), "distance": round(near, 5)},
        "far": {"tasks": list(FAR), "distance": round(far, 5)},
        "models": list(MODELS),
        "image_size": SIZE,
        "head": head,
    }
    print(json.dumps(kept, indent=1))
    if options.write:
        knowledge = REPOSITORY / "transferkit" / "knowledge" / "similarity.json"
        knowledge.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        benchmark = {**origin, "machine": environment(seed=0, device="cpu"), "scale": kept}
        rows = ",\n".join(f"  {json.dumps(row.describe(scale))}" for row in measured)
        text = f'{json.dumps(benchmark, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'
        (REPOSITORY / "benchmarks" / "similarity.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
