"""How much accuracy is lost by following each way of choosing a strategy, on tasks that anyone can make.

    python scripts/make_tasks.py --out tasks [--hand-signs hand_signs.tar]
    python scripts/bench_regret.py run --tasks tasks        # every strategy on every task: half an hour on two cores
    python scripts/bench_regret.py tune --tasks tasks       # fine-tuning in every cell's first draw: hours
    python scripts/bench_regret.py score                    # the table, from benchmarks/regret/*.json; seconds
    python scripts/bench_regret.py learn                    # rewrites transferkit/knowledge/gain_model.json from them

`run` takes up where it was stopped: a file per task, rewritten after each cell. A cell is a task at one number of
images per class and one draw of them; in it every strategy is fitted and tested on the task's own test images, and the
evidence is what `transferkit analyze` would see. Strategies are a linear head, ridge or logistic, on each stage, on all
stages joined, and on the selected features of all; and, in the first draw of each level, ways of fine-tuning, each as
`adapt` returns it: the network, its average with the probe, or the probe.

Policies are scored on tasks that they did not learn from: coefficients and the best constant strategy are chosen with
the task, its corrupted copies and its originals left out. Regret is the test accuracy of the best strategy of a cell
less that of the one chosen, in points; the best is found on the test images themselves, so that part of every regret,
chance's own, no policy can avoid. Means are over tasks; within a task over its cells. `score` has three tables: of the
cells with all ways of fine-tuning that were run on every task, of those with the ways that `adapt` weighs, with these
alone, and of all cells among linear heads alone.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferkit.data import Data, open_data
from transferkit.decision import Belief, GainModel, Situation, rule, starting_rate, usual_passes, weigh
from transferkit.decision.gains import LEAST_LEFT
from transferkit.decision.weighing import TUNED_SHARES
from transferkit.features import FeatureBank
from transferkit.fitting import fit_decision
from transferkit.look import Looked, Options, load_backbone
from transferkit.nn import logits_of
from transferkit.pilots import Pilot, search
from transferkit.progress import track
from transferkit.repro import environment
from transferkit.serialise import from_json, to_json
from transferkit.strategies import STRATEGIES
from transferkit.survey import Survey, survey
from transferkit.train import HeadFit, Recipe, choose_head, fit_heads
from transferkit.training import Training
from transferkit.types import JOINED, SELECTED, TOP, Alternative, Candidate, Decision, Evidence

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "benchmarks" / "regret"
SCORES = ROOT / "benchmarks" / "regret.json"
KNOWLEDGE = ROOT / "transferkit" / "knowledge" / "gain_model.json"

MODEL = "packaged/tf_efficientnet_lite0"
SIZE = 96
LEVELS = {5: 3, 20: 3, 100: 2, 1000: 1}
"""Images per class at most -> draws of them."""

MOST_IMAGES = 2000
GROWTH = 1.3
"""A level counts as new where it has this many times the images of the one before: small tasks run out of images."""

RESAMPLES = 10_000

PACE = 0.002
"""Seconds per image of the frozen pass: what costs are reckoned with, which no policy here heeds."""

RIDGE = 0.01
"""Penalty of the gain model's least squares, as a share of each covariate's own size."""

DOUBTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Factors on the errors of measured gains to choose from; of equals the smallest."""

LEAST_DIFFERING = 0.02
"""Share of test images that a probe or what became of it alone names right, at least: no gain is known exactly."""

FIRST_VARIANCE, ROUNDS = 0.04, 50
"""Where the search for the variance of gains begins, and how long it goes on."""

LEAST_VARIANCE = 0.02**2
"""Of a gain around what is expected of it, in units of the spread: about a point on a middling task."""


