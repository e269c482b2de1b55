"""Which stages the head reads, and so which stages can learn at all; which of these a person wants trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.records import JOINED, SELECTED, Choice

__all__ = ["TUNABLE", "check_unfreeze", "is_selected", "reached_stages", "read_stages", "tuned_stages", "with_unfrozen"]

C = TypeVar("C", bound=Choice)

TOGETHER = (JOINED, SELECTED)

TUNABLE = ("few_layers", "many_layers", "surgical")
"""Strategies that train some stages whole, and so can be told which."""


def read_stages(decision: Choice, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages that the head reads: the decided one, or all of them for "joined" and "selected".

    Args:
        decision: Its `stage` is what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> from transferkit.records import Decision
        >>> decision = Decision(strategy="lp_ft", stage="joined", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> read_stages(decision, ["stem", "top"])
        ('stem', 'top')
    """
    if decision.stage not in (*stages, *TOGETHER):
        raise OptionError(unknown_name("stage", decision.stage, [*stages, *TOGETHER]))
    return tuple(stages) if decision.stage in TOGETHER else (decision.stage,)


def is_selected(decision: Choice) -> bool:
    """Whether the features that the head reads are weighted by the labels."""
    return decision.stage == SELECTED


def reached_stages(decision: Choice, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages up to the last one that the head reads: beyond it no gradient arises.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> from transferkit.records import Decision
        >>> decision = Decision(strategy="lp_ft", stage="middle", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> reached_stages(decision, ["stem", "middle", "top"])
        ('stem', 'middle')
    """
    last = read_stages(decision, stages)[-1]
    return tuple(stages[: list(stages).index(last) + 1])


def tuned_stages(decision: Choice, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages that the decision names for training, stem -> head; none if it leaves them to the strategy.

    Raises:
        OptionError: If one of them is unknown, or lies beyond what the head reads.
    """
    reached = reached_stages(decision, stages)
    problems = [unknown_name("stage", name, stages) for name in decision.tuned if name not in stages]
    problems += [
        f"stage {name!r} lies beyond {reached[-1]!r}, the last one that the head reads, and would never learn"
        for name in stages
        if name in decision.tuned and name not in reached
    ]
    if problems:
        raise OptionError(list_problems("The stages to train do not fit:", problems))
    return tuple(name for name in reached if name in decision.tuned)


def check_unfreeze(strategy: str, unfreeze: object) -> None:
    """Whether a strategy can be told which stages to train, and is told it in words that it knows.

    Args:
        strategy: Its name.
        unfreeze: Names of stages, one name, or a whole number; None if nothing was said.

    Raises:
        OptionError: If the strategy takes no such names, or they are none.
    """
    if unfreeze is None:
        return
    if strategy not in TUNABLE:
        raise OptionError(
            f"unfreeze says which stages are trained, and strategy={strategy} settles that itself. Leave unfreeze out, "
            f"or take a strategy that can be told: {', '.join(TUNABLE)}."
        )
    is_number = isinstance(unfreeze, int) and not isinstance(unfreeze, bool)
    is_names = isinstance(unfreeze, Sequence) and len(unfreeze) > 0 and all(isinstance(name, str) for name in unfreeze)
    if not (is_number or is_names):
        raise OptionError(
            f"unfreeze must be names of stages, or a whole number k for the last k stages, got {unfreeze!r}. "
            "For the strategy's own choice leave it out."
        )


def with_unfrozen(decision: C, unfreeze: int | str | Sequence[str] | None, stages: Sequence[str]) -> C:
    """The decision with the stages that a person wants trained.

    Args:
        decision: Its `strategy` and `stage` are what counts.
        unfreeze: Names of stages, one name, or k for the last k of those up to what the head reads; None leaves the
            decision as it is.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the strategy settles that itself, a name is unknown, or k is out of its range.

    Example:
        >>> from transferkit.records import Decision
        >>> decision = Decision(strategy="few_layers", stage="middle", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> with_unfrozen(decision, 1, ["stem", "middle", "top"]).tuned
        ('middle',)
    """
    check_unfreeze(decision.strategy, unfreeze)
    if unfreeze is None:
        return decision
    if isinstance(unfreeze, int):
        reached = reached_stages(decision, stages)
        if not 1 <= unfreeze <= len(reached):
            raise OptionError(
                f"unfreeze must be in [1, {len(reached)}], got {unfreeze}: so many stages there are up to "
                f"{reached[-1]!r}, the last one that the head reads."
            )
        return replace(decision, tuned=reached[-unfreeze:])
    named = replace(decision, tuned=(unfreeze,) if isinstance(unfreeze, str) else tuple(unfreeze))
    return replace(named, tuned=tuned_stages(named, stages))
