"""What every registered strategy must keep to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest

from transferkit.core.errors import OptionError
from transferkit.records import Decision
from transferkit.strategies import HEAD, STRATEGIES, TUNABLE, Phase, Plan, Rule, with_unfrozen
from transferkit.strategies.plan import KINDS

STAGES = ("stem", "middle", "top")
DEEP = ("bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6", "top")
BLOCKS = (*(f"blocks.{number}" for number in range(12)), "top")
ODD = ("a[1]", "a1", "b*", "bc", "top")
"""Stage names that are patterns if taken at their word."""

WEIGHT = "weight"
"""A kind of parameter that no rule can be about but under "any"."""

STAGED = ("few_layers", "many_layers", "surgical")
"""Strategies that leave a prefix of the network frozen from the first epoch to the last."""


def decision(strategy: str, stage: str, **changes: object) -> Decision:
    asked = Decision(
        strategy=strategy, stage=stage, lr=1e-3, lr_scale=0.1, norm="keep", mode="given", reasons=("asked for",)
    )
    return dataclasses.replace(asked, **changes)


def make_plan(name: str, stage: str, stages: Sequence[str] = STAGES, **changes: object) -> Plan:
    return STRATEGIES[name](decision(name, stage, **changes), stages)


def claims(phase: Phase, stages: Sequence[str], *, adapters: bool) -> dict[tuple[str, str], Rule | None]:
    """(stage, kind) -> the first rule that fits, for a backbone that has all kinds of parameters in every stage."""
    kinds = [WEIGHT, *(kind for kind in KINDS if kind not in ("any", "adapter")), *(["adapter"] if adapters else [])]
    places = [(stage, kind) for stage in stages for kind in kinds] + [(HEAD, WEIGHT), (HEAD, "bias")]
    return {
        (stage, kind): next(
            (rule for rule in phase.rules if fnmatchcase(stage, rule.stage) and rule.kind in ("any", kind)), None
        )
        for stage, kind in places
    }


def rates(phase: Phase, stages: Sequence[str], *, adapters: bool) -> dict[str, float]:
    """Stage -> the highest rate in it."""
    highest: dict[str, float] = dict.fromkeys([*stages, HEAD], 0.0)
    for (stage, _), rule in claims(phase, stages, adapters=adapters).items():
        assert rule is not None
        highest[stage] = max(highest[stage], rule.lr)
    return highest


@pytest.mark.parametrize("stage", [*STAGES, "joined", "selected"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_plan_reads_stages_of_the_backbone_in_their_order(name, stage):
    plan = make_plan(name, stage)
    assert isinstance(plan, Plan)
    assert plan.strategy == name
    positions = [STAGES.index(read) for read in plan.stages]
    assert positions == sorted(set(positions))
    assert plan.selected == (stage == "selected")
    if stage in ("joined", "selected"):
        assert plan.stages == STAGES
    else:
        assert stage in plan.stages


@pytest.mark.parametrize("stage", ["top", "joined", "selected"])
@pytest.mark.parametrize("stages", [("top",), ("stem", "top"), STAGES, DEEP, BLOCKS, ODD], ids=len)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_is_claimed_and_every_rule_claims_something(name, stages, stage):
    plan = make_plan(name, stage, stages)
    for phase in plan.phases:
        claimed = claims(phase, stages, adapters=plan.adapters is not None)
        assert None not in claimed.values()
        assert {id(rule) for rule in claimed.values()} == {id(rule) for rule in phase.rules}


@pytest.mark.parametrize("read", ["joined", *DEEP])
@pytest.mark.parametrize("name", STRATEGIES)
def test_rates_fall_towards_the_stem_and_nothing_learns_beyond_what_is_read(name, read):
    plan = make_plan(name, read, DEEP)
    last = DEEP.index(plan.stages[-1])
    for phase in plan.phases:
        found = rates(phase, DEEP, adapters=plan.adapters is not None)
        assert found[HEAD] > 0
        assert all(found[stage] == 0 for stage in DEEP[last + 1 :])
        learning = [found[stage] for stage in DEEP if found[stage] > 0]
        assert all(earlier <= later for earlier, later in pairwise(learning))
        assert all(math.isfinite(rate) for rate in found.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_rates_are_in_proportion_to_that_of_the_decision(name):
    one, two = make_plan(name, "joined", DEEP), make_plan(name, "joined", DEEP, lr=2e-3)
    for slow, fast in zip(one.phases, two.phases, strict=True):
        assert [2 * rule.lr for rule in slow.rules] == pytest.approx([rule.lr for rule in fast.rules])


@pytest.mark.parametrize("name", STRATEGIES)
def test_shares_of_the_phases_sum_to_one_and_their_names_differ(name):
    plan = make_plan(name, "top", DEEP)
    assert sum(phase.share for phase in plan.phases) == pytest.approx(1)
    assert len({phase.name for phase in plan.phases}) == len(plan.phases)


@pytest.mark.parametrize("stage", ["joined", "top", "blocks.3"])
@pytest.mark.parametrize("name", STAGED)
def test_a_prefix_stays_frozen_throughout_and_can_be_cached(name, stage):
    plan = make_plan(name, stage, DEEP)
    found = [rates(phase, DEEP, adapters=False) for phase in plan.phases]
    learning = [stage for stage in DEEP if any(of_phase[stage] > 0 for of_phase in found)]
    first, last = DEEP.index(learning[0]), DEEP.index(learning[-1])
    assert first >= 1
    assert learning == list(DEEP[first : last + 1])


def tuned(plan: Plan, stages: Sequence[str] = DEEP) -> list[str]:
    """Stages that learn whole in the last phase, stem -> head."""
    return [stage for stage in stages if claims(plan.phases[-1], stages, adapters=False)[stage, WEIGHT].lr > 0]


@pytest.mark.parametrize("read", ["joined", *DEEP])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_last_stages_are_trained_by_number_or_that_is_refused(name, read):
    asked = decision(name, read)
    reached = DEEP if read == "joined" else DEEP[: DEEP.index(read) + 1]
    if name not in TUNABLE:
        with pytest.raises(OptionError, match=f"strategy={name} does not accept it. .* {', '.join(TUNABLE)}"):
            with_unfrozen(asked, 1, DEEP)
        return
    for count in range(1, len(reached) + 1):
        plan = STRATEGIES[name](with_unfrozen(asked, count, DEEP), DEEP)
        assert tuned(plan) == list(reached[-count:])
    for count in (-1, 0, len(reached) + 1):
        with pytest.raises(
            OptionError, match=rf"unfreeze must be in \[1, {len(reached)}\], .* '{reached[-1]}', got {count}"
        ):
            with_unfrozen(asked, count, DEEP)


@pytest.mark.parametrize("name", STRATEGIES)
def test_named_stages_and_no_others_are_trained_or_that_is_refused(name):
    asked = decision(name, "top")
    if name not in TUNABLE:
        with pytest.raises(OptionError, match=f"strategy={name} does not accept it"):
            with_unfrozen(asked, ["blocks.5"], DEEP)
        with pytest.raises(OptionError, match=f"strategy={name} does not accept it"):  # by hand as well
            make_plan(name, "top", DEEP, tuned=("blocks.5",))
        return
    named = with_unfrozen(asked, ["top", "blocks.2", "top"], DEEP)
    assert named.tuned == ("blocks.2", "top")
    assert tuned(STRATEGIES[name](named, DEEP)) == ["blocks.2", "top"]
    assert tuned(STRATEGIES[name](with_unfrozen(asked, "bn1", DEEP), DEEP)) == ["bn1"]
    assert with_unfrozen(asked, None, DEEP) == asked
    with pytest.raises(OptionError, match="Unknown stage 'block.5'. Closest known: blocks.5"):
        with_unfrozen(asked, ["block.5", "top"], DEEP)


@pytest.mark.parametrize("wrong", [[], "", (), [5], [None], 1.5, True, {"top": 1}], ids=repr)
@pytest.mark.parametrize("name", TUNABLE)
def test_stages_to_train_are_names_or_a_number(name, wrong):
    with pytest.raises(OptionError, match="unfreeze must be names of stages, or a whole number k for"):
        with_unfrozen(decision(name, "top"), wrong, DEEP)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"linear_probe"}))
def test_learning_by_gradient_needs_a_rate(name):
    with pytest.raises(OptionError, match=rf"'{name}' trains by gradient and needs lr > 0, got 0.0"):
        make_plan(name, "top", lr=0.0)


@pytest.mark.parametrize("norm", ["keep", "frozen"])
@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"linear_probe"}))
def test_the_decision_says_what_becomes_of_normalisation(name, norm):
    assert make_plan(name, "top", norm=norm).norm == norm
    with pytest.raises(OptionError, match="Unknown treatment of normalisation 'kept'. Closest known: keep."):
        make_plan(name, "top", norm="kept")


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_decision_same_plan(name):
    assert STRATEGIES[name](decision(name, "top"), list(STAGES)) == STRATEGIES[name](decision(name, "top"), STAGES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_stage_that_the_backbone_lacks_is_an_error_with_an_offer(name):
    with pytest.raises(OptionError, match="Unknown stage 'midle'. Closest known: middle."):
        STRATEGIES[name](decision(name, "midle"), STAGES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_is_documented(name):
    assert STRATEGIES[name].__doc__


def test_unknown_strategy_offers_the_closest():
    with pytest.raises(OptionError, match="Unknown strategy 'linear-probe'. Closest known: linear_probe."):
        STRATEGIES["linear-probe"]


def test_plan_without_a_stage_is_no_plan():
    with pytest.raises(ValueError, match="Plan.stages must name at least one stage."):
        Plan(strategy="linear_probe", stages=(), closed_form=True)
