"""A linear classifier on frozen features, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.errors import OptionError, unknown_name
from transferkit.strategies.plan import STRATEGIES, Plan
from transferkit.types import JOINED, Decision

__all__ = ["linear_probe"]


@STRATEGIES.register("linear_probe")
def linear_probe(decision: Decision, stages: Sequence[str]) -> Plan:
    """Read the decided stage, or all of them for "joined"; nothing of the backbone is trained.

    Args:
        decision: Its `stage` is what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage.

    Example:
        >>> decision = Decision(strategy="linear_probe", stage="top", lr=0, lr_scale=0, norm="frozen", mode="given",
        ...                     reasons=("asked for",))
        >>> linear_probe(decision, ["stem", "top"]).stages
        ('top',)
    """
    if decision.stage != JOINED and decision.stage not in stages:
        raise OptionError(unknown_name("stage", decision.stage, [*stages, JOINED]))
    chosen = tuple(stages) if decision.stage == JOINED else (decision.stage,)
    return Plan(strategy="linear_probe", stages=chosen, closed_form=True)
