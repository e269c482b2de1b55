"""Which stages the head reads, and so which stages can learn at all."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.errors import OptionError, list_problems, unknown_name
from transferkit.types import JOINED, SELECTED, Decision

__all__ = ["is_selected", "reached_stages", "read_stages", "tuned_stages"]

TOGETHER = (JOINED, SELECTED)


def read_stages(decision: Decision, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages that the head reads: the decided one, or all of them for "joined" and "selected".

    Args:
        decision: Its `stage` is what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> decision = Decision(strategy="lp_ft", stage="joined", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> read_stages(decision, ["stem", "top"])
        ('stem', 'top')
    """
    if decision.stage not in (*stages, *TOGETHER):
        raise OptionError(unknown_name("stage", decision.stage, [*stages, *TOGETHER]))
    return tuple(stages) if decision.stage in TOGETHER else (decision.stage,)


def is_selected(decision: Decision) -> bool:
    """Whether the features that the head reads are weighted by the labels."""
    return decision.stage == SELECTED


def reached_stages(decision: Decision, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages up to the last one that the head reads: beyond it no gradient arises.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> decision = Decision(strategy="lp_ft", stage="middle", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> reached_stages(decision, ["stem", "middle", "top"])
        ('stem', 'middle')
    """
    last = read_stages(decision, stages)[-1]
    return tuple(stages[: list(stages).index(last) + 1])


def tuned_stages(decision: Decision, stages: Sequence[str]) -> tuple[str, ...]:
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
