"""Shift between training images and new ones: false alarms, power, accuracy without labels, remedies.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_shift.py learn --root tasks     # score changes of shifted copies of other tasks
    python scripts/bench_shift.py weigh                  # the weights of `transferkit.shift.accuracy`, from these
    python scripts/bench_shift.py alarms --root tasks    # resampled pairs without a shift
    python scripts/bench_shift.py cells --root tasks     # shifted copies: power, kind, estimated accuracy
    python scripts/bench_shift.py cures --root tasks     # each remedy on shifted copies, and on streams
    python scripts/bench_shift.py table                  # what there is so far

Runs are `adapt` on at most 500 training images of a task, EfficientNet-Lite0 at 96 pixels, a single view; new images
are the task's test images, as they are or altered before they are prepared. The tasks that constants are chosen on
(`LEARNT_FROM`) are none of those that are reported. Rows are kept as they come in benchmarks/shift.json: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tune import Rows
from PIL import Image, ImageEnhance, ImageFilter
from scipy.optimize import nnls
from scipy.special import softmax

from transferkit.api import adapt, load
from transferkit.nn import Classifier, logits_of
from transferkit.result import Result
from transferkit.shift.accuracy import Answers, score_changes
from transferkit.shift.diagnosis import Diagnosed, compare_images, find_shift
from transferkit.shift.guard import choose_remedy
from transferkit.shift.new_images import NewImages, read_new_images
from transferkit.shift.opinions import Opinions, fit_opinions
from transferkit.shift.reference import open_reference
from transferkit.shift.remedies import REMEDIES, ShiftCase, Unfit
from transferkit.shift.shift_options import ShiftOptions

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "shift.json"

MODEL, SIZE, TRAINED, NEW = "packaged/tf_efficientnet_lite0", 96, 500, 120

LEARNT_FROM = ("photo_regions", "textures", "glyphs", "digits", "families", "characters")
REPORTED = ("stamps", "hand_signs", "photo_tiles", "fashion")

EPOCHS = 5
"""Of fine-tuned runs, on one fold: how good they are does not matter here."""

ALARM_SIZES, ALARM_PAIRS = (16, 32, 100), 60
POWER_SIZE, POWER_DRAWS = 32, 10
ADAPTED = 32
PROPORTIONS = 4
"""Draws of class proportions from a Dirichlet distribution a task."""


def add_noise(image: Image.Image, level: int) -> Image.Image:
    """Gaussian noise."""
    pixels = np.asarray(image, np.float64)
    noise = np.random.default_rng(level).normal(0, (15, 35, 60)[level], pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def blur(image: Image.Image, level: int) -> Image.Image:
    """Gaussian blur, by the longest side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / (100, 50, 25)[level]))


def fade(image: Image.Image, level: int) -> Image.Image:
    """Less contrast."""
    return ImageEnhance.Contrast(image).enhance((0.5, 0.25, 0.12)[level])


def pixelate(image: Image.Image, level: int) -> Image.Image:
    """Fewer pixels, as blocks."""
    small = tuple(max(2, round(side * (0.5, 0.3, 0.18)[level])) for side in image.size)
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


KINDS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "noise": add_noise, "blur": blur, "contrast": fade, "pixelate": pixelate,
}  # fmt: skip
LEVELS = (0, 1, 2)


