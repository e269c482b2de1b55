"""Errors of held-back accuracies against test accuracies, and the calibration that corrects them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from regret.cells import Cell
from transferkit.core.intervals import TWO_SIDED
from transferkit.decision import Belief, Calibration, GainModel, weigh
from transferkit.decision.calibration import smoothed_spread
from transferkit.decision.gains import NETWORK, PROBE
from transferkit.records import JOINED, SELECTED, Alternative

COVERED = 0.95
"""Target share of cells whose test accuracy the intervals cover, allowing for the test's own error."""

WIDENINGS = tuple(round(1 + 0.05 * step, 2) for step in range(41))
"""Candidate factors on errors; the smallest one with enough coverage is chosen."""

ROUNDS = 50


@dataclass(frozen=True)
class Outcome:
    """A held-back accuracy, and the corresponding test accuracy.

    Args:
        kind: As `GainModel.calibration` names it.
        task, family: Of the cell.
        accuracy: Held-back accuracy, in [0, 1].
        images: Number of independent held-back images.
        per_class: Training images per class.
        truth: Test accuracy that the calibrated accuracy should equal.
        error: Its standard error.
    """

    kind: str
    task: str
    family: str
    accuracy: float
    images: float
    per_class: float
    truth: float
    error: float


def error_of_test(accuracy: float, images: int) -> float:
    """Standard error of a test accuracy."""
    return smoothed_spread(accuracy, images) / math.sqrt(images)


def best_probe_of(options: Iterable[Alternative]) -> Alternative:
    """The linear probe with the highest expected accuracy."""
    return max((o for o in options if o.strategy == "linear_probe"), key=lambda option: option.expected_accuracy)


def probe_outcomes(cells: Sequence[Cell], model: GainModel) -> list[Outcome]:
    """The held-back accuracy of the joined probe that would make the best probe's expectation exact.

    The best probe's expected gain over the joined one is subtracted from its test accuracy.
    """
    found = []
    for cell in cells:
        joined, best = cell.evidence.probe(JOINED), best_probe_of(weigh(cell.evidence, knowledge=model).options)
        test = cell.strategies[cell.kept(best.stage)]["test"]
        gain = best.expected_accuracy - joined.interval[0]
        found.append(_outcome(cell, PROBE, joined.interval[0], cell.evidence.data.train_images, test, gain=gain))
    return found


def head_outcomes(cells: Sequence[Cell]) -> list[Outcome]:
    """The heads that `adapt` would keep on each representation that may be worth reading."""
    found = []
    for cell in cells:
        for stage in (*(stage.name for stage in cell.evidence.backbone.stages), JOINED, SELECTED):
            kept = cell.strategies[cell.kept(stage)]
            if kept["held_back"] is None or not within_reach(cell, stage):
                continue
            kind = stage if stage in (JOINED, SELECTED) else "stage"
            images = kept.get("held_back_images", cell.evidence.data.train_images)
            found.append(_outcome(cell, kind, kept["held_back"], images, kept["test"]))
    return found


def network_outcomes(cells: Sequence[Cell]) -> list[Outcome]:
    """The results that `adapt` would return after fine-tuning, for all strategies that were run."""
    return [
        _outcome(cell, NETWORK, cell.pilot(name).kept.accuracy, cell.held_back(name), cell.tuned[name]["test"])
        for cell in cells
        for name in cell.tuned
    ]


def within_reach(cell: Cell, stage: str) -> bool:
    """Whether a representation may be as good as all stages joined, by the measurements."""
    score, situation = cell.evidence.probe(stage), cell.situation
    return situation.within_reach(Belief(mean=score.interval[0] - situation.accuracy, error=score.gain_error or 0.0))


def _outcome(cell: Cell, kind: str, accuracy: float, images: int, test: float, *, gain: float = 0.0) -> Outcome:
    return Outcome(
        kind=kind,
        task=cell.task,
        family=cell.family,
        accuracy=accuracy,
        images=max(cell.independent * images, 1.0),
        per_class=cell.independent * cell.per_class,
        truth=test - gain,
        error=error_of_test(test, cell.test_images),
    )


def calibrate(cells: Sequence[Cell], model: GainModel) -> dict[str, Calibration]:
    """Kind -> the calibration of its held-back accuracies.

    Args:
        cells: To fit on.
        model: The gain model of probes fitted on them, not calibrated.
    """
    outcomes = [*probe_outcomes(cells, model), *head_outcomes(cells), *network_outcomes(cells)]
    kinds = sorted({outcome.kind for outcome in outcomes})
    return {kind: fit_calibration([one for one in outcomes if one.kind == kind]) for kind in kinds}


def fit_calibration(outcomes: Sequence[Outcome]) -> Calibration:
    """Optimism and task error by moments, with equal weight per task; the widening by leaving one family out."""
    plain = _fit_moments(outcomes)
    families = sorted({outcome.family for outcome in outcomes})
    if len(families) < 3:
        return plain
    judged = []
    for family in families:
        known = _fit_moments([one for one in outcomes if one.family != family])
        judged += [(one, known) for one in outcomes if one.family == family]
    weights = task_weights([one for one, _ in judged])
    misses = np.array([abs(expected(known, one).mean - one.truth) for one, known in judged])
    errors = np.array([expected(known, one).error for one, known in judged])
    noise = np.array([one.error for one, _ in judged])

    def covered(widening: float) -> float:
        return float(weights @ (misses <= TWO_SIDED * np.hypot(widening * errors, noise)))

    widening = next((one for one in WIDENINGS if covered(one) >= COVERED), WIDENINGS[-1])
    return Calibration(optimism=plain.optimism, task_error=plain.task_error, widening=widening)


def expected(known: Calibration, outcome: Outcome) -> Belief:
    """The calibrated expectation of a held-back accuracy."""
    return known.expect(accuracy=outcome.accuracy, images=outcome.images, per_class=outcome.per_class)


def task_weights(outcomes: Sequence[Outcome]) -> np.ndarray:
    """(N,) weights, equal in sum for every task, total 1."""
    tasks = [outcome.task for outcome in outcomes]
    weights = np.array([1 / tasks.count(task) for task in tasks])
    return weights / weights.sum()


def _fit_moments(outcomes: Sequence[Outcome]) -> Calibration:
    """Both are solved for consistently, as outcomes are weighted by their precision (Paule & Mandel, 1982)."""
    spreads = np.array([smoothed_spread(one.accuracy, one.images) for one in outcomes])
    excess = np.array([one.accuracy - one.truth for one in outcomes]) / spreads
    chance = (
        np.array([1 / one.images for one in outcomes]) + np.array([one.error for one in outcomes]) ** 2 / spreads**2
    )
    thinness = np.array([1 / math.sqrt(max(one.per_class, 1.0)) for one in outcomes])
    tasks, left, optimism = task_weights(outcomes), 0.1, 0.0
    for _ in range(ROUNDS):
        weights = tasks / (chance + left * thinness)
        weights = weights / weights.sum()
        optimism = float(weights @ excess)
        left = max(float(weights @ ((excess - optimism) ** 2 - chance)) / float(weights @ thinness), 0.0)
    return Calibration(optimism=round(optimism, 4), task_error=round(math.sqrt(left), 4))
