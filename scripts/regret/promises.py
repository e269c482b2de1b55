"""Expected against test accuracies, each task evaluated with models fitted on the others."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from regret.calibrating import best_probe_of, error_of_test
from regret.cells import Cell, families_of, without_family
from regret.learning import learn
from regret.paths import PROMISES, SCRIPT
from transferkit.core.intervals import TWO_SIDED
from transferkit.core.provenance import environment
from transferkit.decision import GainModel, HeldBack, complete, conclude, weigh
from transferkit.records import Alternative, Choice

BEFORE_PROBE = "best probe, before it is fitted"
BEFORE_ANY_PROBE = "every ridge probe, before it is fitted"
BEFORE_TUNING = "fine-tuning, before it is done"
BEFORE_CHOSEN = "what mode=evidence chooses, before it is done"
AFTER_PROBE = "best probe, fitted"
AFTER_TUNING = "fine-tuning, done"
AFTER_CHOSEN = "what mode=evidence chooses, done"

SIZES = ((0, 8, "5"), (8, 30, "8 to 30"), (30, 80, "30 to 80"), (80, float("inf"), "80 or more"))
"""Images per class from, to, and their label in the table."""


@dataclass(frozen=True)
class Promise:
    """An expected accuracy, and the test accuracy.

    Args:
        said: Kind of expectation, for display.
        task: The task.
        model: The backbone.
        per_class: Training images per class.
        expected, low, high: Expected accuracy and its 95 % interval.
        test: Accuracy on the test images.
        error: Its standard error.
    """

    said: str
    task: str
    model: str
    per_class: float
    expected: float
    low: float
    high: float
    test: float
    error: float

    @property
    def miss(self) -> float:
        """Expected minus test accuracy."""
        return self.expected - self.test

    @property
    def is_kept(self) -> bool:
        """Whether the interval covers the test accuracy, allowing for the test's own error."""
        half = self.expected - self.low if self.miss > 0 else self.high - self.expected
        return bool(abs(self.miss) <= np.hypot(half, TWO_SIDED * self.error))


def promises_of(cell: Cell, model: GainModel) -> list[Promise]:
    """All expectations in a cell with this gain model."""
    choice = weigh(cell.evidence, knowledge=model)
    found = []

    def note(said: str, option: Alternative | None, test: float) -> None:
        if option is not None:
            found.append(_promise(said, cell, option, test))

    best = best_probe_of(choice.options)
    kept = cell.strategies[cell.kept(best.stage)]
    note(BEFORE_PROBE, best, kept["test"])
    images = kept.get("held_back_images", cell.evidence.data.train_images)
    fitted = _after(cell, best, model, HeldBack(accuracy=kept["held_back"], images=images, is_network=False))
    note(AFTER_PROBE, fitted, kept["test"])
    for option in choice.options:
        if option.strategy == "linear_probe":
            note(BEFORE_ANY_PROBE, option, cell.strategies[f"{option.stage} ridge"]["test"])
        elif option.strategy in cell.tuned:
            note(BEFORE_TUNING, option, cell.tuned[option.strategy]["test"])
    done = {name: _after_tuning(cell, name, model) for name in cell.tuned}
    for name, outcome in done.items():
        note(AFTER_TUNING, outcome, cell.tuned[name]["test"])
    if choice.strategy == "linear_probe":
        note(BEFORE_CHOSEN, choice.expected, kept["test"])
        note(AFTER_CHOSEN, fitted, kept["test"])
    elif choice.strategy in cell.tuned:
        note(BEFORE_CHOSEN, choice.expected, cell.tuned[choice.strategy]["test"])
        note(AFTER_CHOSEN, done[choice.strategy], cell.tuned[choice.strategy]["test"])
    return found


def _after_tuning(cell: Cell, strategy: str, model: GainModel) -> Alternative | None:
    kept, images = cell.pilot(strategy).kept, cell.held_back(strategy)
    option = Alternative(strategy=strategy, stage="top", expected_accuracy=0.5, low=0, high=1, cost_seconds=0)
    return _after(cell, option, model, HeldBack(accuracy=kept.accuracy, images=images, is_network=True))


