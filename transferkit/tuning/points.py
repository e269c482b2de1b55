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
from transferkit.tuning.stages import PRUNERS, plan_stages
from transferkit.tuning.style import named_by_hand

__all__ = ["TUNED_INSTEAD", "check_search", "check_space", "with_point"]

TUNED_INSTEAD = "lp_ft"
"""Strategy that is tuned where the advice is a linear probe, which is solved for and has nothing to tune."""

TUNED = ("unfreeze", "stage", "norm", "head")
"""Settings outside `train` that can be searched: what a fine-tuned network is made of, on the same features."""


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
    known = [f"train.{one.name}" for one in fields(Recipe)] + list(TUNED)
    for name in point:
        if name not in known:
            raise OptionError(unknown_name("hyperparameter", name, known))
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
    if options.strategy == "linear_probe":
        raise OptionError(
            "A linear probe is solved for, not trained: it has nothing to tune. Name a strategy that trains, such as "
            f"strategy={TUNED_INSTEAD}."
        )
    if options.style == "panda" and (named := named_by_hand(options)):
        raise OptionError(
            f"style=panda trains one model in this process, and no points of a space: leave out tune.{named[0]}, or "
            "use style=caviar."
        )
    stages = plan_stages(options.sampler, options.trials)
    if options.pruner not in PRUNERS:
        raise OptionError(unknown_name("pruner", options.pruner, PRUNERS))
    if options.pruner != "none" and len(stages) > 1:
        raise OptionError(
            f"pruner={options.pruner} compares trials that train for equally long, which those of a search in stages "
            "do not: its stages end poor trials early by themselves. Use sampler=random, tpe or grid with it."
        )
    if options.space is not None:
        check_space(read_space(options.space), options)
