"""Planted copies: how many of each kind are found, and how many pairs are found in tasks as they are.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_near_duplicates.py --tasks tasks [--out benchmarks/near_duplicates.json]

Up to 1,000 images of each of five tasks. Copies of a twentieth of them are added, kind after kind in turn, in several
draws: mirrored, cropped at a random place, brightened or darkened, saved as JPEG of quality 30, in grey (of coloured
images), turned by 5 degrees, resized to half or 1.7 times the size, blurred. The features are those of
EfficientNet-Lite0 at 96 px, from one frozen pass. Pairs that are found in the tasks as they are, in these and in
others, are listed by name: whether they are false is for a person to see.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from regret.measuring import write_result
from regret.paths import MODEL, SIZE

from transferkit.doctor import review_images
from transferkit.doctor.session_review import small_pictures
from transferkit.features import FeatureBank
from transferkit.options import PassOptions
from transferkit.records import ImageReview
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import load_backbone, open_images

TASKS = ("stamps", "hand_signs", "fashion", "photo_tiles", "families")
UNTOUCHED = ("textures", "characters", "counting", "digits", "scripts", "photo_regions")
KINDS = ("mirror", "crop 80-95 %", "crop 70-80 %", "brightness", "jpeg 30", "grey", "rotation 5", "resize", "blur")
SHARE = 0.05


def change(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """A copy of an RGB picture."""
    width, height = image.size
    if kind == "mirror":
        return ImageOps.mirror(image)
    if kind.startswith("crop"):
        low, high = (0.8, 0.95) if "95" in kind else (0.7, 0.8)
        side = rng.uniform(low, high)
        wide, tall = max(2, round(width * side)), max(2, round(height * side))
        left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1))
        return image.crop((left, top, left + wide, top + tall))
    if kind == "brightness":
        factor = rng.choice([rng.uniform(0.7, 0.9), rng.uniform(1.1, 1.4)])
        return ImageEnhance.Brightness(image).enhance(float(factor))
    if kind == "jpeg 30":
        encoded = io.BytesIO()
        image.save(encoded, format="JPEG", quality=30)
        return Image.open(encoded).convert("RGB")
    if kind == "grey":
        return image.convert("L").convert("RGB")
    if kind == "rotation 5":
        return image.rotate(float(rng.choice([-5, 5])), Image.Resampling.BICUBIC)
    if kind == "resize":
        scale = float(rng.choice([0.5, 1.7]))
        size = max(2, round(width * scale)), max(2, round(height * scale))
        return image.resize(size, Image.Resampling.LANCZOS)
    return image.filter(ImageFilter.GaussianBlur(0.015 * max(width, height)))


def write_task(task: Path, folder: Path, images: int, seed: int | None) -> dict[str, tuple[str, str]]:
    """Write a task's images, and copies if there is a seed: name of the copy -> name of the original, and the kind."""
    files = sorted(file for file in task.rglob("*") if file.suffix in {".png", ".jpg"})
    chosen = np.sort(np.random.default_rng(0).permutation(len(files))[:images])
    for index in chosen:
        target = folder / files[index].relative_to(task)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[index], target)
    planted: dict[str, tuple[str, str]] = {}
    if seed is None:
        return planted
    rng = np.random.default_rng(seed)
    for number, index in enumerate(rng.permutation(chosen)[: round(SHARE * len(chosen))]):
        image = Image.open(files[index]).convert("RGB")
        kind = KINDS[number % len(KINDS)]
        copy = change(image, kind, rng)
        if copy.size == image.size and np.array_equal(np.asarray(copy), np.asarray(image)):
            continue  # it was grey, or is symmetric: an exact copy, which the audit finds
        original = files[index].relative_to(task)
        name = original.with_name(f"{original.stem}__{number}.png")
        copy.save(folder / name)
        planted[name.as_posix()] = (original.as_posix(), kind)
    return planted


def review(folder: Path, cache: Path) -> tuple[ImageReview, set[str], float]:
    """The review of a folder, the names of the images that the audit left in, and its seconds after the frozen pass."""
    options = PassOptions(image_size=SIZE, cache=cache, progress=False)
    backbone, data = load_backbone(MODEL, image_size=SIZE), open_images(folder, options)
    table = read_features(backbone, data, bank=FeatureBank(cache), pooling=options.pooling, progress=False).table
    names = [Path(name).as_posix() for name in data.items]
    start = time.perf_counter()
    stages = list(table.blocks)
    found = review_images(
        table.load(stages),
        data.labels,
        data.splits,
        names,
        picture=small_pictures(data, backbone.spec.preprocessing),
        classes=data.summary.classes,
        blocks=table.select(stages)[0],
    )
    return found, set(names), time.perf_counter() - start


def measure_task(task: Path, cache: Path, images: int, seeds: list[int | None]) -> list[dict[str, Any]]:
    """A row per draw; the seed None is the task as it is."""
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            planted = write_task(task, Path(name), images, seed)
            found, names, seconds = review(Path(name), cache)
        pairs = {frozenset((one.original, one.copy)): one for one in found.copies}
        row: dict[str, Any] = {"task": task.name, "seed": seed, "images": found.images, "seconds": round(seconds, 1)}
        if seed is None:
            row |= {"outliers": [one.name for one in found.outliers], "pairs": [one.sentence for one in found.copies]}
        else:
            hits = defaultdict(list)
            # A copy may equal a third image, as < mirrored equals >: the audit found it and set it aside.
            there = {copy: how for copy, how in planted.items() if {copy, how[0]} <= names}
            for copy, (original, kind) in there.items():
                hits[kind].append(frozenset((copy, original)) in pairs)
            row["found"] = {kind: [sum(hits[kind]), len(hits[kind])] for kind in KINDS}
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall per kind over all tasks and in each, and pairs and outliers per 1,000 images of the tasks as they are."""
    planted = [row for row in rows if row["seed"] is not None]
    tasks = list(dict.fromkeys(row["task"] for row in planted))

    def recall(kind: str, among: list[dict[str, Any]]) -> float | None:
        found, all_ = (sum(row["found"][kind][part] for row in among) for part in (0, 1))
        return round(found / all_, 3) if all_ else None

    return {
        "recall": {
            kind: {
                "all": recall(kind, planted),
                "copies": sum(row["found"][kind][1] for row in planted),
                **{task: recall(kind, [row for row in planted if row["task"] == task]) for task in tasks},
            }
            for kind in KINDS
        },
        "untouched": {
            row["task"]: {
                "images": row["images"],
                "pairs_per_1000": round(1000 * len(row["pairs"]) / row["images"], 2),
                "outliers_per_1000": round(1000 * len(row["outliers"]) / row["images"], 2),
            }
            for row in rows
            if row["seed"] is None
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True, help="Folder of tasks, from make_tasks.py.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    cache = options.cache or options.tasks / "bank"
    rows = []
    for name in TASKS:
        rows += measure_task(options.tasks / name, cache, options.images, [None, *range(options.draws)])
    for name in UNTOUCHED:
        rows += measure_task(options.tasks / name, cache, options.images, [None])
    write_result("scripts/bench_near_duplicates.py", rows, summarise, options.out)


if __name__ == "__main__":
    main()
