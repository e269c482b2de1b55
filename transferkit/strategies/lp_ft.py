"""Strategy that fits a linear probe, then fine-tunes all but the first layers from there (LP-FT)."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Phase, Plan, PlanRequest
from transferkit.strategies.rates import CHOSEN, SOLVED_HEAD_FACTOR, decayed_rates, rate_of, stage_rules
from transferkit.strategies.reach import is_selected, reached_stages, read_stages, tuned_stages

__all__ = ["lp_ft"]

FROZEN_SHARE = 4 / 9
"""Share of all stages, from the stem on, that stay frozen unless the decision names those to train, as it does where
there are many images. Their activations are computed once, which saves about half of the time; docs/fine-tuning.md has
the accuracies. Of EfficientNet-Lite0's nine stages these are the four whose outputs have an eighth of the resolution or
more."""


@STRATEGIES.register("lp_ft")
def lp_ft(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Fit the head in closed form on frozen features, then train it together with the later stages, or those that the
    decision names, in one phase.

    A random head would send large, uninformative gradients through good features; a fitted one does not. Since it is
    fitted already, its learning rate is below the last stage's.

    Args:
        request: Its `stage` (one, "joined" or "selected"), `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022.
        Deviation: the head is fitted in closed form, its input may be several stages, early stages have lower rates,
        and the first ones none; the paper trains a probe on the last stage by gradient, and all layers at one rate.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="lp_ft", stage="joined", lr=1e-3, norm="keep")
        >>> plan = lp_ft(request, ["stem", "a", "top"])
        >>> plan.start, [f"{rule} {rule.lr:g}" for rule in plan.phases[0].rules]
        ('closed_form', ['head 0.0001', 'top 0.001', 'a 0.00075', '* 0'])
    """
    lr, reached = rate_of(request), reached_stages(request, stages)
    chosen = tuned_stages(request, stages) or reached[int(FROZEN_SHARE * len(reached)) :]
    rates = decayed_rates(reached, lr=lr, decay=request.layer_decay)
    phase = "all stages" if len(chosen) == len(reached) else CHOSEN if request.tuned else "later stages"
    rules = stage_rules({name: rates[name] for name in chosen}, stages, head=SOLVED_HEAD_FACTOR * lr)
    return Plan(
        strategy="lp_ft",
        stages=read_stages(request, stages),
        closed_form=False,
        selected=is_selected(request),
        phases=(Phase(name=phase, rules=rules),),
        norm=request.norm,
    )