def _after(cell: Cell, option: Alternative, model: GainModel, held_back: HeldBack) -> Alternative | None:
    """The expectation after an option was fitted."""
    choice = Choice(strategy=option.strategy, stage=option.stage, mode="given", reasons=("exhaustive",))
    decision = complete(choice, cell.evidence)
    return conclude(decision, cell.evidence, held_back, knowledge=model).expected


def _promise(said: str, cell: Cell, option: Alternative, test: float) -> Promise:
    return Promise(
        said=said,
        task=cell.task,
        model=cell.model,
        per_class=cell.per_class,
        expected=option.expected_accuracy,
        low=option.low,
        high=option.high,
        test=test,
        error=error_of_test(test, cell.test_images),
    )


def collect(cells: Sequence[Cell], known: Sequence[Cell]) -> list[Promise]:
    """All expectations in the cells, each family with a model fitted on `known` without it."""
    found = []
    for family in families_of(cells):
        model = learn(without_family(known, family))
        found += [one for cell in cells if cell.family == family for one in promises_of(cell, model)]
    return found


def summarise(promises: Sequence[Promise]) -> dict[str, Any]:
    """Means over cells; in points and shares."""
    tasks: dict[str, list[float]] = {}
    for one in promises:
        tasks.setdefault(one.task, []).append(100 * one.miss)
    return {
        "promises": len(promises),
        "expected less test, points": round(100 * statistics.fmean(one.miss for one in promises), 2),
        "the same, mean over tasks": round(statistics.fmean(map(statistics.fmean, tasks.values())), 2),
        "root mean square, points": round(100 * float(np.sqrt(np.mean([one.miss**2 for one in promises]))), 2),
        "covered": round(statistics.fmean(one.is_kept for one in promises), 3),
        "mean width of the interval, points": round(100 * statistics.fmean(o.high - o.low for o in promises), 1),
    }


def by_size(promises: Sequence[Promise]) -> dict[str, Any]:
    """All together, then by images per class."""
    found = {"all": summarise(promises)}
    for least, most, name in SIZES:
        inside = [one for one in promises if least <= one.per_class < most]
        if inside:
            found[name] = summarise(inside)
    return found


def report(promises: Sequence[Promise]) -> dict[str, Any]:
    """Kind of expectation -> its errors and coverage."""
    kinds = dict.fromkeys(one.said for one in promises)
    return {kind: by_size([one for one in promises if one.said == kind]) for kind in kinds}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown, as docs/regret.md shows it."""
    lines = [
        "| promise | images per class | promises | expected less test | root mean square | covered | mean width |",
        "|-|-|-|-|-|-|-|",
    ]
    for kind, sizes in found.items():
        for size, row in sizes.items():
            lines.append(
                f"| {kind} | {size} | {row['promises']} | {row['expected less test, points']:+.1f} "
                f"| {row['root mean square, points']:.1f} | {100 * row['covered']:.0f} % "
                f"| {row['mean width of the interval, points']:.0f} |"
            )
    return "\n".join(lines)


def models_of(cells: Iterable[Cell]) -> list[str]:
    """The backbones."""
    return sorted({cell.model for cell in cells})


def write_promises(cells: Sequence[Cell]) -> None:
    """Each backbone's expectations, fitted on all backbones without the task's family, and on the others alone."""
    models = models_of(cells)
    own = {model: report(collect([c for c in cells if c.model == model], cells)) for model in models}
    found: dict[str, Any] = {
        "script": SCRIPT,
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "tasks": sorted({cell.task for cell in cells}),
        "leave one family out": own,
    }
    if len(models) > 1:
        found["leave one backbone and one family out"] = {
            model: report(collect([c for c in cells if c.model == model], [c for c in cells if c.model != model]))
            for model in models
        }
    PROMISES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in list(found)[4:]:
        for model, kinds in found[name].items():
            print(f"{name}, {model}:\n\n{table(kinds)}\n")
