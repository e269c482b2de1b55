"""How fast what learns, and the rules and phases that say so: the arithmetic that strategies share."""

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
    "STAGE_DECAY",
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
"""A head that was solved for on frozen features is at its best already and learns so many times as fast as the last
stage. On 150 hand signs (Lite0, 96 px, all layers) a head as fast as the last stage cost 4 to 6 points."""

NEW_HEAD_FACTOR = 10.0
"""A head that starts at zero learns so many times faster than the last stage: the weights below it are good already
(the multiplier of Caffe's fine-tuning example, Jia et al., 2014)."""

LIGHT_FACTOR = 10.0
"""Where only a sliver of each stage learns (norms, biases, adapters), it learns so many times faster than a whole stage
would: LoRA's best rate is about ten times that of full fine-tuning (Schulman et al., LoRA without regret, 2025),
and BitFit searched rates some ten times as high (Ben Zaken et al., ACL 2022)."""

STAGE_DECAY = 0.75
"""Each stage learns at this share of the rate of the one above it: the upper end of what BEiT uses for one block of a
transformer (0.65 to 0.75; Bao et al., ICLR 2022). The first of 13 stages learns at 1/32 of the last, the first of 5 at
1/3. The 1/2.6 of ULMFiT (Howard and Ruder, ACL 2018) is for a network of three layers."""

CHOSEN = "chosen stages"
"""What the phase is called whose stages were chosen one by one."""

HEAD_SHARE = 0.1
"""Share of the epochs that the head learns alone where stages follow: it was solved for without augmentation, and meets
the stages at rest under the training's own loss."""


def rate_of(request: PlanRequest) -> float:
    """The learning rate of the backbone's last stage.

    Raises:
        OptionError: If the decision gives none.
    """
    if not request.lr > 0:
        raise OptionError(
            f"The strategy {request.strategy!r} learns by gradient and needs lr > 0, got {request.lr!r}. "
            "A tenth of the rate that the backbone was trained at is a good start."
        )
    return request.lr


def decayed_rates(stages: Sequence[str], *, lr: float, decay: float = STAGE_DECAY) -> dict[str, float]:
    """Stage name -> its learning rate: `lr` for the last one, `decay` times as much for each one before.

    Args:
        stages: Stem -> head.
        lr: Of the last one, > 0.
        decay: In (0, 1]; 1 gives all the same rate.

    Raises:
        OptionError: If `decay` is out of its range.

    Example:
        >>> decayed_rates(["stem", "middle", "top"], lr=1.0, decay=0.5)
        {'stem': 0.25, 'middle': 0.5, 'top': 1.0}
    """
    if not 0 < decay <= 1:
        raise OptionError(f"decay must be in (0, 1], got {decay!r}.")
    return {name: lr * decay ** (len(stages) - 1 - place) for place, name in enumerate(stages)}


def exactly(stage: str) -> str:
    """The pattern that fits this stage name and no other.

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
    learning = [Rule(stage=exactly(name), lr=rates[name]) for name in reversed(stages) if name in rates]
    rest = [Rule(stage="*")] if len(rates) < len(stages) else []
    return (Rule(stage=HEAD, lr=head), *learning, *rest)


def head_only(request: PlanRequest, *, share: float = 1.0, factor: float = SOLVED_HEAD_FACTOR) -> Phase:
    """The phase in which nothing but the head learns."""
    head = factor * rate_of(request)
    return Phase(name="head", rules=(Rule(stage=HEAD, lr=head), Rule(stage="*")), share=share)


def head_first(
    name: str, request: PlanRequest, stages: Sequence[str], *, phase: str, rates: Mapping[str, float]
) -> Plan:
    """The head alone, then the head with some stages.

    Args:
        name: Of the strategy.
        request: Where the head reads, how fast it learns, and what becomes of normalisation.
        stages: All of the backbone's, stem -> head.
        phase: Name of the second phase, where the decision leaves its stages to the strategy.
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
    """The head and one kind of parameter in every stage that gradients reach, in a single phase.

    One rate for all stages: what so little can do to a stage needs no decay, and a stage without such parameters needs
    no rule of its own.

    Args:
        name: Of the strategy.
        request: Where the head reads, how fast it learns, and what becomes of normalisation.
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
    """The same plan for a head that starts at zero, which must learn faster.

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
        stage: Whose rules, by the pattern that they are written with; None means all.

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