# ---- Running every strategy ------------------------------------------------------------------------------------------


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of up to `per_class` images of each class, and no more than `MOST_IMAGES` in all."""
    rng = np.random.default_rng(seed)
    per_class = min(per_class, MOST_IMAGES // len(np.unique(labels)))
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def shrink(data: Data, per_class: int, seed: int) -> Data:
    """The same data with only so many of its training images, as `draw` draws them; the test images stay."""
    train = data.indices("train")
    chosen = train[draw(data.labels[train], per_class, seed)]
    small = pick(data, np.sort(np.concatenate([chosen, data.indices("test")])))
    classes = data.summary.num_classes
    counts = {
        split: tuple(np.bincount(small.labels[small.splits == split], minlength=classes).tolist())
        for split in ("train", "test")
    }
    small.summary = replace(data.summary, counts=counts)
    return small


def pick(data: Data, kept: np.ndarray) -> Data:
    """These of its images, in this order; the summary is that of all."""
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
    """What a linear head may read."""
    return (*stages, JOINED, SELECTED)


def fit(looked: Survey, data: Data, stages: Sequence[str], stage: str, head: str) -> tuple[list[HeadFit], float]:
    """Heads on one representation, and the seconds they took (selecting features is timed in the evidence)."""
    decision = Decision(
        strategy="linear_probe", stage=stage, lr=0, lr_scale=0, norm="frozen", mode="given", reasons=("exhaustive",)
    )
    start = time.perf_counter()
    fits = fit_heads(
        STRATEGIES["linear_probe"](decision, stages),
        looked.table.take(looked.train),
        looked.labels,
        classes=data.summary.num_classes,
        head=head,
        selection=looked.selection,
    )
    return fits, time.perf_counter() - start


def fit_all(looked: Survey, data: Data, stages: Sequence[str], stage: str) -> dict[str, dict[str, Any]]:
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
            "held_back": round(found.accuracy, 4),
            "log_loss": round(found.log_loss, 4),
            "test": round(float(((features @ found.weight.T + found.bias).argmax(1) == data.labels[test]).mean()), 4),
            "seconds": round(max(seconds[found.name], 0.0), 2),
            "kept": found is kept,
        }
        for found in fits
    }


def lean(evidence: Evidence) -> dict[str, Any]:
    """What `weigh` and `rule` read of it."""
    return {
        "probes": [
            {key: round(value, 5) if isinstance(value, float) else value for key, value in to_json(score).items()}
            for score in evidence.probes
        ],
        "similarity": evidence.similarity,
        "seconds": {phase: round(spent, 2) for phase, spent in evidence.seconds.items()},
    }


def run_cell(backbone: Any, data: Data, bank: FeatureBank, level: int, number: int) -> dict[str, Any]:
    small = shrink(data, level, number)
    looked = survey(backbone, small, bank=bank, pooling="avg+max", progress=False)
    stages = [stage.name for stage in backbone.stages]
    strategies: dict[str, dict[str, Any]] = {}
    for stage in representations(stages):
        strategies |= fit_all(looked, small, stages, stage)
    return {
        "level": level,
        "draw": number,
        "images": len(looked.train),
        "evidence": lean(looked.evidence),
        "strategies": strategies,
    }


def write(path: Path, plain: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(path)


def run(tasks: Path, cache: str | None, only: str | None) -> None:
    backbone, bank = load_backbone(MODEL, image_size=SIZE), FeatureBank(cache)
    CELLS.mkdir(parents=True, exist_ok=True)
    names = sorted(path.parent.name for path in tasks.glob("*/task.json"))
    for name in [name for name in names if only is None or name in only.split(",")]:
        described = json.loads((tasks / name / "task.json").read_text(encoding="utf-8"))
        path = CELLS / f"{name}.json"
        data = open_data(tasks / name, progress=False)
        done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if done is None or done["content"] != described["content"]:
            done = {
                "script": "scripts/bench_regret.py",
                "date": date.today().isoformat(),
                "machine": environment(seed=0, device="cpu"),
                "task": name,
                "kind": described["kind"],
                "copy_of": described["copy_of"],
                "content": described["content"],
                "model": f"{MODEL} at {SIZE} px",
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


# ---- Fine-tuning -----------------------------------------------------------------------------------------------------


def tune(tasks: Path, cache: str | None, only: str | None, strategies: Sequence[str], levels: Sequence[int]) -> None:
    """Fine-tune in the first draw of every cell of some levels, level by level; the cells must have been run."""
    backbone, bank = load_backbone(MODEL, image_size=SIZE), FeatureBank(cache)
    for level in levels:
        for path in sorted(CELLS.glob("*.json")):
            task = json.loads(path.read_text(encoding="utf-8"))
            if only is not None and task["task"] not in only.split(","):
                continue
            for cell in (cell for cell in task["cells"] if (cell["level"], cell["draw"]) == (level, 0)):
                missing = [name for name in strategies if name not in cell.get("tuned", {})]
                if not missing:
                    continue
                data = open_data(tasks / task["task"], progress=False)
                small = shrink(data, level, 0)
                found = survey(backbone, small, bank=bank, pooling="avg+max", progress=False)
                for name in missing:
                    cell.setdefault("tuned", {})[name] = tune_cell(backbone, small, found, name)
                    # Another process may have filled in other levels meanwhile.
                    fresh = json.loads(path.read_text(encoding="utf-8"))
                    same = next(c for c in fresh["cells"] if (c["level"], c["draw"]) == (level, 0))
                    same.setdefault("tuned", {})[name] = cell["tuned"][name]
                    write(path, fresh)
                    print(task["task"], level, name, cell["tuned"][name], flush=True)


def tune_cell(backbone: Any, data: Data, found: Survey, strategy: str) -> dict[str, Any]:
    """What `adapt` with this strategy returns, on the test images; seconds are the processor's own."""
    recipe = Recipe()
    size = recipe.fitted(len(found.train)).batch_size
    start = starting_rate(backbone.spec, optimizer=recipe.optimizer, batch_size=size)
    decision = Decision(
        strategy=strategy,
        stage=TOP,
        lr=start.lr,
        lr_scale=start.scale,
        norm="frozen",
        mode="given",
        reasons=("all",),
        alternatives=weigh(found.evidence).options,
    )
    began = time.process_time()
    fitted = fit_decision(
        Looked(backbone, data, found, {}), decision, OPTIONS, head="auto", training=Training(recipe=recipe)
    )
    seconds = time.process_time() - began
    assert fitted.training is not None
    test = data.indices("test")
    pictures = (data.pixels(int(index), backbone.spec.preprocessing) for index in test)
    logits = logits_of(fitted.model, pictures, device=torch.device("cpu")).numpy()
    return {
        "test": round(float((logits.argmax(axis=1) == data.labels[test]).mean()), 5),
        "kept": fitted.training.kept.weight,
        "held_back": {
            str(candidate.weight): [
                round(value, 4) for value in (candidate.accuracy, candidate.log_loss, candidate.gain_error)
            ]
            for candidate in fitted.training.candidates
        },
        "epochs": [fitted.training.best_epoch + 1, recipe.fitted(len(found.train)).epochs],
        "lr_factor": fitted.training.lr_factor,
        "seconds": round(seconds, 1),
    }


