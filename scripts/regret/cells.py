"""Finished cells: a cell is a task at one number of images per class and one draw of them, on one backbone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regret.paths import CELLS, MODEL, SIZE
from transferkit.core.serialization import from_json
from transferkit.decision import VAL_SHARE, Situation, default_folds, default_passes, refits
from transferkit.decision.completion import independent_share
from transferkit.decision.weighing import TUNED_SHARES
from transferkit.records import JOINED, Candidate, Evidence
from transferkit.workflow.search import Trial

PACE = 0.002
"""Seconds per image of the frozen pass, for estimates of cost, which no policy here uses."""


@dataclass(frozen=True)
class Cell:
    """One task at one number of images.

    Args:
        task: Its name.
        family: Its name, or that of its original if it is a copy.
        evidence: As much of it as decisions need.
        level: Images per class at most.
        test_images: How many there are.
        strategies: Linear heads: "<stage> <head>" -> result.
        tuned: Fine-tuning strategies: name -> result.
        model: The backbone's name.
    """

    task: str
    family: str
    evidence: Evidence
    level: int
    test_images: int
    strategies: dict[str, dict[str, Any]]
    tuned: dict[str, dict[str, Any]]
    model: str = MODEL

    @property
    def per_class(self) -> float:
        """Training images per class."""
        return self.evidence.data.train_per_class

    @property
    def independent(self) -> float:
        """Effective number of independent training images, as a share of them."""
        return independent_share(self.evidence)

    @property
    def situation(self) -> Situation:
        """The situation as known from the joined probe alone."""
        return Situation(
            images=self.evidence.data.train_images,
            classes=self.evidence.data.num_classes,
            accuracy=self.evidence.probe(JOINED).interval[0],
            similarity=self.evidence.similarity,
        )

    @property
    def best(self) -> float:
        """Test accuracy of the best strategy."""
        return max(found["test"] for found in (*self.strategies.values(), *self.tuned.values()))

    @property
    def exhaustive(self) -> float:
        """Seconds to run everything: each head of each representation once, and every fine-tuning strategy."""
        fitted = (found["seconds"] for name, found in self.strategies.items() if not name.endswith(" average"))
        tuned = (found["seconds"] for found in self.tuned.values())
        return self.evidence.seconds["selection"] + sum(fitted) + sum(tuned)

    def kept(self, stage: str) -> str:
        """The head that `adapt` keeps if the stage is fixed and the head is not."""
        return next(name for name, found in self.strategies.items() if found["kept"] and name.startswith(f"{stage} "))

    def seconds(self, stage: str) -> float:
        """Seconds to fit all heads on a representation."""
        return max(found["seconds"] for name, found in self.strategies.items() if name.startswith(f"{stage} "))

    def pilot(self, strategy: str) -> Trial:
        """The result of its trial."""
        found = self.tuned[strategy]
        probe, kept = (
            Candidate(name=name, weight=weight, accuracy=accuracy, log_loss=loss, gain_error=error)
            for name, weight in (("probe", 0.0), ("kept", found["kept"]))
            for accuracy, loss, error in [found["held_back"][str(weight)]]
        )
        return Trial(kept, probe, self.held_back(strategy))

    def held_back(self, strategy: str) -> int:
        """Held-back images of a fine-tuning strategy; if a run did not record them, those of its default folds."""
        images = self.evidence.data.train_images
        default = min(images, round(default_folds(images) * VAL_SHARE * images))
        return int(self.tuned[strategy].get("held_back_images", default))

    def trial_seconds(self, strategy: str) -> float:
        """Seconds spent on its folds, without a final fit on all images."""
        found, images = self.tuned[strategy], self.evidence.data.train_images
        best, epochs = found["epochs"]
        trial = default_passes(images) * epochs
        refitted = found["kept"] > 0 and refits(default_folds(images))
        return found["seconds"] * trial / (trial + best * refitted)


def read_cells() -> list[Cell]:
    """All finished cells, on all backbones, except those without held-back images."""
    tasks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("**/*.json"))]
    return [
        Cell(
            task=task["task"],
            family=task["copy_of"] or task["task"],
            evidence=restore(task, cell),
            level=cell["level"],
            test_images=task["test_images"],
            strategies=cell["strategies"],
            tuned=cell.get("tuned", {}),
            model=task["model"].partition(" at ")[0],
        )
        for task in tasks
        for cell in task["cells"]
        if all(score["accuracy"] is not None for score in cell["evidence"]["probes"])
    ]


def families_of(cells: Iterable[Cell]) -> list[str]:
    """Their names; a task and its corrupted copies are one family."""
    return sorted({cell.family for cell in cells})


def without_family(cells: Iterable[Cell], family: str) -> list[Cell]:
    """The cells of all other families."""
    return [cell for cell in cells if cell.family != family]


def with_only(cells: Sequence[Cell], names: Iterable[str]) -> list[Cell]:
    """The cells in which these fine-tuning strategies were all run, restricted to these."""
    wanted = set(names)
    return [
        replace(cell, tuned={name: found for name, found in cell.tuned.items() if name in wanted})
        for cell in cells
        if wanted <= set(cell.tuned)
    ]


def tuned_everywhere(cells: Sequence[Cell]) -> set[str]:
    """The fine-tuning strategies that were run on every task, of one backbone."""
    tasks = {cell.task: set[str]() for cell in cells}
    for cell in cells:
        tasks[cell.task] |= set(cell.tuned)
    return set.intersection(*tasks.values())


def as_weighed(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without strategies that `adapt` does not consider, which the gain model does not need."""
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
            "train_groups": cell.get("train_groups", []),
            "split_rule": "",
        },
        "pooling": "avg+max",
        "image_size": SIZE,
        "image_seconds": PACE,
        **cell["evidence"],
    }
    return from_json(Evidence, plain)


def task_means(cells: Sequence[Cell], values: Sequence[float]) -> dict[str, float]:
    """Task -> mean of the values of its cells."""
    found: dict[str, list[float]] = {}
    for cell, value in zip(cells, values, strict=True):
        found.setdefault(cell.task, []).append(value)
    return {task: statistics.fmean(inside) for task, inside in found.items()}


def by_task(cells: Sequence[Cell], values: Sequence[float]) -> float:
    """Mean over tasks of the means over their cells."""
    return statistics.fmean(task_means(cells, values).values())
