"""A linear classifier on frozen features, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.errors import OptionError, unknown_name
from transferkit.strategies.plan import STRATEGIES, Plan
from transferkit.types import JOINED, SELECTED, Decision

__all__ = ["linear_probe"]


@STRATEGIES.register("linear_probe")
def linear_probe(decision: Decision, stages: Sequence[str]) -> Plan:
    """Read the decided stage, or all of them for "joined" and "selected"; nothing of the backbone is trained.

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
    together = (JOINED, SELECTED)
    if decision.stage not in (*stages, *together):
        raise OptionError(unknown_name("stage", decision.stage, [*stages, *together]))
    chosen = tuple(stages) if decision.stage in together else (decision.stage,)
    return Plan(strategy="linear_probe", stages=chosen, closed_form=True, selected=decision.stage == SELECTED)
