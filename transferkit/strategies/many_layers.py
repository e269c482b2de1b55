"""Strategy that trains all stages but the stem, with lower rates for earlier stages."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import decayed_rates, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["many_layers"]


@STRATEGIES.register("many_layers")
def many_layers(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head alone, then the head with all stages but the first, or with those that the decision names.

    The stem's filters (edges, colours) suit any images, and its activations are cached. If the decision names all
    stages, the stem is trained too.

    Args:
        request: Its `stage`, `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="many_layers", stage="top", lr=1e-3, norm="keep")
        >>> plan = many_layers(request, ["stem", "a", "top"])
        >>> [f"{rule} {rule.lr:g}" for rule in plan.phases[1].rules]
        ['head 0.0001', 'top 0.001', 'a 0.00075', '* 0']
    """
    reached = reached_stages(request, stages)
    rates = decayed_rates(reached, lr=rate_of(request), decay=request.layer_decay)
    chosen = tuned_stages(request, stages) or reached[1:] or reached
    return head_first(
        "many_layers", request, stages, phase="all but the stem", rates={name: rates[name] for name in chosen}
    )
