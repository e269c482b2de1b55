"""The options of a search, beside those of `adapt`: name, type, default and sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.options import AdaptOptions, option, value_problem

__all__ = ["STYLES", "SearchOptions", "TuneOptions"]

STYLES = ("auto", "panda", "caviar")
"""Ng's names for babysitting one model, and training many in parallel."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is searched, and for how long."""

    style: str = option(
        "auto",
        "caviar (many points), panda (one training, changed at checkpoints as the doctor's reading of it asks), "
        "or auto: panda where seconds leaves time for fewer than 8 trainings, or one takes an hour, and none of space, "
        "sampler, pruner, trials, workers, storage is set.",
    )
    retest: bool = option(
        False,
        "Measure the best points of the earlier search in out again, and what is advised now, and say whether they "
        "still hold, instead of a search.",
    )
    space: Any = option(
        None,
        "Hyperparameter, as on the command line -> {low, high, log, whole} or a list of choices. None: learning rate, "
        "momentum, batch size, dropout, weight decay, depth of unfreezing, layer decay, schedule, but what train sets.",
    )
    sampler: str = option(
        "auto",
        "coarse_to_fine (many points for few epochs, more around the best for longer, the best three in full), "
        "one_epoch (one epoch for all, the best three in full), random, tpe or grid. auto: coarse_to_fine, random with "
        "a pruner or less than 8 trials, grid for a linear probe.",
    )
    pruner: str = option(
        "none",
        "Ends poor trials early: median, halving (by epochs of the first fold), wilcoxon (by folds); with sampler "
        "random, tpe or grid.",
    )
    warm_start: bool = option(
        True, "Begin with the advised settings and those that did well on earlier tasks; not for a grid."
    )
    trials: int = option(30, "Number of trials in all, >= 1.")
    seconds: float | None = option(None, "Time for all trials, > 0; None: no limit.")
    storage: Any = option(
        None, "Where the study is kept, an Optuna URL such as sqlite:///study.db; None: in out, or in memory."
    )
    study: str = option("transferkit", "Name of the study; the same one is continued.")
    workers: int = option(1, "Processes that work on it, >= 1.")
    launcher: str = option("local", "Where they are: local, or ray for a Ray cluster.")

    def __post_init__(self) -> None:
        own = {one.name: one for one in fields(SearchOptions)}
        found = (value_problem(one, getattr(self, name)) for name, one in own.items())
        problems = [problem for problem in found if problem is not None]
        if not problems:
            counts = ("trials", "workers")
            problems += [f"{one} must be >= 1, got {getattr(self, one)!r}." for one in counts if getattr(self, one) < 1]
            if self.seconds is not None and not 0 < self.seconds < math.inf:
                problems.append(f"seconds must be > 0, or left out, got {self.seconds!r}.")
            if self.style not in STYLES:
                problems.append(unknown_name("style", self.style, STYLES))
        if problems:
            raise OptionError(list_problems("Invalid options of the search:", problems))


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SearchOptions, AdaptOptions):
    """All options of `tune`: those of `adapt` that its trials share, and those of the search."""

    def __post_init__(self) -> None:
        SearchOptions.__post_init__(self)
        AdaptOptions.__post_init__(self)