OPTIONS = Options(
    image_size=SIZE, batch_size=None, seed=0, checkpoint=None, pretrained=True, preprocessing=None, root=None, val=0.0,
    test=0.2, strict=False, preprocessed=False, pooling="avg+max", class_weight="none", similarity=None, cache=None,
    cache_limit=None, device="cpu", progress=False,
)  # fmt: skip


# ---- What was run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One task at one number of images.

    Args:
        strategies: Linear heads: "<stage> <head>" -> what came of it.
        tuned: Ways of fine-tuning: name -> what came of it.
    """

    task: str
    family: str
    evidence: Evidence
    level: int
    test_images: int
    strategies: dict[str, dict[str, Any]]
    tuned: dict[str, dict[str, Any]]

    @property
    def best(self) -> float:
        return max(found["test"] for found in (*self.strategies.values(), *self.tuned.values()))

    @property
    def exhaustive(self) -> float:
        """Seconds to do everything: each head of each representation once, and every way of fine-tuning."""
        fitted = (found["seconds"] for name, found in self.strategies.items() if not name.endswith(" average"))
        tuned = (found["seconds"] for found in self.tuned.values())
        return self.evidence.seconds["selection"] + sum(fitted) + sum(tuned)

    def kept(self, stage: str) -> str:
        """The head that `adapt` keeps where the stage is decided and the head is not."""
        return next(name for name, found in self.strategies.items() if found["kept"] and name.startswith(f"{stage} "))

    def seconds(self, stage: str) -> float:
        """To fit all heads on a representation."""
        return max(found["seconds"] for name, found in self.strategies.items() if name.startswith(f"{stage} "))

    def pilot(self, strategy: str) -> Pilot:
        """What its trial says."""
        found = self.tuned[strategy]
        probe, kept = (
            Candidate(name=name, weight=weight, accuracy=accuracy, log_loss=loss, gain_error=error)
            for name, weight in (("probe", 0.0), ("kept", found["kept"]))
            for accuracy, loss, error in [found["held_back"][str(weight)]]
        )
        return Pilot(kept, probe, self.evidence.data.train_images)

    def trial_seconds(self, strategy: str) -> float:
        """Of all that it took, what went into the folds and not into the last fit on all images."""
        found, images = self.tuned[strategy], self.evidence.data.train_images
        best, epochs = found["epochs"]
        trial = usual_passes(images) * epochs
        return found["seconds"] * trial / (trial + best * (found["kept"] > 0))


def read_cells() -> list[Cell]:
    tasks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]
    return [
        Cell(
            task=task["task"],
            family=task["copy_of"] or task["task"],
            evidence=restore(task, cell),
            level=cell["level"],
            test_images=task["test_images"],
            strategies=cell["strategies"],
            tuned=cell.get("tuned", {}),
        )
        for task in tasks
        for cell in task["cells"]
    ]


def with_only(cells: Sequence[Cell], names: Iterable[str]) -> list[Cell]:
    """The cells in which these ways of fine-tuning were all run, as if there had been no others."""
    wanted = set(names)
    return [
        replace(cell, tuned={name: found for name, found in cell.tuned.items() if name in wanted})
        for cell in cells
        if wanted <= set(cell.tuned)
    ]


def tuned_everywhere(cells: Sequence[Cell]) -> set[str]:
    """The ways of fine-tuning that were run on every task."""
    tasks = {cell.task: set[str]() for cell in cells}
    for cell in cells:
        tasks[cell.task] |= set(cell.tuned)
    return set.intersection(*tasks.values())


def as_weighed(cells: Sequence[Cell]) -> list[Cell]:
    """Without what `adapt` does not weigh: it teaches nothing that is asked for."""
    return [replace(cell, tuned={n: f for n, f in cell.tuned.items() if n in TUNED_SHARES}) for cell in cells]


def restore(task: Mapping[str, Any], cell: Mapping[str, Any]) -> Evidence:
    """As much of the evidence as decisions need."""
    images, classes = cell["images"], task["classes"]
    counts = [images // classes + (label < images % classes) for label in range(classes)]
    plain = {
        "backbone": {
            "name": task["model"],
            "source": "packaged",
            "architecture": task["model"],
            "preprocessing": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
            "pretrained": True,
            "stages": [{"name": name, "channels": 1, "stride": None} for name in task["stages"]],
        },
        "data": {
            "origin": task["task"],
            "classes": [str(label) for label in range(classes)],
            "counts": {"train": counts},
            "split_rule": "",
        },
        "pooling": "avg+max",
        "image_size": SIZE,
        "image_seconds": PACE,
        **cell["evidence"],
    }
    return from_json(Evidence, plain)


# ---- Learning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """One strategy in one cell.

    Args:
        kind: "stage", "selected", or the name of a fine-tuning strategy, whose gain is that of what `adapt` returns.
        covariates: As `Situation` makes them.
        gain: The true one, on test images: of a probe in units of the spread, of fine-tuning as a share of errors.
        noise: Variance of `gain` from the number of test images.
    """

    kind: str
    task: str
    covariates: tuple[float, ...]
    gain: float
    noise: float


def lessons(cell: Cell) -> list[Lesson]:
    """What a cell teaches of every strategy within reach of the joined probe."""
    joined = cell.evidence.probe(JOINED)
    images = cell.evidence.data.train_images
    situation = Situation(
        images=images,
        classes=cell.evidence.data.num_classes,
        accuracy=joined.accuracy,
        similarity=cell.evidence.similarity,
    )
    base = cell.strategies[f"{JOINED} ridge"]["test"]
    found = []
    stages = [stage.name for stage in cell.evidence.backbone.stages]
    for stage in (*stages, SELECTED):
        score = cell.evidence.probe(stage)
        assert score.gain_error is not None
        measured = Belief(mean=score.accuracy - joined.accuracy, error=score.gain_error)
        if situation.within_reach(measured):
            error = measured.error / situation.spread
            found.append(
                Lesson(
                    kind=SELECTED if stage == SELECTED else "stage",
                    task=cell.task,
                    covariates=situation.covariates(
                        stages.index(stage) / (len(stages) - 1) if stage in stages else 1.0
                    ),
                    gain=(cell.strategies[f"{stage} ridge"]["test"] - base) / situation.spread,
                    noise=error**2 * images / cell.test_images,
                )
            )
    return [*found, *(tuning_lesson(cell, situation, strategy) for strategy in cell.tuned)]


def tuning_lesson(cell: Cell, situation: Situation, strategy: str) -> Lesson:
    """The share of the errors of the probe on selected features that a way of fine-tuning took away."""
    probe = cell.evidence.probe(SELECTED).accuracy
    left = max(1 - probe, LEAST_LEFT)
    gained = cell.tuned[strategy]["test"] - cell.strategies[cell.kept(SELECTED)]["test"]
    differing = max(abs(gained), LEAST_DIFFERING)
    return Lesson(
        kind=strategy,
        task=cell.task,
        covariates=situation.tuning_covariates,
        gain=gained / left,
        noise=differing / cell.test_images / left**2,
    )


def learn(cells: Sequence[Cell]) -> GainModel:
    """Least squares on the gains that the tasks really had, every task weighing the same."""
    taught = [lesson for cell in cells for lesson in lessons(cell)]
    kinds = sorted({lesson.kind for lesson in taught})
    fits = {kind: regress([lesson for lesson in taught if lesson.kind == kind]) for kind in kinds}
    model = GainModel(
        coefficients={kind: weights for kind, (weights, _) in fits.items()},
        spread={kind: left for kind, (_, left) in fits.items()},
    )

    of_probes = {kind: weights for kind, weights in model.coefficients.items() if kind not in STRATEGIES}

    def lost(doubt: float) -> float:
        doubting = replace(model, coefficients=of_probes, doubt=doubt)
        stages = [weigh(cell.evidence, knowledge=doubting).stage for cell in cells]
        return by_task(
            cells, [-cell.strategies[f"{stage} ridge"]["test"] for cell, stage in zip(cells, stages, strict=True)]
        )

    return replace(model, doubt=min(DOUBTS, key=lost))


def weigh_tasks(seen: Sequence[Lesson]) -> np.ndarray:
    tasks = [lesson.task for lesson in seen]
    weights = np.array([1 / tasks.count(task) for task in tasks])
    return weights / weights.sum()


def regress(seen: Sequence[Lesson]) -> tuple[tuple[float, ...], float]:
    """Coefficients, and the standard deviation of what they leave unexplained beyond the noise of the test.

    Lessons count by their precision, which depends on that deviation: both are brought into agreement (Paule & Mandel,
    1982, with a weight for every task).
    """
    design = np.array([lesson.covariates for lesson in seen])
    gains, noise = (np.array([getattr(lesson, name) for lesson in seen]) for name in ("gain", "noise"))
    tasks, left = weigh_tasks(seen), FIRST_VARIANCE
    for _ in range(ROUNDS):
        weights = tasks / (noise + left)
        weights = weights / weights.sum()
        penalty = RIDGE * np.diag(weights @ design**2)
        found = np.linalg.solve(design.T @ (weights[:, None] * design) + penalty, design.T @ (weights * gains))
        left = max(float(weights @ ((gains - design @ found) ** 2 - noise)), LEAST_VARIANCE)
    return tuple(round(float(weight), 4) for weight in found), round(float(np.sqrt(left)), 4)


# ---- Policies --------------------------------------------------------------------------------------------------------

Outcome = tuple[float, float]
"""Test accuracy, and seconds after the frozen pass."""

Policy = Callable[[Cell, Sequence[Cell]], Outcome]
"""A cell, and the cells of other families to learn from."""

LOOKING = ("similarity", "probe", "selection")
"""Phases of the survey after the frozen pass that a decision needs."""


def take(cell: Cell, strategy: str, *, looked: bool = False, seconds: float | None = None) -> Outcome:
    """Accuracy of a strategy, and the seconds that it and looking for it took."""
    if strategy in cell.tuned:
        found = cell.tuned[strategy]
        return found["test"], found["seconds"] + sum(cell.evidence.seconds[phase] for phase in LOOKING)
    spent = cell.strategies[strategy]["seconds"] if seconds is None else seconds
    if looked:
        spent += sum(cell.evidence.seconds[phase] for phase in LOOKING)
    elif strategy.startswith(SELECTED):
        spent += cell.evidence.seconds["selection"]
    return cell.strategies[strategy]["test"], spent


def take_stage(cell: Cell, stage: str, *, looked: bool = False) -> Outcome:
    """The same, the head chosen as `adapt` chooses it."""
    return take(cell, cell.kept(stage), looked=looked, seconds=cell.seconds(stage))


def take_decided(cell: Cell, decision: Decision) -> Outcome:
    """What `adapt` returns for a decision."""
    if decision.strategy == "linear_probe":
        return take_stage(cell, decision.stage, looked=True)
    return take(cell, decision.strategy)


def by_evidence(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=evidence`, with coefficients from the other families."""
    return take_decided(cell, weigh(cell.evidence, knowledge=learned_from(others)))


