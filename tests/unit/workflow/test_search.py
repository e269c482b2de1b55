"""Trials of fine-tuning, against a made-up world where the time and the truth are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.decision.test_decision import evidence, score
from transferkit import decision as deciding
from transferkit.core.errors import OptionError
from transferkit.decision import GainModel, choose, default_passes
from transferkit.decision.weighing import TUNED_SHARES
from transferkit.records import Candidate
from transferkit.workflow.search import Trial, search

HOPE = GainModel(coefficients=dict.fromkeys(TUNED_SHARES, (0.1, 0.0, 0.0)), spread=dict.fromkeys(TUNED_SHARES, 0.5))
"""Knows that fine-tuning gains a little, on average, and not how much it does here."""

DESPAIR = replace(HOPE, coefficients=dict.fromkeys(TUNED_SHARES, (-2.0, 0.0, 0.0)))


@pytest.fixture(autouse=True)
def knowledge(monkeypatch):
    """What earlier tasks taught, to be replaced by a test."""
    known = {"model": HOPE}
    monkeypatch.setattr(deciding.weighing, "load_gain_model", lambda: known["model"])
    return known


def looked():
    probes = [replace(score(name, 0.8), gain_error=0.0) for name in ("late", "joined")]
    return replace(evidence(*probes, per_class=40), image_seconds=0.01)


class World:
    """Ways of fine-tuning gain what they gain; their trials take all that is foreseen but for the last fit."""

    def __init__(self, gains, *, images=400):
        self.gains, self.images, self.now, self.tried = gains, images, 0.0, []

    def begin(self, option):
        self.tried.append(option.strategy)
        passes = default_passes(looked().data.train_images)
        self.now += option.cost_seconds * passes / (passes + 1)
        gain = self.gains[option.strategy]
        kept = Candidate(name="fine-tuned", weight=1.0, accuracy=0.8 + gain, log_loss=0.1, gain_error=0.005)
        return Trial(kept, Candidate(name="probe", weight=0.0, accuracy=0.8, log_loss=0.5), self.images)

    def search(self, found, budget=None):
        return search(found, self.begin, budget=budget, progress=False, clock=lambda: self.now)


def test_what_gains_most_in_its_trial_is_chosen():
    for best in TUNED_SHARES:
        world = World({name: 0.1 if name == best else 0.02 for name in TUNED_SHARES})
        decision = world.search(looked())
        assert (decision.mode, decision.strategy, decision.stage) == ("search", best, "top")
        assert set(world.tried) == set(TUNED_SHARES)
        assert decision.reasons[0].startswith("Tried in ")
        assert f"{best} 90.0 % (+10.0 points)" in decision.reasons[0]
        assert decision.expected.expected_accuracy == pytest.approx(0.9, abs=0.02)


def test_where_no_trial_gains_anything_a_probe_is_chosen():
    world = World(dict.fromkeys(TUNED_SHARES, 0.0))
    assert world.search(looked()).strategy == "linear_probe"
    assert set(world.tried) == set(TUNED_SHARES)


def test_a_trial_makes_the_expectation_surer():
    before = {option.strategy: option for option in choose(looked()).options}
    decision = World(dict.fromkeys(TUNED_SHARES, 0.05)).search(looked())
    for option in (decision.expected, *decision.alternatives):
        if option.strategy in TUNED_SHARES:
            assert option.high - option.low < before[option.strategy].high - before[option.strategy].low
            assert option.cost_seconds < before[option.strategy].cost_seconds  # its folds are run


def test_nothing_is_tried_where_nothing_can_do_better(knowledge):
    knowledge["model"] = DESPAIR
    world = World({})
    decision = world.search(looked())
    assert (decision.strategy, world.tried) == ("linear_probe", [])
    assert "no trials were needed" in decision.reasons[0]


@given(budget=st.floats(0.1, 400))
def test_nothing_is_begun_that_would_break_the_budget_and_what_is_left_out_is_said(budget):
    world = World(dict.fromkeys(TUNED_SHARES, 0.1))
    decision = world.search(looked(), budget=budget)
    assert world.now <= budget
    left_out = set(TUNED_SHARES) - set(world.tried)
    assert bool(left_out) == any(reason.startswith("Not tried, for the budget of") for reason in decision.reasons)
    assert decision.strategy not in left_out
    assert (decision.strategy == "linear_probe") == (not world.tried)


def test_budget_must_be_more_than_nothing():
    with pytest.raises(OptionError, match="budget must be > 0 seconds, got 0"):
        World({}).search(looked(), budget=0)
