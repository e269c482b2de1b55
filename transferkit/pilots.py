"""`mode="search"`: short trials of what the evidence left open, by successive halving within a time budget.

The evidence is exact for ridge heads and knows nothing of other ones. Candidates are the strategies whose expected
accuracy may, by its interval, reach the best one's; a round fits those that are left to more of the
images than the one before and keeps the better half. All of a round see the same images, so their held-back accuracies
can be compared. What the evidence advises stays to the end, and yields only to a clear lead: the best of several trials
looks better than it is.

References:
    Jamieson and Talwalkar, AISTATS 2016. Deviation: the resource is training images, not epochs, and a candidate whose
    trial would break the budget drops out of the round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transferkit.errors import OptionError
from transferkit.features import FeatureTable
from transferkit.measure import stratified_sample
from transferkit.progress import track
from transferkit.strategies import STRATEGIES
from transferkit.train import choose_head, fit_heads
from transferkit.types import Alternative, Decision, Evidence

__all__ = ["Trial", "halve", "search"]

SHARES = (0.25, 0.5, 1.0)
"""Of the training images, a round each."""

FEWEST_PER_CLASS = 8
"""Images per class below which a trial says little; rounds that would have fewer are passed over."""

CANDIDATES = 6
"""Strategies that are tried at most: those with the highest expected accuracy."""

LISTED = 3

SLACK = 1.5
"""A trial is taken to cost this many times what its growth with the square of the images foretells."""


@dataclass(frozen=True)
class Trial:
    """What came of fitting a strategy to `images` images, with its better head."""

    option: Alternative
    head: str
    images: int
    accuracy: float
    log_loss: float
    seconds: float


def search(
    evidence: Evidence,
    advice: Decision,
    table: FeatureTable,
    labels: npt.NDArray[np.int64],
    *,
    head: str = "auto",
    class_weight: str = "none",
    budget: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Decision:
    """The strategy and head that win the trials.

    Args:
        evidence: What the frozen pass measured.
        advice: What the evidence alone advises; its options are the candidates.
        table: Rows of the N training images.
        labels: (N,) int in [0, K).
        head: As for `fit_heads`.
        class_weight: "none" or "balanced".
        budget: Seconds for all trials, > 0; None sets no limit.
        seed: Of the samples and folds.
        progress: Show a bar on a terminal.
    """
    if budget is not None and not budget > 0:
        raise OptionError(f"budget must be > 0 seconds, got {budget!r}; leave it out for no limit.")
    stages = [stage.name for stage in evidence.backbone.stages]
    classes = evidence.data.num_classes

    def fit(option: Alternative, rows: npt.NDArray[np.int64]) -> Trial:
        start = time.perf_counter()
        asked = replace(advice, strategy=option.strategy, stage=option.stage)
        fits = fit_heads(
            STRATEGIES[option.strategy](asked, stages),
            table.take(rows),
            labels[rows],
            classes=classes,
            head=head,
            class_weight=class_weight,
            seed=seed,
        )
        best = choose_head(fits)
        return Trial(option, best.name, len(rows), best.accuracy, best.log_loss, time.perf_counter() - start)

    assert advice.expected is not None
    if advice.strategy != "linear_probe":
        only = "Trials compare linear probes, and fine-tuning is expected to beat them all: no trials were needed."
        return replace(advice, mode="search", reasons=(only, *advice.reasons))
    options = [option for option in (advice.expected, *advice.alternatives) if option.strategy == "linear_probe"]
    hopeful = [option for option in options if option.high >= advice.expected.expected_accuracy][:CANDIDATES]
    if len(hopeful) == 1:
        alone = "No other strategy can be expected to reach what the evidence advises: no trials were needed."
        return replace(advice, mode="search", reasons=(alone, *advice.reasons))
    rounds = halve(
        hopeful, fit, _samples(labels, np.random.default_rng(seed)), budget=budget, label="trials", progress=progress
    )
    return _decision(advice, rounds, budget)


def _samples(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """The images of each round, the last one all."""
    found = []
    for share in SHARES[:-1]:
        images = round(share * len(labels))
        if images >= FEWEST_PER_CLASS * len(np.unique(labels)):
            found.append(np.sort(stratified_sample(labels, images, rng)))
    return [*found, np.arange(len(labels))]


def halve(
    options: Sequence[Alternative],
    fit: Callable[[Alternative, npt.NDArray[np.int64]], Trial],
    samples: Sequence[npt.NDArray[np.int64]],
    *,
    budget: float | None = None,
    label: str = "trials",
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Trial]]:
    """Rounds of trials, each best first; the first option and the better half of the others enter the next.

    Args:
        options: In the order in which they are tried; the first is never dropped.
        fit: One of them and the images to fit it to -> its trial.
        samples: The images of each round.
        budget: Seconds after which nothing is begun; the very first trial always is.
        label: For the bar.
        progress: Whether to show one.
        clock: What tells the time.
    """
    start, left, rounds = clock(), list(options), list[list[Trial]]()
    cost: dict[Alternative, float] = {}  # seconds per squared image, from the trial before
    for number, rows in enumerate(samples):
        tried: list[Trial] = []
        for option in track(left, f"{label} {number + 1}/{len(samples)}", enabled=progress):
            foreseen = SLACK * cost.get(option, 0.0) * len(rows) ** 2
            if (rounds or tried) and budget is not None and clock() - start + foreseen > budget:
                if tried:
                    continue
                return rounds  # without the first there is nothing to compare the others with
            trial = fit(option, rows)
            cost[option] = trial.seconds / len(rows) ** 2
            tried.append(trial)
        rounds.append(sorted(tried, key=lambda trial: (-trial.accuracy, trial.log_loss)))
        others = [trial.option for trial in rounds[-1] if trial.option is not options[0]]
        left = [options[0], *others[: math.ceil(len(others) / 2)]]
    return rounds


def _decision(advice: Decision, rounds: list[list[Trial]], budget: float | None) -> Decision:
    fitted = [trial for tried in rounds for trial in tried]
    best = _winner(rounds[-1], advice.expected)
    chosen = best.option
    spent = sum(trial.seconds for trial in fitted)
    limit = "no limit" if budget is None else f"{budget:g} s allowed"
    reasons = [
        f"{_count(len(fitted), 'trial')} in {_count(len(rounds), 'round')} took {spent:.1f} s ({limit}); "
        f"the last round had {best.images:,} images and {len(rounds[-1])} of {len(rounds[0])} candidates.",
        f"Share of held-back images right in it: {_listed(rounds[-1])}.",
    ]
    if chosen is advice.expected:
        reasons.append(f"{chosen.stage!r}, which the evidence advised, stays: no lead over it is clear.")
    else:
        reasons.append(
            f"{chosen.stage!r} leads {advice.stage!r}, which the evidence advised, by more than chance would."
        )
    options = (advice.expected, *advice.alternatives)
    return replace(
        advice,
        strategy=chosen.strategy,
        stage=chosen.stage,
        mode="search",
        reasons=(*reasons, *advice.reasons[-1:]),
        expected=chosen,
        alternatives=tuple(option for option in options if option is not None and option is not chosen),
    )


def _winner(tried: list[Trial], advised: Alternative | None) -> Trial:
    """The best trial if its lead over the advised one's is more than one standard error of an accuracy."""
    best = tried[0]
    incumbent = next((trial for trial in tried if trial.option is advised), best)
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.images)
    return best if best.accuracy - incumbent.accuracy > error else incumbent


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(tried: list[Trial]) -> str:
    return ", ".join(
        f"{100 * trial.accuracy:.1f} % on {trial.option.stage!r} ({trial.head} head)" for trial in tried[:LISTED]
    )