class Task:
    """A run on a task, and its test images.

    Args:
        folder: Of the task.
        work: Folder for runs and the feature bank.
        strategy: Of the run.
    """

    def __init__(self, folder: Path, work: Path, strategy: str = "linear_probe") -> None:
        self.name = folder.name
        self.options = ShiftOptions(cache=work / "bank", progress=False)
        rng = np.random.default_rng(0)
        self._trained, tested = (sorted((folder / split).rglob("*.png")) for split in ("train", "test"))
        rng.shuffle(self._trained)  # type: ignore[arg-type]
        rng.shuffle(tested)  # type: ignore[arg-type]
        self.result = self._run(work, strategy)
        self.reference = open_reference(self.result, self.options)
        self.paths = [path for path in tested if path.parent.name in self.result.classes][:300]
        self.labels = np.array([self.result.classes.index(path.parent.name) for path in self.paths])
        self._opinions: Opinions | None = None

    def _run(self, work: Path, strategy: str) -> Result:
        out = work / f"{self.name}-{strategy}"
        if (out / "result.json").is_file():
            return load(out)
        manifest = work / f"{self.name}.csv"
        with manifest.open("w", newline="", encoding="utf-8") as written:
            rows = [(str(path), path.parent.name) for path in sorted(self._trained[:TRAINED])]
            csv.writer(written).writerows([("path", "label"), *rows])
        train = None if strategy == "linear_probe" else {"epochs": EPOCHS, "folds": 1}
        return adapt(MODEL, manifest, strategy=strategy, train=train, image_size=SIZE, views=1, geometry="crop",
                     test=0.0, out=out,     evaluate=False, cache=work / "bank", progress=False)  # fmt: skip

    @property
    def opinions(self) -> Opinions | None:
        """Fitted once for all cells."""
        if self._opinions is None and self.reference.table is not None:
            self._opinions = fit_opinions(self.reference.table, self.reference.folds, classes=len(self.result.classes))
        return self._opinions

    def pictures(self, kind: str = "", level: int = 0, count: int | None = None) -> list[Image.Image]:
        """The first test images, altered."""
        made = []
        for path in self.paths[:count]:
            with Image.open(path) as image:
                plain = image.convert("RGB")
            made.append(KINDS[kind](plain, level) if kind else plain)
        return made

    def read(self, pictures: list[Image.Image]) -> NewImages:
        """Their features and answers."""
        return read_new_images(self.result, pictures, self.reference.witness, self.options)

    def compare(self, new: NewImages, seed: int = 0) -> Diagnosed:
        """What `shift` would say."""
        return compare_images(self.reference, new, names=self.result.classes, opinions=self.opinions, seed=seed)

    def kind(self, new: NewImages, rows: np.ndarray, seed: int) -> str:
        """Kind of shift of some of the images; with fewer permutations, which is as exact."""
        some = take(new, rows)
        answers = Answers(softmax(some.logits, axis=1), np.empty((0, len(some)), np.int64))
        return find_shift(self.reference, some, answers, rounds=199, seed=seed)[0]


def take(new: NewImages, rows: np.ndarray) -> NewImages:
    """Some of the images, which were read at once."""
    starts = np.cumsum([0, *map(len, new.tables)])
    tables = [table.take(rows[(rows >= a) & (rows < b)] - a)
              for table, a, b in zip(new.tables, starts, starts[1:], strict=False)]  # fmt: skip
    return NewImages(
        items=tuple(new.items[row] for row in rows), logits=new.logits[rows],
        tables=tuple(table for table in tables if len(table)), pixels=(), chosen=np.empty(0, np.int64),
    )  # fmt: skip


def cells(task: Task) -> Iterator[tuple[str, int, NewImages, np.ndarray]]:
    """Kind, severity, images and labels: as they are, then altered."""
    yield "none", 0, task.read(task.pictures(count=NEW)), task.labels[:NEW]
    for kind in KINDS:
        for level in LEVELS:
            yield kind, level, task.read(task.pictures(kind, level, NEW)), task.labels[:NEW]


def learn(rows: Rows, root: Path, work: Path) -> None:
    """Score changes and accuracy on tasks that are not reported."""
    for name in LEARNT_FROM:
        if rows.find(phase="learn", task=name, kind="pixelate", level=2):
            continue
        task = Task(root / name, work)
        assert task.opinions is not None
        for kind, level, new, labels in cells(task):
            if rows.find(phase="learn", task=name, kind=kind, level=level):
                continue
            found = task.compare(new)
            changes = score_changes(found.held_back, found.labels, found.new)
            right = softmax(new.logits, axis=1).argmax(axis=1) == labels
            rows.add({"phase": "learn", "task": name, "kind": kind, "level": level, "images": len(labels),
                      "reference": len(found.labels), "held_back": found.estimate.held_back,
                      "accuracy": float(right.mean()),
                      "changes": {key: round(value, 4) for key, value in changes.items()}})  # fmt: skip


def _logit(share: float, count: int) -> float:
    kept = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return float(np.log(kept / (1 - kept)))


