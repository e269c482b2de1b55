"""Regrets of every policy, on tasks that it was not fitted on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from regret.cells import Cell, by_task, task_means
from regret.policies import constant_from, learned_from, policies_for, rule_of
from transferkit.decision import weigh
from transferkit.records import JOINED

RESAMPLES = 10_000


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
    """Every policy's regrets, each task with models fitted on the cells `known` without its family."""
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


def expectation_errors(cells: Sequence[Cell]) -> dict[str, float | None]:
    """Root mean squared error, in points, of the expected accuracy of each probe: ours, and two baselines."""
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
                measured.append((cell.task, 100 * (cell.evidence.probe(option.stage).interval[0] - truth)))
                baseline.append((cell.task, 100 * (baseline_covariates(cell) @ lines[option.stage] - truth)))
    return {
        "weighed (leave one family out)": root_mean_square(ours),
        "held-back accuracy alone": root_mean_square(measured),
        "joined probe's accuracy + log n, per strategy (leave one family out)": root_mean_square(baseline),
        "of fine-tuning (leave one family out)": root_mean_square(tuned),
    }


def baseline_covariates(cell: Cell) -> np.ndarray:
    """Covariates of the baseline."""
    return np.array([1.0, cell.evidence.probe(JOINED).interval[0], np.log10(cell.evidence.data.train_images)])


def fit_baseline(cells: Sequence[Cell]) -> dict[str, np.ndarray]:
    """Stage -> a linear fit on these covariates."""
    design = np.stack([baseline_covariates(cell) for cell in cells])
    stages = [score.stage for score in cells[0].evidence.probes if score.method == "ridge"]
    return {
        stage: np.linalg.lstsq(design, np.array([c.strategies[f"{stage} ridge"]["test"] for c in cells]), rcond=None)[0]
        for stage in stages
    }


def relative_costs(cells: Sequence[Cell]) -> dict[str, float]:
    """Fine-tuning strategy -> its time relative to `lp_ft` in the same cells, geometric mean."""
    ratios: dict[str, list[float]] = {}
    for cell in (cell for cell in cells if "lp_ft" in cell.tuned):
        for name, found in cell.tuned.items():
            ratios.setdefault(name, []).append(found["seconds"] / cell.tuned["lp_ft"]["seconds"])
    return {name: round(statistics.geometric_mean(inside), 2) for name, inside in sorted(ratios.items())}


def root_mean_square(errors: Sequence[tuple[str, float]]) -> float | None:
    """Root mean square of pairs (task, error), with equal weight per task."""
    if not errors:
        return None
    tasks: dict[str, list[float]] = {}
    for task, error in errors:
        tasks.setdefault(task, []).append(error**2)
    return round(float(np.sqrt(statistics.fmean(statistics.fmean(inside) for inside in tasks.values()))), 2)


def part(cells: Sequence[Cell], known: Sequence[Cell]) -> dict[str, Any]:
    """The results for one table."""
    asked = [rule_of(cell).strategy for cell in cells]
    return {
        "cells": len(cells),
        "ways of fine-tuning": sorted(cells[0].tuned),
        "seconds in those of lp_ft": relative_costs(cells),
        "policies": score(cells, known),
        "best constant": constant_from(cells),
        "cells where the rule asks for fine-tuning": len([name for name in asked if name != "linear_probe"]),
    }
