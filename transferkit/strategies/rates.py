"""Learning rates by depth, and the rules and phases shared by strategies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from transferkit.core.errors import OptionError
from transferkit.strategies.plan import HEAD, Adapters, Phase, Plan, PlanRequest, Rule
from transferkit.strategies.reach import check_unfreeze, is_selected, reached_stages, read_stages

__all__ = [
    "CHOSEN",
    "HEAD_SHARE",
    "LIGHT_FACTOR",
    "NEW_HEAD_FACTOR",
    "SOLVED_HEAD_FACTOR",
    "decayed_rates",
    "exactly",
    "head_first",
    "head_only",
    "light_plan",
    "rate_of",
    "scaled_plan",
    "stage_rules",
    "with_new_head",
]

SOLVED_HEAD_FACTOR = 0.1
"""Rate of a head fitted in closed form, relative to the last stage: it is optimal already. On 150 hand signs (Lite0,
96 px, all layers) the last stage's rate cost 4 to 6 points."""

NEW_HEAD_FACTOR = 10.0
"""Rate of a head that starts at zero, relative to the last stage, whose weights are good already (the multiplier of
Caffe's fine-tuning example, Jia et al., 2014)."""

LIGHT_FACTOR = 10.0
"""Rate of norms, biases or adapters trained alone, relative to full fine-tuning: LoRA's best rate is about ten times
that of full fine-tuning (Schulman et al., LoRA without regret, 2025), and BitFit searched rates about ten times as high
(Ben Zaken et al., ACL 2022)."""

CHOSEN = "chosen stages"
"""Name of a phase whose stages were chosen explicitly."""

HEAD_SHARE = 0.1
"""Share of the epochs in which only the head is trained before stages follow: it was fitted without augmentation, and
adapts to the training loss on frozen stages first."""


def rate_of(request: PlanRequest) -> float:
    """The learning rate of the backbone's last stage.

    Raises:
        OptionError: If the request has none.
    """
    if not request.lr > 0:
        raise OptionError(
            f"The strategy {request.strategy!r} trains by gradient and needs lr > 0, got {request.lr!r}. "
            "A tenth of the backbone's original rate is a good start."
        )
    return request.lr


def decayed_rates(stages: Sequence[str], *, lr: float, decay: float) -> dict[str, float]:
    """Stage name -> its learning rate: `lr` for the last one, `decay` times as much for each one before.

    Args:
        stages: Stem -> head.
        lr: Of the last one, > 0.
        decay: In (0, 1]; 1 gives all stages the same rate.

    Raises:
        OptionError: If `decay` is out of its range.

    Example:
        >>> decayed_rates(["stem", "middle", "top"], lr=1.0, decay=0.5)
        {'stem': 0.25, 'middle': 0.5, 'top': 1.0}
    """
    if not 0 < decay <= 1:
        raise OptionError(f"decay must be in (0, 1], got {decay!r}.")
    return {name: lr * decay ** (len(stages) - 1 - position) for position, name in enumerate(stages)}


def exactly(stage: str) -> str:
    """The pattern that matches only this stage name.

    Example:
        >>> exactly("blocks.3"), exactly("odd[1]*")
        ('blocks.3', 'odd[[]1][*]')
    """
    return re.sub(r"([*?[])", r"[\1]", stage)


def stage_rules(rates: Mapping[str, float], stages: Sequence[str], *, head: float) -> tuple[Rule, ...]:
    """Rules for the head and for whole stages; stages without a rate are frozen.

    Args:
        rates: Stage name -> learning rate, > 0.
        stages: All of the backbone's, stem -> head.
        head: Learning rate of the head.
    """
    trained = [Rule(stage=exactly(name), lr=rates[name]) for name in reversed(stages) if name in rates]
    rest = [Rule(stage="*")] if len(rates) < len(stages) else []
    return (Rule(stage=HEAD, lr=head), *trained, *rest)


def head_only(request: PlanRequest, *, share: float = 1.0, factor: float = SOLVED_HEAD_FACTOR) -> Phase:
    """A phase in which only the head is trained."""
    head = factor * rate_of(request)
    return Phase(name="head", rules=(Rule(stage=HEAD, lr=head), Rule(stage="*")), share=share)