def weigh(rows: Rows) -> None:
    """Weights with the least error of accuracy, each >= 0; and the error on a task that they were not fitted to."""
    known = [row for row in rows.read() if row["phase"] == "learn"]
    names = sorted(known[0]["changes"])
    changes = np.array([[row["changes"][name] for name in names] for row in known])
    target = np.array([_logit(row["accuracy"], row["images"]) - _logit(row["held_back"], row["reference"])
                       for row in known])  # fmt: skip
    start = np.array([_logit(row["held_back"], row["reference"]) for row in known])
    truth = np.array([row["accuracy"] for row in known])
    task = np.array([row["task"] for row in known])
    weight = np.sqrt(truth * (1 - truth) + 0.03)  # an error of the logit counts as far as it moves accuracy

    def fit(used: np.ndarray) -> np.ndarray:
        return nnls(changes[used] * weight[used, None], target[used] * weight[used])[0]

    apart, guessed = [], np.empty(len(known))
    for name in dict.fromkeys(task):
        held = task == name
        guessed[held] = changes[held] @ fit(~held)
        guess = 1 / (1 + np.exp(-(start[held] + guessed[held])))
        apart.append(float(np.abs(guess - truth[held]).mean()))
        print(f"{name}: error {100 * apart[-1]:.1f} points with weights of the other tasks")
    every = np.ones(len(known), bool)
    found = fit(every)
    size = np.sqrt((changes**2).mean(axis=1))
    left = (target - guessed) * weight / weight.mean()
    print(f"mean {100 * statistics.mean(apart):.1f}; weights", dict(zip(names, found.round(3).tolist(), strict=True)))
    print("spread per unit of change", round(float(np.sqrt((left**2).sum() / (size**2).sum())), 3))


def alarms(rows: Rows, root: Path, work: Path) -> None:
    """How often equal sets are called shifted, and how many of their images unfamiliar."""
    for name in REPORTED:
        if all(rows.find(phase="alarms", task=name, images=size) for size in ALARM_SIZES):
            continue
        task = Task(root / name, work)
        every = task.read(task.pictures())
        unfamiliar = float((task.compare(every).p_values <= 0.05).mean())
        for size in ALARM_SIZES:
            if rows.find(phase="alarms", task=name, images=size):
                continue
            rng = np.random.default_rng(size)
            found = [task.kind(every, np.sort(rng.permutation(len(every))[:size]), draw) for draw in range(ALARM_PAIRS)]
            rows.add({"phase": "alarms", "task": name, "images": size, "pairs": len(found),
                      "alarms": sum(kind != "none" for kind in found), "unfamiliar": unfamiliar})  # fmt: skip


def measure_cell(task: Task, new: NewImages, labels: np.ndarray, **about: Any) -> dict[str, Any]:
    """A row of the test and the estimate on shifted images."""
    found = task.compare(new)
    right = softmax(new.logits, axis=1).argmax(axis=1) == labels
    rng = np.random.default_rng(0)
    few = [task.kind(new, np.sort(rng.permutation(len(new))[:POWER_SIZE]), draw) for draw in range(POWER_DRAWS)]
    seen = max((one for one in found.stages if one.adjusted <= 0.05), default=None, key=lambda one: one.effect)
    estimate = found.estimate
    return {"phase": "cells", "task": task.name, **about, "images": len(new), "found": found.kind,
            "power": float(np.mean([kind != "none" for kind in few])),
            "told": float(np.mean([kind == ("classes" if about["kind"] == "proportions" else "images")
                                   for kind in few])),
            "stage": "" if seen is None else seen.stage, "held_back": estimate.held_back,
            "accuracy": float(right.mean()), "estimate": estimate.accuracy, "low": estimate.low,
            "high": estimate.high, "methods": {key: round(value, 4) for key, value in estimate.methods.items()},
            "unfamiliar": float((found.p_values <= 0.05).mean())}  # fmt: skip


