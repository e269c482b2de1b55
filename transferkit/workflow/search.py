"""`mode="search"`: fine-tuning strategies are tried on held-back images before one is chosen.

The frozen pass has measured the accuracy of a linear probe exactly, but not the gain by fine-tuning. So each strategy
that may, by its interval, be better than all others is tried: its folds are trained, and its gain over the probe there
updates the expectation from earlier tasks. The chosen strategy continues from its trial; nothing is computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transferkit.core.distributed import broadcast
from transferkit.core.errors import OptionError
from transferkit.core.progress import announce
from transferkit.core.score_text import format_gain, format_score
from transferkit.decision import Belief, choose
from transferkit.records import Alternative, Candidate, Choice, Evidence

__all__ = ["Trial", "search"]

LEAST_SECONDS = 1.0
"""What a budget leaves for a closed form, whatever the trials took."""


@dataclass(frozen=True)
class Trial:
    """Result of a trial on images held back from it.

    Args:
        kept: What `adapt` would return: the network, its blend with the probe, or the probe.
        probe: The probe alone.
        images: Held-back images.
    """

    kept: Candidate
    probe: Candidate
    images: int

    @property
    def gain(self) -> Belief:
        """Accuracy gained over the probe."""
        return Belief(mean=self.kept.accuracy - self.probe.accuracy, error=self.kept.gain_error)


def search(
    evidence: Evidence,
    begin: Callable[[Alternative], Trial],
    *,
    budget: float | None = None,
    progress: bool = True,
    choose: Callable[..., Choice] = choose,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The strategy with the best expected accuracy once fine-tuning was tried.

    Args:
        evidence: What the frozen pass measured.
        begin: Tries one of the strategies.
        budget: Seconds for trials and fitting together, > 0; None sets no limit. A strategy that would exceed it is
            neither tried nor chosen.
        progress: Print what is tried.
        choose: Evidence, and `budget` and `trials` by name -> choice.
        clock: Returns seconds.

    Raises:
        OptionError: If the budget is not > 0.
    """
    if budget is not None and not budget > 0:
        raise OptionError(f"budget must be > 0 seconds, got {budget!r}; leave it out for no limit.")
    first = choose(evidence)
    first = broadcast(first)
    if not first.options:  # no accuracy is known, so a trial has nothing to be compared with
        return replace(first, mode="search")
    best, *others = first.options
    hopeful = [option for option in (best, *others) if _may_win(option, best)]
    start, trials = clock(), dict[str, Trial]()
    for option in sorted(hopeful, key=lambda option: -option.expected_accuracy):
        if broadcast(budget is None or clock() - start + option.cost_seconds <= budget):
            announce(f"trying {option.strategy}, about {option.cost_seconds:.0f} s", enabled=progress)
            trials[option.strategy] = begin(option)
    spent = clock() - start
    untried = [option.strategy for option in hopeful if option.strategy not in trials]
    reasons = _describe_trials(trials, spent, untried, budget)
    chosen = choose(
        evidence,
        budget=None if budget is None else max(budget - spent, LEAST_SECONDS),
        trials={name: trial.gain for name, trial in trials.items()},
    )
    chosen = broadcast(chosen)
    return replace(chosen, mode="search", reasons=(*reasons, *chosen.reasons))


def _may_win(option: Alternative, best: Alternative) -> bool:
    """Whether it must be trained to be measured, and may by its interval be better than the best expectation."""
    return option.strategy != "linear_probe" and option.high > best.expected_accuracy


def _describe_trials(
    trials: Mapping[str, Trial], spent: float, untried: Sequence[str], budget: float | None
) -> list[str]:
    """Sentences about what was tried, and what was not."""
    said = []
    if trials:
        first = next(iter(trials.values()))
        images, measure = first.images, first.kept.measure
        figures = ", ".join(
            f"{name} {format_score(trial.kept.accuracy, measure)} ({format_gain(trial.gain.mean, measure)})"
            for name, trial in trials.items()
        )
        said.append(
            f"Tried in {spent:.0f} s, {measure} on {images:,} held-back images, gain over the probe: {figures}."
        )
    if untried:
        said.append(f"Not tried, for the budget of {budget:g} s: {', '.join(untried)}.")
    return said or ["No fine-tuning strategy is expected to do better: no trials were needed."]