def head_first(
    name: str, request: PlanRequest, stages: Sequence[str], *, phase: str, rates: Mapping[str, float]
) -> Plan:
    """A plan that trains the head alone, then the head with some stages.

    Args:
        name: Of the strategy.
        request: Input stage of the head, learning rate, and treatment of normalisation.
        stages: All of the backbone's, stem -> head.
        phase: Name of the second phase, if the request does not name its stages.
        rates: Stage name -> learning rate in the second phase; the others are frozen.
    """
    rules = stage_rules(rates, stages, head=SOLVED_HEAD_FACTOR * rate_of(request))
    phase = CHOSEN if request.tuned else phase
    return Plan(
        strategy=name,
        stages=read_stages(request, stages),
        closed_form=False,
        selected=is_selected(request),
        phases=(head_only(request, share=HEAD_SHARE), Phase(name=phase, rules=rules, share=1 - HEAD_SHARE)),
        norm=request.norm,
    )


def light_plan(
    name: str, request: PlanRequest, stages: Sequence[str], *, phase: str, kind: str, adapters: Adapters | None = None
) -> Plan:
    """A plan that trains the head and one kind of parameter in every stage that gradients reach, in a single phase.

    All stages have the same rate: such small changes need no decay, and stages without such parameters need no rule.

    Args:
        name: Of the strategy.
        request: Input stage of the head, learning rate, and treatment of normalisation.
        stages: All of the backbone's, stem -> head.
        phase: Name of the phase.
        kind: One of `KINDS`.
        adapters: To be added to the backbone first.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.
    """
    check_unfreeze(name, request.tuned or None)
    lr = rate_of(request)
    beyond = stages[len(reached_stages(request, stages)) :]
    rules = (
        Rule(stage=HEAD, lr=SOLVED_HEAD_FACTOR * lr),
        *(Rule(stage=exactly(stage)) for stage in beyond),
        Rule(stage="*", kind=kind, lr=LIGHT_FACTOR * lr),
        Rule(stage="*"),
    )
    return Plan(
        strategy=name,
        stages=read_stages(request, stages),
        closed_form=False,
        selected=is_selected(request),
        phases=(Phase(name=phase, rules=rules),),
        norm=request.norm,
        adapters=adapters,
    )


def with_new_head(plan: Plan) -> Plan:
    """The same plan for a head that starts at zero, with a higher learning rate for it.

    Example:
        >>> solved = Rule(stage=HEAD, lr=1e-4)
        >>> plan = Plan(strategy="lp_ft", stages=("top",), closed_form=False,
        ...             phases=(Phase(name="all", rules=(solved, Rule(stage="*", lr=1e-3))),))
        >>> [rule.lr for rule in with_new_head(plan).phases[0].rules]
        [0.01, 0.001]
    """
    if plan.start == "zero":
        return plan
    return replace(scaled_plan(plan, NEW_HEAD_FACTOR / SOLVED_HEAD_FACTOR, stage=HEAD), start="zero")


def scaled_plan(plan: Plan, factor: float, *, stage: str | None = None) -> Plan:
    """The same plan with learning rates multiplied.

    Args:
        plan: With phases.
        factor: By how much, > 0.
        stage: Pattern of the rules to scale; None for all.

    Example:
        >>> rules = (Rule(stage="head", lr=1e-4), Rule(stage="*", lr=1e-3))
        >>> plan = Plan(strategy="s", stages=("top",), closed_form=False, phases=(Phase(name="all", rules=rules),))
        >>> [rule.lr for rule in scaled_plan(plan, 2.0).phases[0].rules]
        [0.0002, 0.002]
    """

    def scaled(rule: Rule) -> Rule:
        return replace(rule, lr=factor * rule.lr) if stage in (None, rule.stage) else rule

    phases = tuple(replace(phase, rules=tuple(map(scaled, phase.rules))) for phase in plan.phases)
    return replace(plan, phases=phases)