def shifted_cells(rows: Rows, root: Path, work: Path, strategies: tuple[str, ...]) -> None:
    """Altered images, and images in other class proportions."""
    for strategy in strategies:
        for name in REPORTED:
            if rows.find(phase="cells", strategy=strategy, task=name, kind="proportions", level=PROPORTIONS - 1):
                continue
            task = Task(root / name, work, strategy)
            for kind, level, new, labels in cells(task):
                if not rows.find(phase="cells", strategy=strategy, task=name, kind=kind, level=level):
                    rows.add(measure_cell(task, new, labels, strategy=strategy, kind=kind, level=level))
            every = task.read(task.pictures())
            for draw in range(PROPORTIONS):
                if rows.find(phase="cells", strategy=strategy, task=name, kind="proportions", level=draw):
                    continue
                chosen = unbalanced(task.labels, draw)
                about = {"strategy": strategy, "kind": "proportions", "level": draw}
                rows.add(measure_cell(task, take(every, chosen), task.labels[chosen], **about))


def unbalanced(labels: np.ndarray, draw: int) -> np.ndarray:
    """Rows in class proportions from a Dirichlet distribution (0.5), as many as there are, at most 120."""
    rng = np.random.default_rng(draw)
    counts = np.bincount(labels)
    shares = rng.dirichlet(np.full(len(counts), 0.5))
    wanted = np.minimum(np.round(shares * NEW), counts).astype(int)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == one))[:many]
                                   for one, many in enumerate(wanted)]))  # fmt: skip


SHIFTED = (("none", 0), *((kind, level) for kind in ("noise", "contrast", "blur") for level in LEVELS))

STREAMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mixed": lambda labels: np.arange(len(labels))[:ADAPTED],
    "sorted by class": lambda labels: np.argsort(labels, kind="stable")[:ADAPTED],
    "one image": lambda labels: np.arange(1),
}
"""Which images of a stream a remedy is made from; it is then used for all of them."""


def cures(rows: Rows, root: Path, work: Path, strategies: tuple[str, ...]) -> None:
    """Each remedy, and what the guard makes of it, on all images of a stream whose first ones it was made from."""
    for strategy in strategies:
        for name in REPORTED:
            task: Task | None = None
            for kind, level in SHIFTED:
                for stream in STREAMS:
                    about = {"strategy": strategy, "task": name, "kind": kind, "level": level, "stream": stream}
                    if rows.find(phase="cures", **about):
                        continue
                    task = task or Task(root / name, work, strategy)
                    new = task.read(task.pictures("" if kind == "none" else kind, level, NEW))
                    chosen = STREAMS[stream](task.labels[:NEW])
                    rows.add({"phase": "cures", **about, **measure_cures(task, new, chosen)})
            passes(rows, root, work, strategy, name)


def measure_cures(task: Task, new: NewImages, chosen: np.ndarray) -> dict[str, Any]:
    """Accuracy on all images, and with each remedy made from the chosen ones, whether the guard uses it or not."""
    labels, result = task.labels[: len(new)], task.result
    some = replace(take(new, chosen), pixels=tuple(new.pixels[row] for row in chosen), chosen=np.arange(len(chosen)))
    situation = ShiftCase(result=result, reference=task.reference, new=some, found=task.compare(some))
    guarded = choose_remedy(situation, tuple(REMEDIES))

    def accuracy(model: Classifier) -> float:
        logits = logits_of(model, new.pixels, device=torch.device("cpu"))
        return float((logits.argmax(dim=1).numpy() == labels).mean())

    raw = {}
    for name, remedy in REMEDIES.items():
        with suppress(Unfit):
            raw[name] = accuracy(remedy(situation))
    used = next((trial.name for trial in guarded.trials if trial.used), "")
    rehearsal = guarded.rehearsal
    return {"found": situation.found.kind, "accuracy": accuracy(result.model), "raw": raw, "used": used,
            "cured": accuracy(result.model if guarded.model is None else guarded.model),
            "rehearsal": "" if rehearsal is None else rehearsal.name,
            "closeness": None if rehearsal is None else round(rehearsal.closeness, 3),
            "reasons": {trial.name: trial.reason for trial in guarded.trials}}  # fmt: skip


