"""The space that is searched unless another is given, most important hyperparameter first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.options import Recipe
from transferkit.records import JOINED, SELECTED
from transferkit.strategies import DECAYED, TUNABLE
from transferkit.tuning.points import PROBE, sampler_of
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.space import Choices, Dimension, Range, Space, lay_grid, read_space

__all__ = ["default_space", "searched_space", "settle_trials"]

BATCHES = (8, 16, 32, 64, 128)

RATE_FACTOR = 30.0
"""The learning rate is searched from a thirtieth of the decision's to thirty times as much."""


def default_space(
    *, lr: float, images: int, stages: Sequence[str], strategy: str, recipe: Recipe
) -> dict[str, Dimension]:
    """What is searched unless another space is given; most important first.

    Of networks learning rate, momentum, batch size, dropout, weight decay, depth of unfreezing, layer decay, schedule,
    but what the recipe sets. Of a linear probe the stage that it reads, and the kind of head.

    Args:
        lr: The decision's rate.
        images: N to train on.
        stages: The backbone's, stem -> head.
        strategy: Name of the strategy that is tuned.
        recipe: As given.

    References:
        The order is that of Ng, Machine Learning Yearning, and of Bergstra & Bengio, JMLR 2012 (the rate first). Rates
        and decays act by their factor, so they are searched on a log scale; momentum by its distance from 1.
    """
    if strategy == PROBE:
        several = (SELECTED, JOINED) if len(stages) > 1 else ()
        return {
            "stage": Choices(values=(*several, *reversed(stages))),
            "head": Choices(values=("average", "ridge", "logistic")),
        }
    space: dict[str, Dimension] = {
        "train.lr": Range(low=float(f"{lr / RATE_FACTOR:.2g}"), high=float(f"{lr * RATE_FACTOR:.2g}"), log=True),
        "train.momentum": Choices(values=(0.8, 0.9, 0.95, 0.98)),
        "train.batch_size": Choices(values=tuple(size for size in BATCHES if 4 * size <= images) or BATCHES[:1]),
        "train.dropout": Range(low=0.0, high=0.5),
        "train.weight_decay": Range(low=1e-4, high=1.0, log=True),
    }
    if strategy in TUNABLE and len(stages) > 1:
        depths: list[Any] = sorted({max(1, round(share * len(stages))) for share in (1 / 6, 1 / 3, 1 / 2, 3 / 4)})
        space["unfreeze"] = Choices(values=tuple(depths))
    if strategy in DECAYED and len(stages) > 1:
        space["train.layer_decay"] = Range(low=0.5, high=1.0)
    space["train.schedule"] = Choices(values=("cosine", "linear", "constant"))
    given = {f"train.{name}" for name in recipe.changed}
    if given & {"train.lr", "train.lr_scale"}:
        given |= {"train.lr"}
    return {name: one for name, one in space.items() if name not in given}


def searched_space(options: TuneOptions, *, lr: float, images: int, stages: Sequence[str]) -> dict[str, Dimension]:
    """The space that was given, or the default one without what is set.

    Args:
        options: With the name of the strategy that is tuned.
        lr, images, stages: As for `default_space`.

    Raises:
        OptionError: The space cannot be read, or nothing is left of it.
    """
    if options.space is not None:
        return read_space(options.space)
    space = default_space(lr=lr, images=images, stages=stages, strategy=options.strategy, recipe=options.recipe)
    given = {
        "unfreeze": options.unfreeze is not None,
        "stage": options.stage is not None,
        "head": options.head != "auto",
    }
    left = {name: one for name, one in space.items() if not given.get(name)}
    if not left:
        raise OptionError("Everything that could be searched is set: leave something out, or give a space.")
    return left


def settle_trials(options: TuneOptions, space: Space) -> TuneOptions:
    """The options with the sampler that is meant, and no more trials than a grid has points."""
    sampler, trials = sampler_of(options), options.trials
    points = len(lay_grid(space, trials)) if sampler == "grid" else trials
    return replace(options, sampler=sampler, trials=min(trials, points))
