"""What knowing the gain of fine-tuning better could improve: `bench_regret.py limits`.

Every choice here is between the best probe and fine-tuning, made from expected gains that were fitted without the
cell's family; or from the true gains on the test images, which no evidence can beat.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from regret.calibrating import best_probe_of
from regret.cells import Cell, by_task, families_of, with_only, without_family
from regret.learning import regress, situation_covariates, tuning_lessons
from regret.paths import LIMITS, MODEL, SCRIPT
from regret.policies import learned_from
from regret.scoring import interval
from transferkit.core.provenance import environment
from transferkit.decision import weigh
from transferkit.decision.gains import LEAST_LEFT
from transferkit.decision.weighing import TUNED_SHARES, WORTH
from transferkit.records import JOINED, SELECTED, TOP

Covariates = Callable[[Cell], tuple[float, ...]]

FULL, CHEAP, FURTHER = "lp_ft", "few_layers", "norm_only"
"""The strategies that are weighed, and one that is not."""

THRESHOLDS = (0.0, WORTH, 0.01, 0.02, 0.03, 0.04)
"""Expected gain from which a network is fine-tuned."""


def accuracies(cell: Cell) -> dict[str, float]:
    """Stage -> held-back accuracy of its ridge probe."""
    return {score.stage: score.interval[0] for score in cell.evidence.probes if score.method == "ridge"}


def best_stage(cell: Cell) -> int:
    """Position of the single stage with the most accurate probe."""
    found = accuracies(cell)
    stages = [stage.name for stage in cell.evidence.backbone.stages]
    return max(range(len(stages)), key=lambda position: found[stages[position]])


def neighbours(cell: Cell) -> float:
    """Held-back accuracy of the nearest neighbours."""
    return next(score.interval[0] for score in cell.evidence.probes if score.method == "knn")


FURTHER_COVARIATES: dict[str, Callable[[Cell], float]] = {
    "accuracy of the joined probe": lambda cell: accuracies(cell)[JOINED],
    "gain of selected over joined features": lambda cell: (
        (accuracies(cell)[SELECTED] - accuracies(cell)[JOINED]) / cell.situation.spread
    ),
    "gain of the best stage over the top one": lambda cell: (
        (max(accuracies(cell).values()) - accuracies(cell)[TOP]) / cell.situation.spread
    ),
    "depth of the best stage": lambda cell: best_stage(cell) / (len(cell.evidence.backbone.stages) - 1),
    "top stage's probe over its nearest neighbours": lambda cell: (
        (accuracies(cell)[TOP] - neighbours(cell)) / cell.situation.spread
    ),
    "squared error of the joined probe": lambda cell: cell.evidence.probe(JOINED).squared_error or 0.0,
    "log of the number of classes": lambda cell: math.log(cell.situation.classes),
    "log of the number of images": lambda cell: math.log(cell.situation.images),
}


@dataclass(frozen=True)
class Known:
    """Cells with what is known of their best probes without their families.

    Args:
        cells: In all of them the strategies were run.
        fitted_on: Cells of all backbones.
        probe: (M,) test accuracy of the probe that would be chosen.
        left: (M,) its expected error rate, of which a gain is a share.
    """

    cells: tuple[Cell, ...]
    fitted_on: tuple[Cell, ...]
    probe: npt.NDArray[np.float64]
    left: npt.NDArray[np.float64]

    def tested(self, strategy: str) -> npt.NDArray[np.float64]:
        """(M,) test accuracies."""
        return np.array([cell.tuned[strategy]["test"] for cell in self.cells])

    def seconds(self, strategy: str) -> npt.NDArray[np.float64]:
        """(M,) seconds of fine-tuning."""
        return np.array([cell.tuned[strategy]["seconds"] for cell in self.cells])

    def mean(self, values: npt.NDArray[np.float64]) -> float:
        """Mean over tasks, in points."""
        return round(100 * by_task(self.cells, values.tolist()), 2)

    def expected(self, strategy: str, covariates: Covariates = situation_covariates) -> npt.NDArray[np.float64]:
        """(M,) expected gains over the probe, fitted without each cell's family."""
        found = {}
        for family in families_of(self.cells):
            others = without_family(self.fitted_on, family)
            model = learned_from(others)
            taught = [
                lesson
                for cell in others
                for lesson in tuning_lessons(cell, model, strategies=(strategy,), covariates=covariates)
            ]
            found[family] = np.array(regress(taught)[0])
        shares = [found[cell.family] @ np.array(covariates(cell)) for cell in self.cells]
        return np.array(shares) * self.left


