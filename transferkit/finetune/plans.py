"""Plan of a named strategy for a given backbone."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.core.errors import OptionError
from transferkit.decision import starting_rate
from transferkit.nn import Backbone
from transferkit.options import Recipe
from transferkit.records import JOINED, SELECTED, TOP
from transferkit.strategies import STRATEGIES, Plan, PlanSettings, with_new_head, with_unfrozen

__all__ = ["plan_for"]

DEFAULT_BATCH_SIZE = 32
"""Batch size assumed for a learning rate if the recipe names none."""


def plan_for(
    strategy: str,
    backbone: Backbone,
    *,
    stage: str | int = TOP,
    unfreeze: int | str | Sequence[str] | None = None,
    lr: float | None = None,
    norm: str = "frozen",
    recipe: Recipe | None = None,
    new_head: bool = True,
) -> Plan:
    """The plan of a strategy for a backbone and a head.

    Args:
        strategy: Its name.
        backbone: The backbone.
        stage: Input of the head: a stage's name or index, "joined" or "selected".
        unfreeze: Stages to train, for `few_layers`, `many_layers` and `surgical`: their names, or k for the last k;
            None for the strategy's default.
        lr: Learning rate of the last stage; None uses the recipe's, or if that has none its share (a tenth) of the
            backbone's original rate.
        norm: "frozen": running statistics are fixed; "keep": those of trained stages are updated.
        recipe: Its optimizer and batch size scale the learning rate.
        new_head: Whether the head starts at zero, and so needs a higher rate than a fitted one.

    Raises:
        OptionError: If there is no such strategy or stage, the strategy does not accept `unfreeze`, or the recipe's
            learning rate is "find".
    """
    make, recipe = STRATEGIES[strategy], Recipe() if recipe is None else recipe
    if lr is None:
        if recipe.lr == "find":
            raise OptionError(f"lr={recipe.lr!r} needs images, which only transferkit.adapt has. Pass a number here.")
        lr = None if recipe.lr is None or isinstance(recipe.lr, str) else float(recipe.lr)
    if lr is None:
        size = recipe.batch_size or DEFAULT_BATCH_SIZE
        start = starting_rate(backbone.spec, optimizer=recipe.optimizer, batch_size=size, scale=recipe.lr_scale)
        lr = start.lr
    chosen = str(stage) if stage in (JOINED, SELECTED) else backbone.find_stages(stage)[0]
    request = PlanSettings(strategy=strategy, stage=chosen, lr=lr, layer_decay=recipe.layer_decay, norm=norm)
    stages = [known.name for known in backbone.stages]
    plan = make(with_unfrozen(request, unfreeze, stages), stages)
    return with_new_head(plan) if new_head else plan
