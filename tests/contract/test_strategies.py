"""What every registered strategy must keep to."""

from __future__ import annotations

import pytest

from transferkit.errors import OptionError
from transferkit.strategies import STRATEGIES, Plan
from transferkit.types import Decision

STAGES = ("stem", "middle", "top")


def decision(strategy: str, stage: str) -> Decision:
    return Decision(
        strategy=strategy, stage=stage, lr=1e-3, lr_scale=0.1, norm="keep", mode="given", reasons=("asked for",)
    )


@pytest.mark.parametrize("stage", [*STAGES, "joined", "selected"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_plan_reads_stages_of_the_backbone_in_their_order(name, stage):
    plan = STRATEGIES[name](decision(name, stage), STAGES)
    assert isinstance(plan, Plan)
    assert plan.strategy == name
    positions = [STAGES.index(read) for read in plan.stages]
    assert positions == sorted(set(positions))
    assert plan.selected == (stage == "selected")
    if stage in ("joined", "selected"):
        assert plan.stages == STAGES
    else:
        assert stage in plan.stages


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
