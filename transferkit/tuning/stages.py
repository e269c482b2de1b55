"""How a search goes on: stages of trials, each with its number of epochs and its way to choose points.

A search of one stage tries every point in full. One of several tries many points for few epochs first, and fewer
points, closer to the best, for longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transferkit.core.errors import OptionError
from transferkit.core.registry import Registry

__all__ = ["FINALISTS", "PRUNERS", "SAMPLERS", "SearchStage", "choose_sampler", "plan_stages", "stage_of"]

FINALISTS = 3
"""Best points that a staged search trains in full ("one epoch for all, keep the top 3"; i-Epoch, arXiv 2307.15422)."""

FEWEST_STAGED = 2 * FINALISTS + 2
"""Trials that a search in stages needs."""

FEWEST_STEPS = 60
"""Gradient steps of a trial of coarse_to_fine, where a full training has as many: with fewer, rates that are too low to
get anywhere look best, as training has not yet recovered from its first steps (docs/tuning.md)."""

MOST_SHORT = 0.5
"""Share of a full training that a trial of the first stage takes at most."""

LONGER = 3
"""Factor of epochs from the first stage of coarse_to_fine to the next ones."""

PRUNERS = ("none", "median", "halving", "wilcoxon")
"""Which trials are ended early: none; those below the median of the others after as many epochs; those not among the
best third of them; those worse than the best trial on the same folds, by Wilcoxon's signed-rank test."""


@dataclass(frozen=True, kw_only=True)
class SearchStage:
    """Trials that are alike in how their points are chosen, and in how long they train.

    Args:
        name: What people see.
        trials: Number of trials, >= 1.
        share: Epochs, as a share of those of a full training, in (0, 1]; at least one is trained.
        source: Where points come from: "random" or "grid" (of the whole space), "tpe" (a model of all trials so far),
            "narrow" (at random, around the best so far), "best" (the best so far, one each).
        is_last: Whether the outcome of the search is among its trials.
    """

    name: str
    trials: int
    share: float
    source: str
    is_last: bool = True

    def epochs(self, full: int) -> int:
        """Epochs of a trial, where a full training has so many."""
        return max(1, round(self.share * full))

    @property
    def is_decider(self) -> bool:
        """Whether few trials are compared, between which little decides: on several folds."""
        return self.is_last and self.source == "best"


Sampler = Callable[[int, float], tuple[SearchStage, ...]]
"""Number of trials, share of a full training that says something -> stages."""

SAMPLERS: Registry[Sampler] = Registry("sampler")


def choose_sampler(sampler: str, *, trials: int, pruner: str, solved: bool) -> str:
    """The name of a sampler, where "auto" leaves it open.

    Args:
        sampler: A registered name, or "auto".
        trials: Number of trials in all.
        pruner: One of `PRUNERS`.
        solved: Whether what is tuned is solved for, without epochs.

    Example:
        >>> choose_sampler("auto", trials=30, pruner="none", solved=False)
        'coarse_to_fine'
    """
    if sampler != "auto":
        return sampler
    if solved:
        return "grid"
    return "coarse_to_fine" if trials >= FEWEST_STAGED and pruner == "none" else "random"


def plan_stages(sampler: str, trials: int, *, steps: int | None = None) -> tuple[SearchStage, ...]:
    """The stages of a search.

    Args:
        sampler: A registered name.
        trials: Number of trials in all, >= 1.
        steps: Gradient steps of a full training; None: many.

    Raises:
        OptionError: The sampler is unknown, or there are too few trials for it.
    """
    if trials < 1:
        raise OptionError(f"trials must be >= 1, got {trials!r}.")
    return SAMPLERS[sampler](trials, 0.0 if steps is None else min(MOST_SHORT, FEWEST_STEPS / max(1, steps)))


@SAMPLERS.register("random")
def _random(trials: int, least: float) -> tuple[SearchStage, ...]:
    """All points at random."""
    return (SearchStage(name="all", trials=trials, share=1.0, source="random"),)


@SAMPLERS.register("grid")
def _grid(trials: int, least: float) -> tuple[SearchStage, ...]:
    """Points of a grid; for comparison, as a grid tries few values of each hyperparameter."""
    return (SearchStage(name="all", trials=trials, share=1.0, source="grid"),)


@SAMPLERS.register("tpe")
def _tpe(trials: int, least: float) -> tuple[SearchStage, ...]:
    """Points by the tree-structured Parzen estimator, a model of which points did well."""
    return (SearchStage(name="all", trials=trials, share=1.0, source="tpe"),)


@SAMPLERS.register("coarse_to_fine")
def _coarse_to_fine(trials: int, least: float) -> tuple[SearchStage, ...]:
    """Many points in the whole space for few epochs, the best of them for longer, as many around the best of these as
    there are trials left, then the best in full."""
    _check_enough("coarse_to_fine", trials)
    checked = min(FINALISTS, trials - FEWEST_STAGED + 1)
    rest = trials - FINALISTS - checked
    wide = math.ceil(0.6 * rest)
    share = max(0.1, least)
    longer = min(1.0, LONGER * share)
    return (
        SearchStage(name="wide", trials=wide, share=share, source="random", is_last=False),
        SearchStage(name="checked", trials=checked, share=longer, source="best", is_last=False),
        SearchStage(name="narrow", trials=rest - wide, share=longer, source="narrow", is_last=False),
        SearchStage(name="finalists", trials=FINALISTS, share=1.0, source="best"),
    )


@SAMPLERS.register("one_epoch")
def _one_epoch(trials: int, least: float) -> tuple[SearchStage, ...]:
    """One epoch for all, then the best three in full."""
    _check_enough("one_epoch", trials)
    return (
        SearchStage(name="one epoch", trials=trials - FINALISTS, share=1e-9, source="random", is_last=False),
        SearchStage(name="finalists", trials=FINALISTS, share=1.0, source="best"),
    )


def _check_enough(sampler: str, trials: int) -> None:
    if trials < FEWEST_STAGED:
        raise OptionError(
            f"sampler={sampler} needs at least {FEWEST_STAGED} trials, {FINALISTS} of them for the best in full, "
            f"got {trials}. Use sampler=random."
        )


def stage_of(stages: Sequence[SearchStage], slot: int) -> tuple[SearchStage, int]:
    """The stage of a trial, and the trial's number within it, both from 0.

    Args:
        stages: In their order.
        slot: Number of the trial within the search.
    """
    for stage in stages:
        if slot < stage.trials:
            return stage, slot
        slot -= stage.trials
    raise OptionError(f"The search has {sum(one.trials for one in stages)} trials; there is no further one.")
