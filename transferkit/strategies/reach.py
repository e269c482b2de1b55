"""Input stages of the head, the stages that gradients reach, and the stages requested for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.records import JOINED, SELECTED, Choice
from transferkit.strategies.plan import PlanSettings, StageRequest

__all__ = [
    "DECAYED",
    "NEED_UNLABELLED",
    "TUNABLE",
    "check_unfreeze",
    "is_selected",
    "reached_stages",
    "read_stages",
    "tuned_stages",
    "with_unfrozen",
]

C = TypeVar("C", Choice, PlanSettings)

TOGETHER = (JOINED, SELECTED)

DECAYED = ("lp_ft", "few_layers", "many_layers", "fixmatch", "dann")
"""Strategies whose stages have rates that fall towards the stem."""

NEED_UNLABELLED = ("fixmatch", "dann")
"""Strategies that train on unlabelled images too (unlabelled=)."""

TUNABLE = ("lp_ft", "few_layers", "many_layers", "surgical", "fixmatch", "dann")
"""Strategies that train complete stages, and accept a choice of them (unfreeze=)."""


def read_stages(request: StageRequest, stages: Sequence[str]) -> tuple[str, ...]:
    """Input stages of the head: the decided one, or all for "joined" and "selected".

    Args:
        request: Its `stage` is used.
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
    """Whether the head's input is supervised feature selection."""
    return request.stage == SELECTED


def reached_stages(request: StageRequest, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages up to the head's last input stage: later ones get no gradient.

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
    """The stages that the request names for training, stem -> head; empty if it names none.

    Raises:
        OptionError: If one of them is unknown, or after the head's input.
    """
    reached = reached_stages(request, stages)
    problems = [unknown_name("stage", name, stages) for name in request.tuned if name not in stages]
    problems += [
        f"stage {name!r} is after {reached[-1]!r}, the head's input, and would get no gradient"
        for name in stages
        if name in request.tuned and name not in reached
    ]
    if problems:
        raise OptionError(list_problems("Invalid stages to train:", problems))
    return tuple(name for name in reached if name in request.tuned)


def check_unfreeze(strategy: str, unfreeze: object) -> None:
    """Raise unless a strategy accepts a choice of stages to train, in a valid form.

    Args:
        strategy: Its name.
        unfreeze: Names of stages, one name, or an integer; None for no choice.

    Raises:
        OptionError: If the strategy accepts no choice, or it is of another form.
    """
    if unfreeze is None:
        return
    if strategy not in TUNABLE:
        raise OptionError(
            f"unfreeze chooses the stages to train, but strategy={strategy} does not accept it. Leave unfreeze out, or "
            f"use a strategy that does: {', '.join(TUNABLE)}."
        )
    is_number = isinstance(unfreeze, int) and not isinstance(unfreeze, bool)
    is_names = isinstance(unfreeze, Sequence) and len(unfreeze) > 0 and all(isinstance(name, str) for name in unfreeze)
    if not (is_number or is_names):
        raise OptionError(
            f"unfreeze must be names of stages, or a whole number k for the last k stages, got {unfreeze!r}. "
            "Leave it out for the strategy's default."
        )


def with_unfrozen(request: C, unfreeze: int | str | Sequence[str] | None, stages: Sequence[str]) -> C:
    """The request with the stages to train.

    Args:
        request: Its `strategy` and `stage` are used.
        unfreeze: Names of stages, one name, or k for the last k of those up to the head's input; None returns the
            request unchanged.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the strategy does not accept it, a name is unknown, or k is out of range.

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
                f"unfreeze must be in [1, {len(reached)}], the number of stages up to the head's input "
                f"{reached[-1]!r}, got {unfreeze}."
            )
        return replace(request, tuned=reached[-unfreeze:])
    named = replace(request, tuned=(unfreeze,) if isinstance(unfreeze, str) else tuple(unfreeze))
    return replace(named, tuned=tuned_stages(named, stages))
