"""Fits the gain model and its calibration on the cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np

from regret.calibrating import best_probe_of, calibrate
from regret.cells import Cell, by_task
from regret.paths import KNOWLEDGE, ROOT, SCRIPT
from transferkit.core.serialization import to_json
from transferkit.decision import Belief, GainModel, weigh
from transferkit.decision.gains import LEAST_LEFT
from transferkit.decision.weighing import TUNED_SHARES
from transferkit.records import JOINED, SELECTED

RIDGE = 0.01
"""Penalty of the gain model's least squares, as a share of each covariate's own size."""


DOUBTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Candidate factors on the errors of measured gains; the smallest of equally good ones is chosen."""


LEAST_DIFFERING = 0.02
"""Minimum share of test images that only one of probe and result classifies correctly: no gain is known exactly."""


FIRST_VARIANCE, ROUNDS = 0.04, 50
"""Start of the search for the variance of gains, and its number of iterations."""


LEAST_VARIANCE = 0.02**2
"""Lower bound on the variance of a gain around its expectation, in squared units of the spread: about a point."""


@dataclass(frozen=True)
class Lesson:
    """One strategy in one cell.

    Args:
        kind: "stage", "selected", or the name of a fine-tuning strategy, with the gain of the model `adapt` returns.
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
    """Observations from a cell: one per strategy within reach of the joined probe."""
    joined, situation = cell.evidence.probe(JOINED), cell.situation
    base = cell.strategies[f"{JOINED} ridge"]["test"]
    found = []
    stages = [stage.name for stage in cell.evidence.backbone.stages]
    for stage in (*stages, SELECTED):
        score = cell.evidence.probe(stage)
        assert score.gain_error is not None
        measured = Belief(mean=score.interval[0] - joined.interval[0], error=score.gain_error)
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
                    noise=error**2 * situation.images / cell.test_images,
                )
            )
    return found


def situation_covariates(cell: Cell) -> tuple[float, ...]:
    """The gain model's covariates for gains of fine-tuning."""
    return cell.situation.tuning_covariates


def tuning_lessons(
    cell: Cell,
    model: GainModel,
    *,
    strategies: Collection[str] = tuple(TUNED_SHARES),
    covariates: Callable[[Cell], tuple[float, ...]] = situation_covariates,
) -> list[Lesson]:
    """The share of the best probe's errors removed by each of these fine-tuning strategies.

    Args:
        cell: A finished cell.
        model: Calibrated: the errors are expected ones, as when the share is applied.
        strategies: Those that `adapt` considers.
        covariates: Of the share.
    """
    probe = best_probe_of(weigh(cell.evidence, knowledge=model).options)
    left = max(1 - probe.expected_accuracy, LEAST_LEFT)
    found = []
    for strategy in (name for name in cell.tuned if name in strategies):
        outcome = cell.tuned[strategy]
        gained = outcome["test"] - cell.strategies[cell.kept(probe.stage)]["test"]
        differing = max(abs(gained), LEAST_DIFFERING)
        found.append(
            Lesson(
                kind=strategy,
                task=cell.task,
                covariates=covariates(cell),
                gain=gained / left,
                noise=differing / cell.test_images / left**2,
            )
        )
    return found


def learn(cells: Sequence[Cell]) -> GainModel:
    """Least squares on the true gains of the tasks, with equal weight per task.

    In the order in which they are used: gains of probes over the joined one, the factor on errors of measured gains,
        the
    calibration of held-back accuracies, and the gain of fine-tuning over the calibrated expectation of probes.
    """
    model = with_gains(GainModel(coefficients={}, spread={}), [lesson for cell in cells for lesson in lessons(cell)])

    def lost(doubt: float) -> float:
        stages = [weigh(cell.evidence, knowledge=replace(model, doubt=doubt)).stage for cell in cells]
        return by_task(
            cells, [-cell.strategies[f"{stage} ridge"]["test"] for cell, stage in zip(cells, stages, strict=True)]
        )

    model = replace(model, doubt=min(DOUBTS, key=lost))
    model = replace(model, calibration=calibrate(cells, model))
    return with_gains(model, [lesson for cell in cells for lesson in tuning_lessons(cell, model)])


def with_gains(model: GainModel, taught: Sequence[Lesson]) -> GainModel:
    """The model with coefficients fitted on the lessons, by kind."""
    fits = {
        kind: regress([lesson for lesson in taught if lesson.kind == kind])
        for kind in sorted({lesson.kind for lesson in taught})
    }
    return replace(
        model,
        coefficients={**model.coefficients, **{kind: weights for kind, (weights, _) in fits.items()}},
        spread={**model.spread, **{kind: left for kind, (_, left) in fits.items()}},
    )


def weigh_tasks(seen: Sequence[Lesson]) -> np.ndarray:
    """(N,) weights, equal in sum for every task, total 1."""
    tasks = [lesson.task for lesson in seen]
    weights = np.array([1 / tasks.count(task) for task in tasks])
    return weights / weights.sum()


def regress(seen: Sequence[Lesson]) -> tuple[tuple[float, ...], float]:
    """Coefficients, and the standard deviation of the residuals beyond the noise of the test.

    Lessons are weighted by their precision, which depends on that deviation: both are solved for consistently (Paule &
    Mandel, 1982, with a weight for every task).
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


def write_knowledge(cells: Sequence[Cell]) -> None:
    """Rewrite the packaged gain model."""
    model = learn(cells)
    plain = {
        "version": 2,
        "script": SCRIPT,
        "date": date.today().isoformat(),
        "models": sorted({cell.model for cell in cells}),
        "tasks": sorted({cell.task for cell in cells}),
        "coefficients": {kind: model.coefficients[kind] for kind in sorted(model.coefficients)},
        "spread": {kind: model.spread[kind] for kind in sorted(model.spread)},
        "doubt": model.doubt,
        "calibration": {kind: to_json(known) for kind, known in model.calibration.items()},
    }
    KNOWLEDGE.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    print(KNOWLEDGE.relative_to(ROOT))
