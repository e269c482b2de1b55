"""A point of the space as settings of `adapt`, and what is wrong with a search before any work."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, replace
from functools import partial

from transferkit.core.errors import MissingDependencyError, OptionError, list_problems, problem_of, unknown_name
from transferkit.options import AdaptOptions, Recipe
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.search_record import read_search
from transferkit.tuning.space import Point, Space, read_space
from transferkit.tuning.stages import PRUNERS, choose_sampler, plan_stages
from transferkit.tuning.style import check_babysitting

__all__ = ["PROBE", "TUNED_INSTEAD", "check_search", "check_space", "sampler_of", "with_point"]

PROBE, TUNED_INSTEAD = "linear_probe", "lp_ft"
"""The strategy that is solved for, and what is tuned where it is the advice: a probe has little to tune."""

WORKERS_ON = ("local", "ray")
"""Where the workers of a search may be."""

TUNED, TUNED_OF_PROBE = ("unfreeze", "stage", "norm", "head"), ("stage", "head")
"""Settings outside `train` that can be searched: what a network, or a probe, is made of, on the same features."""


def with_point(options: AdaptOptions, point: Point) -> AdaptOptions:
    """The options with a point's values in their place.

    Args:
        options: Of all trials.
        point: Name, as on the command line -> value.

    Raises:
        OptionError: A name or a value cannot be.

    Example:
        >>> with_point(AdaptOptions(), {"train.lr": 1e-3, "unfreeze": 2}).recipe.lr
        0.001
    """
    solved = options.strategy == PROBE
    known = list(TUNED_OF_PROBE) if solved else [f"train.{one.name}" for one in fields(Recipe)] + list(TUNED)
    for name in point:
        if name not in known:
            raise OptionError(
                unknown_name("hyperparameter of a linear probe" if solved else "hyperparameter", name, known)
            )
    recipe = {name.removeprefix("train."): value for name, value in point.items() if name.startswith("train.")}
    if "lr" in recipe and "lr_scale" not in recipe:  # of two ways to say one thing, the point's counts
        recipe["lr_scale"] = None
    elif recipe.get("lr_scale") is not None:
        recipe["lr"] = None
    own = {name: value for name, value in point.items() if not name.startswith("train.")}
    return replace(options, train=replace(options.recipe, **recipe), **own)


def check_space(space: Space, options: AdaptOptions) -> None:
    """Whether every value of the space can be a setting.

    Raises:
        OptionError: Some cannot; all of them are in the message.
    """
    points = [{name: value} for name, one in space.items() for value in one.spread(2)]
    found = [problem_of(partial(with_point, options, point)) for point in points]
    problems = [str(error).replace("Invalid training options:\n- ", "") for error in found if error is not None]
    if problems:
        raise OptionError(list_problems("The space cannot be searched:", list(dict.fromkeys(problems))))


def sampler_of(options: TuneOptions) -> str:
    """The sampler that is meant."""
    solved = options.strategy == PROBE
    return choose_sampler(options.sampler, trials=options.trials, pruner=options.pruner, solved=solved)


def check_search(options: TuneOptions) -> None:
    """Whether a search can be made with these options, as far as that is known before any work.

    Raises:
        OptionError: It cannot.
        MissingDependencyError: Optuna is not installed.
    """
    if options.retest:
        read_search(options)
    if importlib.util.find_spec("optuna") is None:
        raise MissingDependencyError("A search needs Optuna: pip install 'transferkit[tune]'.")
    if options.launcher not in WORKERS_ON:
        raise OptionError(unknown_name("launcher", options.launcher, WORKERS_ON))
    if options.launcher == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("Workers on a Ray cluster need Ray: pip install 'transferkit[ray]'.")
    check_babysitting(options)
    if options.pruner not in PRUNERS:
        raise OptionError(unknown_name("pruner", options.pruner, PRUNERS))
    sampler, solved = sampler_of(options), options.strategy == PROBE
    stages = plan_stages(sampler, options.trials)
    if solved and (options.pruner != "none" or len(stages) > 1):
        raise OptionError(
            "A linear probe is solved for, without epochs that a pruner or stages of a search could save. Leave "
            "pruner and sampler out, or use sampler=grid, random or tpe."
        )
    if options.pruner != "none" and len(stages) > 1:
        raise OptionError(
            f"pruner={options.pruner} compares trials that train for equally long, which those of a search in stages "
            "do not: its stages end poor trials early by themselves. Use sampler=random, tpe or grid with it."
        )
    if options.space is not None:
        check_space(read_space(options.space), options)
