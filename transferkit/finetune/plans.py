"""The plan of a strategy that a person names, for a backbone that they hold."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.core.errors import OptionError
from transferkit.decision import starting_rate
from transferkit.nn import Backbone
from transferkit.options import Recipe
from transferkit.records import JOINED, SELECTED, TOP
from transferkit.strategies import STRATEGIES, Plan, PlanSettings, with_new_head, with_unfrozen

__all__ = ["plan_for"]

USUAL_BATCH = 32
"""Images per step that a learning rate is for where the recipe names none."""


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
    """What a strategy does with a backbone and a head.

    Args:
        strategy: Its name.
        backbone: Whose stages it is about.
        stage: What the head reads: a stage's name or index, "joined" or "selected".
        unfreeze: Stages to train, for `few_layers`, `many_layers` and `surgical`: their names, or k for the last k;
            None leaves them to the strategy.
        lr: Learning rate of the last stage; None takes the recipe's, or if that has none either its share (a tenth) of
            the rate that the backbone was trained at.
        norm: "frozen": running statistics stay; "keep": those of stages that learn go on being measured.
        recipe: Its optimizer and batch size say what a learning rate means.
        new_head: Whether the head starts at zero, and so must learn faster than one that was fitted before.

    Raises:
        OptionError: If there is no such strategy or stage, the strategy cannot be told what to train, or the recipe's
            learning rate is yet to be found.
    """
    make, recipe = STRATEGIES[strategy], Recipe() if recipe is None else recipe
    if lr is None:
        if recipe.lr == "find":
            raise OptionError(f"lr={recipe.lr!r} needs the images: transferkit.adapt has them. Give a number here.")
        lr = recipe.lr if isinstance(recipe.lr, (int, float)) else None
    if lr is None:
        size = recipe.batch_size or USUAL_BATCH
        start = starting_rate(backbone.spec, optimizer=recipe.optimizer, batch_size=size, scale=recipe.lr_scale)
        lr = start.lr
    chosen = str(stage) if stage in (JOINED, SELECTED) else backbone.find_stages(stage)[0]
    request = PlanSettings(strategy=strategy, stage=chosen, lr=lr, norm=norm)
    stages = [known.name for known in backbone.stages]
    plan = make(with_unfrozen(request, unfreeze, stages), stages)
    return with_new_head(plan) if new_head else plan
