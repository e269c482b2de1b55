"""Panda or caviar: one training that is babysat, or many in parallel, by what fits into the time."""

from __future__ import annotations

import os
from dataclasses import fields

from transferkit.core.errors import OptionError
from transferkit.records import Decision
from transferkit.tuning.search_options import SearchOptions, TuneOptions

__all__ = ["check_babysitting", "choose_style", "named_by_hand"]

ENOUGH_TRAININGS = 8
"""Full trainings that a search takes at least: the default one takes as long as eight to nine."""

LONG = 3600.0
"""Seconds of one training from which on it takes the machine for long, where no budget says how long it may."""

OF_A_SEARCH = ("space", "sampler", "pruner", "trials", "workers", "launcher", "storage")
"""Settings that only a search of many points has."""


def named_by_hand(options: SearchOptions) -> list[str]:
    """Those settings of a search of many points that are not at their defaults."""
    own = {one.name: one.default for one in fields(SearchOptions)}
    return [name for name in OF_A_SEARCH if getattr(options, name) != own[name]]


def check_babysitting(options: TuneOptions) -> None:
    """Raise `OptionError` if a style of panda was asked for, and something beside it that it cannot do."""
    if options.style != "panda":
        return
    if options.strategy == "linear_probe":
        raise OptionError(
            "style=panda changes a training at its checkpoints; a linear probe is solved for. Leave style out, or name "
            "a strategy that trains, such as strategy=lp_ft."
        )
    if named := named_by_hand(options):
        raise OptionError(
            f"style=panda trains one model in this process, and no points of a space: leave out tune.{named[0]}, or "
            "use style=caviar."
        )


def choose_style(options: TuneOptions, decision: Decision, *, continues: bool = False) -> tuple[str, str]:
    """ "panda" or "caviar", and the sentence that says why; "" if there is nothing to say.

    Args:
        options: As given; a style that they name is taken.
        decision: Of the strategy, with what a training is expected to take on this machine.
        continues: Whether there is a study to go on with.

    Raises:
        OptionError: As `check_babysitting`.
    """
    check_babysitting(options)
    if options.style != "auto":
        return options.style, ""
    if continues or named_by_hand(options) or options.strategy == "linear_probe":
        return "caviar", ""
    seconds = None if decision.expected is None else decision.expected.cost_seconds
    if not seconds:
        return "caviar", "style: caviar, as it is not known how long a training takes"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = f"on {cores} core{'s' if cores != 1 else ''}"
    if options.seconds is None:
        style = "panda" if seconds > LONG else "caviar"
        return style, f"style: {style}, as a training takes about {seconds:.0f} s {machine} and there is no budget"
    fit = int(options.seconds / seconds)
    style = "panda" if fit < ENOUGH_TRAININGS else "caviar"
    only = "only " if style == "panda" else ""
    trainings = f"{fit} training{'s' if fit != 1 else ''} of {seconds:.0f} s"
    return style, f"style: {style}, as {only}{trainings} fit into {options.seconds:g} s {machine}"
