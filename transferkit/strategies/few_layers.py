"""The last few stages learn, what is below stays frozen."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import decayed_rates, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["few_layers"]

SHARE = 1 / 3
"""Of all stages that learn unless the decision names them: the textbook's "few" of a network of many."""

FEWEST = 2
"""The last stage of a transformer is often its final normalisation alone, so one stage would be none."""


@STRATEGIES.register("few_layers")
def few_layers(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """The head alone, then the head with the last third of the stages, or with those that the decision names.

    Where the head reads an early stage, the last stages are those up to it.

    Args:
        request: Its `stage`, `tuned`, `lr` and `norm` are what counts.
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
    rates = decayed_rates(reached, lr=rate_of(request))
    return head_first("few_layers", request, stages, phase="last stages", rates={name: rates[name] for name in chosen})


def _count(stages: int) -> int:
    """How many of so many stages are a few; one at least stays frozen if there are two."""
    return max(1, min(max(FEWEST, round(SHARE * stages)), stages - 1))