def passes(rows: Rows, root: Path, work: Path, strategy: str, name: str) -> None:
    """Three passes over the same images: each starts from the run, so that they must agree."""
    about = {"phase": "passes", "strategy": strategy, "task": name, "kind": "noise", "level": 1}
    if rows.find(**about):
        return
    task = Task(root / name, work, strategy)
    new = task.read(task.pictures("noise", 1, NEW))
    found = [measure_cures(task, new, np.arange(ADAPTED))["cured"] for _ in range(3)]
    rows.add({**about, "cured": found})


def table(rows: Rows) -> None:
    """The figures of docs/shift.md."""
    kept = rows.read()
    for size in ALARM_SIZES:
        some = [row for row in kept if row["phase"] == "alarms" and row["images"] == size]
        pairs = sum(row["pairs"] for row in some)
        if pairs:
            share = 100 * sum(row["alarms"] for row in some) / pairs
            odd = 100 * statistics.mean(row["unfamiliar"] for row in some)
            print(f"| {size} | {share:.1f} % of {pairs} | {odd:.1f} % |")
    measured = [row for row in kept if row["phase"] == "cells"]
    for strategy in dict.fromkeys(row["strategy"] for row in measured):
        own = [row for row in measured if row["strategy"] == strategy]
        for kind in dict.fromkeys(row["kind"] for row in own):
            for level in sorted({row["level"] for row in own if row["kind"] == kind}):
                some = [row for row in own if (row["kind"], row["level"]) == (kind, level)]
                errors = [100 * abs(row["estimate"] - row["accuracy"]) for row in some]
                print(
                    f"| {strategy} | {kind} {level} | "
                    + " | ".join(f"{100 * row['accuracy']:.1f} / {100 * row['estimate']:.1f}" for row in some)
                    + f" | {100 * statistics.mean(row['power'] for row in some):.0f} % | "
                    f"{100 * statistics.mean(row['told'] for row in some):.0f} % | {statistics.mean(errors):.1f} |"
                )
        names = list(own[0]["methods"])
        print(
            strategy,
            f"{len(own)} cells: estimate",
            _error(own, lambda row: row["estimate"]),
            {name: _error(own, lambda row, name=name: row["methods"][name]) for name in names},
            "inside",
            round(statistics.mean(row["low"] <= row["accuracy"] <= row["high"] for row in own), 3),
        )

    cured = [row for row in kept if row["phase"] == "cures"]
    for strategy, kind, stream in dict.fromkeys((row["strategy"], row["kind"], row["stream"]) for row in cured):
        some = [row for row in cured if (row["strategy"], row["kind"], row["stream"]) == (strategy, kind, stream)]
        before, after = (statistics.mean(row[name] for row in some) for name in ("accuracy", "cured"))
        worst = min(row["cured"] - row["accuracy"] for row in some)
        every = {name: round(100 * statistics.mean(row["raw"][name] - row["accuracy"] for row in some
                                                   if name in row["raw"]), 1)
                 for name in dict.fromkeys(name for row in some for name in row["raw"])}  # fmt: skip
        print(
            f"| {strategy} | {kind} | {stream} | {100 * before:.1f} | {100 * after:.1f} | {100 * worst:+.1f} |", every
        )


def _error(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    return round(100 * statistics.mean(abs(value(row) - row["accuracy"]) for row in rows), 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="+", choices=("learn", "weigh", "alarms", "cells", "cures", "table"))
    parser.add_argument("--root", type=Path, default=Path("tasks"), help="made by scripts/make_tasks.py")
    parser.add_argument("--work", type=Path, default=None, help="runs and features, kept; default: a temporary folder")
    parser.add_argument("--strategies", nargs="+", default=["linear_probe", "few_layers"])
    given = parser.parse_args()
    rows = Rows(RESULT, script="scripts/bench_shift.py")
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for phase in given.phases:
            if phase == "learn":
                learn(rows, given.root, work)
            elif phase == "weigh":
                weigh(rows)
            elif phase == "alarms":
                alarms(rows, given.root, work)
            elif phase == "cells":
                shifted_cells(rows, given.root, work, tuple(given.strategies))
            elif phase == "cures":
                cures(rows, given.root, work, tuple(given.strategies))
            else:
                table(rows)


if __name__ == "__main__":
    main()