def by_search(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=search`, advised likewise; its trials are the folds that were run."""
    tried = []

    def begin(option: Alternative) -> Pilot:
        tried.append(option.strategy)
        return cell.pilot(option.strategy)

    decision = search(
        cell.evidence, begin, decide=functools.partial(weigh, knowledge=learned_from(others)), progress=False
    )
    accuracy, seconds = take_decided(cell, decision)
    return accuracy, seconds + sum(cell.trial_seconds(name) for name in tried if name != decision.strategy)


def by_measurement(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """The highest held-back accuracy among the ridge probes, nothing learnt from other tasks."""
    scores = [score for score in cell.evidence.probes if score.method == "ridge"]
    return take_stage(cell, max(scores, key=lambda score: score.accuracy).stage, looked=True)


def by_rule(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=rule`; where it wants fine-tuning that was not run, its linear classifier on the top stage."""
    advice = rule_of(cell)
    if advice.strategy in cell.tuned:
        return take(cell, advice.strategy)
    return take_stage(cell, advice.stage if advice.strategy == "linear_probe" else TOP)


def rule_of(cell: Cell) -> Decision:
    assert cell.evidence.similarity is not None
    return rule(
        images=cell.evidence.data.train_images,
        per_class=cell.evidence.data.train_per_class,
        similarity=cell.evidence.similarity,
        stages=tuple(stage.name for stage in cell.evidence.backbone.stages),
    )


def always(strategy: str) -> Policy:
    """One strategy whatever the task; its ridge head where a class of one image allows no other."""
    ridge = f"{strategy.rpartition(' ')[0]} ridge"
    return lambda cell, others: take(cell, strategy if strategy in (*cell.strategies, *cell.tuned) else ridge)


def always_stage(stage: str) -> Policy:
    return lambda cell, others: take_stage(cell, stage)


def best_constant(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """The strategy with the least mean regret on the other families, where all that was done here was done."""
    return always(constant_from(with_only(others, cell.tuned)))(cell, others)


def by_cross_validation(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """Do everything, take the highest held-back accuracy."""
    scores = {name: (-found["held_back"], found["log_loss"]) for name, found in cell.strategies.items()}
    scores |= {name: (-cell.pilot(name).kept.accuracy, cell.pilot(name).kept.log_loss) for name in cell.tuned}
    best = min(scores, key=lambda name: scores[name])
    return (cell.tuned if best in cell.tuned else cell.strategies)[best]["test"], cell.exhaustive


def at_random(cell: Cell, others: Sequence[Cell]) -> Outcome:
    found = (*cell.strategies.values(), *cell.tuned.values())
    return statistics.fmean(one["test"] for one in found), statistics.fmean(one["seconds"] for one in found)


POLICIES: dict[str, Policy] = {
    "mode=evidence": by_evidence,
    "highest measured probe": by_measurement,
    "mode=rule": by_rule,
    "best constant": best_constant,
    "always selected, head=auto": always_stage(SELECTED),
    "always selected, ridge": always(f"{SELECTED} ridge"),
    "always selected, average of heads": always(f"{SELECTED} average"),
    "always joined, head=auto": always_stage(JOINED),
    "always joined, ridge": always(f"{JOINED} ridge"),
    "always top stage, head=auto": always_stage(TOP),
    "always top stage, logistic": always(f"{TOP} logistic"),
    "cross-validation of everything": by_cross_validation,
    "random": at_random,
}


def policies_for(cells: Sequence[Cell]) -> dict[str, Policy]:
    """With those that need fine-tuning, where there is any."""
    tuned = sorted(set.intersection(*(set(cell.tuned) for cell in cells)))
    return POLICIES | ({"mode=search": by_search} if tuned else {}) | {f"always {name}": always(name) for name in tuned}


_learned: dict[tuple[str, ...], GainModel] = {}
_constants: dict[tuple[str, ...], str] = {}


def _key(cells: Sequence[Cell]) -> tuple[str, ...]:
    tuned = sorted({name for cell in cells for name in cell.tuned})
    return (str(len(cells)), *sorted({cell.family for cell in cells}), *tuned)


def learned_from(cells: Sequence[Cell]) -> GainModel:
    key = _key(cells)
    if key not in _learned:
        _learned[key] = learn(cells)
    return _learned[key]


def constant_from(cells: Sequence[Cell]) -> str:
    key = _key(cells)
    if key not in _constants:
        names = max(([*cell.strategies, *cell.tuned] for cell in cells), key=len)

        def regret(name: str) -> float:
            return by_task(cells, [cell.best - always(name)(cell, ())[0] for cell in cells])

        _constants[key] = min(names, key=regret)
    return _constants[key]


# ---- Scoring ---------------------------------------------------------------------------------------------------------


def task_means(cells: Sequence[Cell], values: Sequence[float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for cell, value in zip(cells, values, strict=True):
        found.setdefault(cell.task, []).append(value)
    return {task: statistics.fmean(inside) for task, inside in found.items()}


def by_task(cells: Sequence[Cell], values: Sequence[float]) -> float:
    return statistics.fmean(task_means(cells, values).values())


def interval(cells: Sequence[Cell], values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over tasks; a task and its copies are drawn together."""
    means = task_means(cells, values)
    families = {cell.task: cell.family for cell in cells}
    groups = [
        [mean for task, mean in means.items() if families[task] == family] for family in sorted(set(families.values()))
    ]
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    resampled = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return float(np.quantile(resampled, 0.025)), float(np.quantile(resampled, 0.975))


def score(cells: Sequence[Cell], known: Sequence[Cell]) -> dict[str, Any]:
    """Every policy's regrets, each task judged by what the cells `known` teach without its family."""
    others = {family: [cell for cell in known if cell.family != family] for family in {c.family for c in cells}}
    taken = {
        name: [policy(cell, others[cell.family]) for cell in cells] for name, policy in policies_for(cells).items()
    }
    exhaustive = sum(cell.exhaustive for cell in cells)
    reference = [
        100 * (cell.best - accuracy) for cell, (accuracy, _) in zip(cells, taken["best constant"], strict=True)
    ]
    rows = {}
    for name, outcomes in taken.items():
        regrets = [100 * (cell.best - accuracy) for cell, (accuracy, _) in zip(cells, outcomes, strict=True)]
        saved = [mine - theirs for mine, theirs in zip(regrets, reference, strict=True)]
        means = task_means(cells, regrets)
        rows[name] = {
            "mean": round(by_task(cells, regrets), 2),
            "interval": [round(bound, 2) for bound in interval(cells, regrets)],
            "worst task": [max(means, key=means.__getitem__), round(max(means.values()), 2)],
            "less best constant": round(by_task(cells, saved), 2),
            "less best constant, interval": [round(bound, 2) for bound in interval(cells, saved)],
            "share of exhaustive time": round(sum(seconds for _, seconds in outcomes) / exhaustive, 3),
            "by images per class": {
                str(level): round(
                    by_task(
                        *zip(*((c, r) for c, r in zip(cells, regrets, strict=True) if c.level == level), strict=True)
                    ),
                    2,
                )
                for level in sorted({cell.level for cell in cells})
            },
        }
    return rows


def expectation_errors(cells: Sequence[Cell]) -> dict[str, float]:
    """Root mean squared error, in points, of the accuracy expected of each probe: ours, and two plainer ones."""
    ours, measured, baseline, tuned = [], [], [], []
    for family in sorted({cell.family for cell in cells}):
        known = [cell for cell in cells if cell.family != family]
        lines = fit_baseline(known)
        for cell in (cell for cell in cells if cell.family == family):
            decision = weigh(cell.evidence, knowledge=learned_from(known))
            assert decision.expected is not None
            for option in (decision.expected, *decision.alternatives):
                if option.strategy in cell.tuned:
                    tuned.append((cell.task, 100 * (option.expected_accuracy - cell.tuned[option.strategy]["test"])))
                if option.strategy != "linear_probe":
                    continue
                truth = cell.strategies[f"{option.stage} ridge"]["test"]
                ours.append((cell.task, 100 * (option.expected_accuracy - truth)))
                measured.append((cell.task, 100 * (cell.evidence.probe(option.stage).accuracy - truth)))
                baseline.append((cell.task, 100 * (baseline_covariates(cell) @ lines[option.stage] - truth)))
    return {
        "weighed (leave one family out)": root_mean_square(ours),
        "held-back accuracy alone": root_mean_square(measured),
        "joined probe's accuracy + log n, per strategy (leave one family out)": root_mean_square(baseline),
        "of fine-tuning (leave one family out)": root_mean_square(tuned),
    }


def baseline_covariates(cell: Cell) -> np.ndarray:
    return np.array([1.0, cell.evidence.probe(JOINED).accuracy, np.log10(cell.evidence.data.train_images)])


def fit_baseline(cells: Sequence[Cell]) -> dict[str, np.ndarray]:
    design = np.stack([baseline_covariates(cell) for cell in cells])
    stages = [score.stage for score in cells[0].evidence.probes if score.method == "ridge"]
    return {
        stage: np.linalg.lstsq(design, np.array([c.strategies[f"{stage} ridge"]["test"] for c in cells]), rcond=None)[0]
        for stage in stages
    }


def relative_costs(cells: Sequence[Cell]) -> dict[str, float]:
    """Way of fine-tuning -> its seconds in those of `lp_ft` in the same cells, the geometric mean."""
    ratios: dict[str, list[float]] = {}
    for cell in (cell for cell in cells if "lp_ft" in cell.tuned):
        for name, found in cell.tuned.items():
            ratios.setdefault(name, []).append(found["seconds"] / cell.tuned["lp_ft"]["seconds"])
    return {name: round(statistics.geometric_mean(inside), 2) for name, inside in sorted(ratios.items())}


def root_mean_square(errors: Sequence[tuple[str, float]]) -> float | None:
    if not errors:
        return None
    tasks: dict[str, list[float]] = {}
    for task, error in errors:
        tasks.setdefault(task, []).append(error**2)
    return round(float(np.sqrt(statistics.fmean(statistics.fmean(inside) for inside in tasks.values()))), 2)


# ---- Command line ----------------------------------------------------------------------------------------------------


def write_knowledge(cells: Sequence[Cell]) -> None:
    model = learn(as_weighed(cells))
    plain = {
        "version": 1,
        "script": "scripts/bench_regret.py",
        "date": date.today().isoformat(),
        "tasks": sorted({cell.task for cell in cells}),
        "coefficients": model.coefficients,
        "spread": model.spread,
        "doubt": model.doubt,
    }
    KNOWLEDGE.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    print(KNOWLEDGE.relative_to(ROOT))


def write_scores(cells: Sequence[Cell]) -> None:
    weighed, alone = with_only(cells, TUNED_SHARES), [replace(cell, tuned={}) for cell in cells]
    whole, known = with_only(cells, tuned_everywhere(cells)), as_weighed(cells)
    tables = {
        "all ways of fine-tuning": part(whole, cells),
        "ways that are weighed": part(weighed, known),
        "linear heads alone": part(alone, alone),
    }
    found = {
        "script": "scripts/bench_regret.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "model": f"{MODEL} at {SIZE} px",
        "tasks": sorted({cell.task for cell in cells}),
        **tables,
        "below the probe on held-back images": [
            f"{cell.task} {cell.level} {name}"
            for cell in cells
            for name in cell.tuned
            if cell.pilot(name).gain.mean < 0
        ],
        "error of expected accuracies, points": expectation_errors(known),
    }
    SCORES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, scored in tables.items():
        print(f"{name}, {scored['cells']} cells:\n\n{table(scored['policies'])}\n")
    print(f"Test accuracy, %:\n\n{gains_table(weighed, TUNED_SHARES)}\n\n{gains_table(whole, whole[0].tuned)}")


def part(cells: Sequence[Cell], known: Sequence[Cell]) -> dict[str, Any]:
    """One table's worth."""
    asked = [rule_of(cell).strategy for cell in cells]
    return {
        "cells": len(cells),
        "ways of fine-tuning": sorted(cells[0].tuned),
        "seconds in those of lp_ft": relative_costs(cells),
        "policies": score(cells, known),
        "best constant": constant_from(cells),
        "cells where the rule asks for fine-tuning": len([name for name in asked if name != "linear_probe"]),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown, as docs/regret.md shows it."""
    lines = [
        "| policy | mean regret | 95 % interval | worst task | against best constant | 95 % interval | share of time |",
        "|-|-|-|-|-|-|-|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["mean"]):
        low, high = row["interval"]
        less_low, less_high = row["less best constant, interval"]
        task, worst = row["worst task"]
        lines.append(
            f"| {name} | {row['mean']:.2f} | {low:.2f} to {high:.2f} | {worst:.1f} ({task}) "
            f"| {row['less best constant']:+.2f} | {less_low:+.2f} to {less_high:+.2f} "
            f"| {100 * row['share of exhaustive time']:.0f} % |"
        )
    return "\n".join(lines)


def gains_table(cells: Sequence[Cell], ways: Iterable[str]) -> str:
    """The best probe's accuracy and what each way of fine-tuning made of it; farthest from the source first."""
    levels, shown = sorted({cell.level for cell in cells}), ", ".join(["probe", *ways])
    lines = [
        f"| task | similarity | {' | '.join(f'{level} per class: {shown}' for level in levels)} |",
        "|-|-|" + "-|" * len(levels),
    ]
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append(cell)
    near = {
        task: statistics.fmean(cell.evidence.similarity or 0.0 for cell in inside) for task, inside in tasks.items()
    }
    for task in sorted(tasks, key=near.__getitem__):
        found = {cell.level: gains_of(cell, ways) for cell in tasks[task]}
        lines.append(f"| {task} | {near[task]:.2f} | {' | '.join(found.get(level, '') for level in levels)} |")
    return "\n".join(lines)


def gains_of(cell: Cell, ways: Iterable[str]) -> str:
    tuned = ", ".join(f"{100 * cell.tuned[name]['test']:.1f}" for name in ways)
    return f"{100 * cell.strategies[cell.kept(SELECTED)]['test']:.1f}: {tuned}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="fit every strategy on every task; takes up where it was stopped")
    tuning = verbs.add_parser("tune", help="fine-tune in the first draw of every cell that was run")
    tuning.add_argument("--strategies", default="lp_ft,few_layers", help="with commas")
    tuning.add_argument("--levels", default="20,100,5,1000", help="images per class at most, in this order")
    for verb in (running, tuning):
        verb.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
        verb.add_argument("--only", help="names of tasks, with commas")
        verb.add_argument("--cache", help="folder of the feature bank")
    verbs.add_parser("score", help="score every policy on what was run, write benchmarks/regret.json")
    verbs.add_parser("learn", help="rewrite the gain model that ships with the package")
    options = parser.parse_args()
    if options.verb == "tune":
        levels = [int(level) for level in options.levels.split(",")]
        tune(options.tasks, options.cache, options.only, options.strategies.split(","), levels)
        return
    if options.verb == "run":
        run(options.tasks, options.cache, options.only)
        return
    cells = read_cells()
    if len({cell.family for cell in cells}) < 2:
        parser.error(f"{CELLS} holds too few tasks; call `run` first.")
    if options.verb == "learn":
        write_knowledge(cells)
    else:
        write_scores(cells)


if __name__ == "__main__":
    main()
