"""Each strategy against what its paper, or the textbook, says learns; rates worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from transferkit.core.errors import OptionError
from transferkit.records import Alternative, Decision
from transferkit.strategies import (
    STRATEGIES,
    Plan,
    bias_only,
    few_layers,
    linear_probe,
    lora,
    lp_ft,
    many_layers,
    norm_only,
    surgical,
)

LITE = ("bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6", "top")
ASKED = Decision(strategy="x", stage="top", lr=1.0, lr_scale=0.1, norm="keep", mode="given", reasons=("asked for",))


def asked(**changes: object) -> Decision:
    return dataclasses.replace(ASKED, **changes)


def rules_of(plan: Plan, phase: int = -1) -> list[tuple[str, float]]:
    return [(str(rule), rule.lr) for rule in plan.phases[phase].rules]


def learning(plan: Plan, phase: int = -1) -> list[str]:
    return [name for name, rate in rules_of(plan, phase) if rate > 0]


def offer(stage: str, accuracy: float, strategy: str = "linear_probe") -> Alternative:
    return Alternative(strategy=strategy, stage=stage, expected_accuracy=accuracy, low=0.0, high=1.0, cost_seconds=1.0)


@pytest.mark.parametrize(
    ("count", "few"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3), (12, 4), (13, 4)]
)
def test_a_few_layers_are_a_third_of_the_stages_two_at_least_and_never_all(count, few):
    stages = [f"stage{number}" for number in range(count)]
    assert learning(few_layers(asked(stage="joined"), stages)) == ["head", *reversed(stages[-few:])]


def test_few_layers_trains_the_head_first_then_the_last_stages_each_slower_than_the_next():
    plan = few_layers(asked(), LITE)
    assert [(phase.name, phase.share) for phase in plan.phases] == [("head", 0.1), ("last stages", 0.9)]
    assert rules_of(plan, 0) == [("head", 0.1), ("*", 0)]
    assert rules_of(plan, 1) == [("head", 0.1), ("top", 1), ("blocks.6", 0.75), ("blocks.5", 0.5625), ("*", 0)]
    assert plan.start == "closed_form"


def test_few_layers_below_an_early_stage_are_those_right_below_it():
    plan = few_layers(asked(stage="blocks.3"), LITE)
    assert plan.stages == ("blocks.3",)
    assert rules_of(plan) == [("head", 0.1), ("blocks.3", 1), ("blocks.2", 0.75), ("*", 0)]


def test_few_layers_trains_what_the_decision_names_at_the_rate_of_its_depth():
    plan = few_layers(asked(tuned=("top", "blocks.5")), LITE)
    assert rules_of(plan) == [("head", 0.1), ("top", 1), ("blocks.5", 0.75**2), ("*", 0)]


def test_many_layers_trains_the_stem_as_well_if_the_decision_names_it():
    plan = many_layers(asked(tuned=("stem", "a", "b", "top")), ("stem", "a", "b", "top"))
    assert rules_of(plan) == [("head", 0.1), ("top", 1), ("b", 0.75), ("a", 0.5625), ("stem", 0.75**3)]


@pytest.mark.parametrize(("strategy", "own"), [(few_layers, "last stages"), (many_layers, "all but the stem")])
def test_a_phase_is_not_called_by_a_choice_that_it_did_not_make(strategy, own):
    assert strategy(asked(), LITE).phases[1].name == own
    assert strategy(asked(tuned=("bn1",)), LITE).phases[1].name == "chosen stages"


@pytest.mark.parametrize("strategy", [few_layers, many_layers, surgical])
def test_stages_that_cannot_be_trained_are_told_all_at_once(strategy):
    with pytest.raises(OptionError) as caught:
        strategy(asked(stage="blocks.1", tuned=("blocks.9", "top", "blocks.1")), LITE)
    assert "- Unknown stage 'blocks.9'. Closest known: blocks." in str(caught.value)
    assert "- stage 'top' is after 'blocks.1', the head's input" in str(caught.value)


def test_many_layers_leaves_only_the_stem_alone():
    plan = many_layers(asked(), ("stem", "a", "b", "top"))
    assert rules_of(plan, 0) == [("head", 0.1), ("*", 0)]
    assert rules_of(plan, 1) == [("head", 0.1), ("top", 1), ("b", 0.75), ("a", 0.5625), ("*", 0)]
    assert learning(many_layers(asked(), ("top",))) == ["head", "top"]


def test_lp_ft_starts_from_the_probe_and_trains_the_later_stages_at_once():
    plan = lp_ft(asked(stage="joined"), ("stem", "a", "top"))
    assert (plan.start, plan.closed_form, len(plan.phases)) == ("closed_form", False, 1)
    assert plan.stages == ("stem", "a", "top")
    assert rules_of(plan) == [("head", 0.1), ("top", 1), ("a", 0.75), ("*", 0)]
    assert learning(lp_ft(asked(stage="a"), ("stem", "a", "top"))) == ["head", "a", "stem"]
    assert learning(lp_ft(asked(), LITE)) == ["head", "top", "blocks.6", "blocks.5", "blocks.4", "blocks.3"]


def test_lp_ft_trains_everything_where_that_is_asked_for():
    plan = lp_ft(asked(stage="joined", tuned=("stem", "a", "top")), ("stem", "a", "top"))
    assert rules_of(plan) == [("head", 0.1), ("top", 1), ("a", 0.75), ("stem", 0.5625)]
    assert [phase.name for phase in plan.phases] == ["all stages"]
    some = lp_ft(asked(stage="joined", tuned=("a", "top")), ("stem", "a", "top"))
    assert [phase.name for phase in some.phases] == ["chosen stages"]


@pytest.mark.parametrize(("strategy", "kind"), [(norm_only, "norm"), (bias_only, "bias"), (lora, "adapter")])
def test_slivers_of_all_stages_learn_together(strategy, kind):
    plan = strategy(asked(), LITE)
    assert rules_of(plan) == [("head", 0.1), (f"* ({kind})", 10), ("*", 0)]
    beyond = strategy(asked(stage="blocks.5"), LITE)
    assert rules_of(beyond) == [("head", 0.1), ("blocks.6", 0), ("top", 0), (f"* ({kind})", 10), ("*", 0)]


def test_only_lora_adds_to_the_network():
    with_adapters = {name for name in STRATEGIES if STRATEGIES[name](asked(), LITE).adapters is not None}
    assert with_adapters == {"lora"}
    adapters = lora(asked(), LITE).adapters
    assert adapters is not None
    assert (adapters.rank, adapters.alpha) == (8, 16)


@pytest.mark.parametrize(
    ("stage", "chosen"),
    [
        ("bn1", ["blocks.0", "bn1"]),
        ("blocks.2", ["blocks.2", "blocks.1"]),
        ("top", ["top", "blocks.6"]),
        ("joined", ["blocks.4", "blocks.3", "blocks.2"]),
    ],
)
def test_without_evidence_surgery_is_around_the_stage_that_is_read_or_the_middle(stage, chosen):
    expected = [name for name in chosen if stage == "joined" or LITE.index(name) <= LITE.index(stage)]
    assert learning(surgical(asked(stage=stage), LITE)) == ["head", *expected]


@pytest.mark.parametrize("stage", ["joined", "top", "blocks.3"])
def test_surgery_is_around_the_best_single_probe_of_what_is_read(stage):
    options = (offer("selected", 0.99), offer("blocks.5", 0.7), offer("blocks.1", 0.8), offer("top", 0.9, "few_layers"))
    plan = surgical(asked(stage=stage, alternatives=options), LITE)
    assert rules_of(plan) == [("head", 0.1), ("blocks.2", 1), ("blocks.1", 1), ("blocks.0", 1), ("*", 0)]


def test_surgery_on_named_stages_cuts_nowhere_else():
    plan = surgical(asked(stage="joined", alternatives=(offer("top", 0.9),), tuned=("blocks.0",)), LITE)
    assert learning(plan) == ["head", "blocks.0"]


def test_linear_probe_is_solved_for_unless_there_is_a_rate():
    solved = linear_probe(asked(lr=0.0, norm="frozen"), LITE)
    assert (solved.closed_form, solved.phases) == (True, ())
    trained = linear_probe(asked(stage="joined"), LITE)
    assert (trained.closed_form, trained.start, trained.stages) == (False, "zero", LITE)
    assert [phase.share for phase in trained.phases] == [1]
    assert rules_of(trained) == [("head", 10), ("*", 0)]
