"""Strategy that trains the last few stages; the others are frozen."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import decayed_rates, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["few_layers"]

SHARE = 1 / 3
"""Share of all stages that are trained unless the decision names them: the textbook's "few layers"."""

FEWEST = 2
"""Minimum number of trained stages: a transformer's last stage is often only its final normalisation."""


@STRATEGIES.register("few_layers")
def few_layers(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head alone, then the head with the last third of the stages, or with those that the decision names.

    If the head's input is an early stage, the last stages are those up to it.

    Args:
        request: Its `stage`, `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="few_layers", stage="top", lr=1e-3, norm="keep")
        >>> plan = few_layers(request, ["stem", "a", "b", "c", "top"])
        >>> [f"{rule} {rule.lr:g}" for rule in plan.phases[1].rules]
        ['head 0.0001', 'top 0.001', 'c 0.00075', '* 0']
    """
    reached = reached_stages(request, stages)
    chosen = tuned_stages(request, stages) or reached[-_count(len(reached)) :]
    rates = decayed_rates(reached, lr=rate_of(request), decay=request.layer_decay)
    return head_first("few_layers", request, stages, phase="last stages", rates={name: rates[name] for name in chosen})


def _count(stages: int) -> int:
    """Number of trained stages out of `stages`; at least one stays frozen if there are two."""
    return max(1, min(max(FEWEST, round(SHARE * stages)), stages - 1))
