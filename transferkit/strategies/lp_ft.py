"""A linear probe first, then fine-tuning of everything from there."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Phase, Plan, PlanRequest
from transferkit.strategies.rates import SOLVED_HEAD_FACTOR, decayed_rates, rate_of, stage_rules
from transferkit.strategies.reach import check_unfreeze, is_selected, reached_stages, read_stages

__all__ = ["lp_ft"]


@STRATEGIES.register("lp_ft")
def lp_ft(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """The head is solved for on frozen features, then all stages learn with it, in one phase.

    A new head would send large, senseless gradients through good features; one that fits them already does not. It is
    solved for, so it learns more slowly than the last stage.

    Args:
        request: Its `stage` (one, "joined" or "selected"), `lr` and `norm` are what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022.
        Deviation: the head is solved for in closed form, it may read several stages, and early stages learn more
        slowly; the paper trains a probe on the last one by gradient, and all layers at one rate.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="lp_ft", stage="joined", lr=1e-3, norm="keep")
        >>> plan = lp_ft(request, ["stem", "top"])
        >>> plan.start, [f"{rule} {rule.lr:g}" for rule in plan.phases[0].rules]
        ('closed_form', ['head 0.0001', 'top 0.001', 'stem 0.00075'])
    """
    check_unfreeze("lp_ft", request.tuned or None)
    lr = rate_of(request)
    rules = stage_rules(decayed_rates(reached_stages(request, stages), lr=lr), stages, head=SOLVED_HEAD_FACTOR * lr)
    return Plan(
        strategy="lp_ft",
        stages=read_stages(request, stages),
        closed_form=False,
        selected=is_selected(request),
        phases=(Phase(name="all layers", rules=rules),),
        norm=request.norm,
    )