def know(cells: Sequence[Cell], strategies: Sequence[str]) -> Known:
    """The main backbone's cells in which these strategies were run."""
    own = with_only([cell for cell in cells if cell.model == MODEL], strategies)
    probes = [
        best_probe_of(weigh(cell.evidence, knowledge=learned_from(without_family(cells, cell.family))).options)
        for cell in own
    ]
    return Known(
        cells=tuple(own),
        fitted_on=tuple(cells),
        probe=np.array(
            [cell.strategies[cell.kept(probe.stage)]["test"] for cell, probe in zip(own, probes, strict=True)]
        ),
        left=np.array([max(1 - probe.expected_accuracy, LEAST_LEFT) for probe in probes]),
    )


def choose(known: Known, expected: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """(M,) test accuracies of the strategy with the highest expected gain, or of the probe."""
    names = list(expected)
    gains = np.stack([expected[name] for name in names])
    outcomes = np.stack([known.tested(name) for name in names])
    best = gains.argmax(axis=0)
    columns = np.arange(len(best))
    return np.where(gains[best, columns] >= WORTH, outcomes[best, columns], known.probe)


def by_threshold(known: Known) -> list[dict[str, Any]]:
    """Accuracy and time when a network is fine-tuned from some expected, or true, gain on."""
    tuned, seconds, expected = known.tested(FULL), known.seconds(FULL), known.expected(FULL)
    rows = []
    for name, gains in (("expected", expected), ("true", tuned - known.probe)):
        for threshold in THRESHOLDS:
            is_tuned = gains >= threshold if threshold else gains > 0
            kept = np.where(is_tuned, tuned, known.probe)
            rows.append(
                {
                    "gain": name,
                    "from, points": 100 * threshold,
                    "cells fine-tuned": int(is_tuned.sum()),
                    "test accuracy": known.mean(kept),
                    f"more than always {FULL}": known.mean(kept - tuned),
                    "interval": [round(100 * bound, 2) for bound in interval(known.cells, (kept - tuned).tolist())],
                    "share of its time": round(float(seconds[is_tuned].sum() / seconds.sum()), 3),
                }
            )
    return rows


def by_covariates(known: Known) -> list[dict[str, Any]]:
    """Accuracy of the choice, and error of the expected gain, with one more covariate."""
    rows = []
    for name, further in {"none": None, **FURTHER_COVARIATES}.items():

        def covariates(cell: Cell, further: Callable[[Cell], float] | None = further) -> tuple[float, ...]:
            return situation_covariates(cell) if further is None else (*situation_covariates(cell), further(cell))

        expected = {strategy: known.expected(strategy, covariates) for strategy in (FULL, CHEAP)}
        errors = expected[FULL] - (known.tested(FULL) - known.probe)
        rows.append(
            {
                "further covariate": name,
                "test accuracy": known.mean(choose(known, expected)),
                f"error of the expected gain of {FULL}": round(
                    100 * math.sqrt(by_task(known.cells, (errors**2).tolist())), 2
                ),
            }
        )
    return rows


def by_menu(known: Known) -> list[dict[str, Any]]:
    """Accuracy of the choice from several menus, and of the best of each on the test images."""
    menus = ((FULL, CHEAP), (FULL,), (FULL, FURTHER), (FULL, CHEAP, FURTHER))
    rows, usual = [], None
    for menu in menus:
        chosen = choose(known, {name: known.expected(name) for name in menu})
        usual = chosen if usual is None else usual
        best = np.stack([known.probe, *(known.tested(name) for name in menu)]).max(axis=0)
        rows.append(
            {
                "menu": ", ".join(menu),
                "test accuracy": known.mean(chosen),
                "more than with the first": known.mean(chosen - usual),
                "interval": [round(100 * bound, 2) for bound in interval(known.cells, (chosen - usual).tolist())],
                "best on the test images": known.mean(best),
            }
        )
    return rows


def write_limits(cells: Sequence[Cell]) -> None:
    """Write benchmarks/regret_limits.json and print the tables of docs/regret.md."""
    weighed = know(cells, tuple(TUNED_SHARES))
    found: dict[str, Any] = {
        "script": SCRIPT,
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "cells": len(weighed.cells),
        "by threshold": by_threshold(weighed),
        "by covariates": by_covariates(weighed),
    }
    further = know(cells, (FULL, CHEAP, FURTHER))
    if further.cells:
        found |= {"cells of the menus": len(further.cells), "by menu": by_menu(further)}
    LIMITS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in ("by threshold", "by covariates", "by menu"):
        if name in found:
            print(f"{name}:\n\n{markdown(found[name])}\n")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of these rows."""
    lines = [f"| {' | '.join(rows[0])} |", "|-" * len(rows[0]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row.values()))} |" for row in rows)])
