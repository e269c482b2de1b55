"""Which stages the head reads, and so which stages can learn at all; which of these a person wants trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.records import JOINED, SELECTED, Choice
from transferkit.strategies.plan import PlanSettings, StageRequest

__all__ = ["TUNABLE", "check_unfreeze", "is_selected", "reached_stages", "read_stages", "tuned_stages", "with_unfrozen"]

C = TypeVar("C", Choice, PlanSettings)

TOGETHER = (JOINED, SELECTED)

TUNABLE = ("few_layers", "many_layers", "surgical")
"""Strategies that train some stages whole, and so can be told which."""


def read_stages(request: StageRequest, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages that the head reads: the decided one, or all of them for "joined" and "selected".

    Args:
        request: Its `stage` is what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="lp_ft", stage="joined", lr=1e-3, norm="keep")
        >>> read_stages(request, ["stem", "top"])
        ('stem', 'top')
    """
    if request.stage not in (*stages, *TOGETHER):
        raise OptionError(unknown_name("stage", request.stage, [*stages, *TOGETHER]))
    return tuple(stages) if request.stage in TOGETHER else (request.stage,)


def is_selected(request: StageRequest) -> bool:
    """Whether the features that the head reads are weighted by the labels."""
    return request.stage == SELECTED


def reached_stages(request: StageRequest, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages up to the last one that the head reads: beyond it no gradient arises.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="lp_ft", stage="middle", lr=1e-3, norm="keep")
        >>> reached_stages(request, ["stem", "middle", "top"])
        ('stem', 'middle')
    """
    last = read_stages(request, stages)[-1]
    return tuple(stages[: list(stages).index(last) + 1])


def tuned_stages(request: StageRequest, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages that the request names for training, stem -> head; none if it leaves them to the strategy.

    Raises:
        OptionError: If one of them is unknown, or lies beyond what the head reads.
    """
    reached = reached_stages(request, stages)
    problems = [unknown_name("stage", name, stages) for name in request.tuned if name not in stages]
    problems += [
        f"stage {name!r} lies beyond {reached[-1]!r}, the last one that the head reads, and would never learn"
        for name in stages
        if name in request.tuned and name not in reached
    ]
    if problems:
        raise OptionError(list_problems("The stages to train do not fit:", problems))
    return tuple(name for name in reached if name in request.tuned)


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


def with_unfrozen(request: C, unfreeze: int | str | Sequence[str] | None, stages: Sequence[str]) -> C:
    """The request with the stages to train.

    Args:
        request: Its `strategy` and `stage` are what counts.
        unfreeze: Names of stages, one name, or k for the last k of those up to what the head reads; None leaves
            the request as it is.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the strategy settles that itself, a name is unknown, or k is out of its range.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="few_layers", stage="middle", lr=1e-3, norm="keep")
        >>> with_unfrozen(request, 1, ["stem", "middle", "top"]).tuned
        ('middle',)
    """
    check_unfreeze(request.strategy, unfreeze)
    if unfreeze is None:
        return request
    if isinstance(unfreeze, int):
        reached = reached_stages(request, stages)
        if not 1 <= unfreeze <= len(reached):
            raise OptionError(
                f"unfreeze must be in [1, {len(reached)}], got {unfreeze}: so many stages there are up to "
                f"{reached[-1]!r}, the last one that the head reads."
            )
        return replace(request, tuned=reached[-unfreeze:])
    named = replace(request, tuned=(unfreeze,) if isinstance(unfreeze, str) else tuple(unfreeze))
    return replace(named, tuned=tuned_stages(named, stages))
