"""Which choice is completed, and under which conditions: what a person asked for, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transferkit import zoo
from transferkit.decision import SMALL_BATCH, Conditions, choose
from transferkit.finetune import Recipe
from transferkit.nn.norm import NEEDS_SEVERAL
from transferkit.records import JOINED, SELECTED, TOP, BackboneSpec, Choice, Evidence
from transferkit.strategies import with_unfrozen

__all__ = ["ask", "conditions_for", "give"]

DEFAULT_STAGE = {"linear_probe": JOINED}
"""Strategy -> the stage that its head reads unless the person names one; fine-tuned networks are read at the top."""


def ask(
    backbone: BackboneSpec, *, strategy: str, stage: str | int | None, unfreeze: int | str | Sequence[str] | None = None
) -> Choice:
    """The choice that a person made.

    Args:
        backbone: Whose stages it is about.
        strategy: A registered name.
        stage: What the head reads, by name or index; None takes what is usual for the strategy.
        unfreeze: Stages to train; None leaves them to the strategy.

    Raises:
        OptionError: If the backbone or the strategy cannot do that.
    """
    named = DEFAULT_STAGE.get(strategy, TOP) if stage is None else stage
    chosen = str(named) if named in (JOINED, SELECTED) else backbone.find_stages(named)[0]
    said = f"{strategy} on {chosen} was asked for; nothing was decided."
    choice = Choice(strategy=strategy, stage=chosen, mode="given", reasons=(said,))
    return with_unfrozen(choice, unfreeze, [known.name for known in backbone.stages])


def give(
    evidence: Evidence, *, strategy: str, stage: str | int | None, unfreeze: int | str | Sequence[str] | None = None
) -> Choice:
    """The choice that a person made, beside what was measured; arguments and errors as for `ask`."""
    asked = ask(evidence.backbone, strategy=strategy, stage=stage, unfreeze=unfreeze)
    known = {(option.strategy, option.stage): option for option in choose(evidence).options}
    expected = known.pop((asked.strategy, asked.stage), None)
    reasons = asked.reasons
    if asked.tuned:
        reasons = (*reasons, f"The stages to train were asked for as well: {', '.join(asked.tuned)}.")
    # What is expected of a strategy is of its own choice of stages.
    expected = None if asked.tuned else expected
    return replace(asked, reasons=reasons, expected=expected, alternatives=tuple(known.values()))


def conditions_for(
    evidence: Evidence,
    recipe: Recipe,
    *,
    norm: str = "auto",
    batch_size: int | None = None,
    processes: int = 1,
    on_gpus: bool = False,
) -> Conditions:
    """How training is asked to go, for `complete`.

    Args:
        evidence: What the frozen pass measured.
        recipe: Its optimizer, rate and batch size.
        norm: What becomes of normalisation.
        batch_size: What to take where the recipe names none; None fits it.
        processes, on_gpus: How many train together, and where.
    """
    conditions = Conditions(
        batch_size=recipe.batch_size or batch_size,
        optimizer=recipe.optimizer,
        lr=float(recipe.lr) if isinstance(recipe.lr, (int, float)) else None,
        lr_scale=recipe.lr_scale,
        norm=norm,
        processes=processes,
        on_gpus=on_gpus,
        needs_several=norm in NEEDS_SEVERAL,
    )
    if norm != "auto" or conditions.at_once(evidence.data.train_images) >= SMALL_BATCH:
        return conditions
    if evidence.backbone.batch_norm is False:
        return conditions
    relative = zoo.native_group_norm(evidence.backbone.name) or ""
    return replace(conditions, relative=relative)
