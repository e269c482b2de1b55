"""Strategy that fits a linear probe, then fine-tunes all layers from there (LP-FT)."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Phase, Plan, PlanRequest
from transferkit.strategies.rates import SOLVED_HEAD_FACTOR, decayed_rates, rate_of, stage_rules
from transferkit.strategies.reach import check_unfreeze, is_selected, reached_stages, read_stages

__all__ = ["lp_ft"]


@STRATEGIES.register("lp_ft")
def lp_ft(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Fit the head in closed form on frozen features, then train all stages with it, in one phase.

    A random head would send large, uninformative gradients through good features; a fitted one does not. Since it is
    fitted already, its learning rate is below the last stage's.

    Args:
        request: Its `stage` (one, "joined" or "selected"), `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022.
        Deviation: the head is fitted in closed form, its input may be several stages, and early stages have lower
        rates; the paper trains a probe on the last stage by gradient, and all layers at one rate.

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
