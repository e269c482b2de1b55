"""Successive halving, against a made-up world where the time and the truth are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.decision.test_decision import evidence, score
from transferkit import pilots
from transferkit.decision import decide
from transferkit.errors import OptionError
from transferkit.features import FeatureBank
from transferkit.pilots import Trial, halve, search
from transferkit.types import Alternative


def option(name: str) -> Alternative:
    return Alternative(strategy="linear_probe", stage=name, expected_accuracy=0.5, low=0.4, high=0.6, cost_seconds=1.0)


class World:
    """Fits cost seconds in proportion to the square of the images; accuracy is known."""

    def __init__(self, accuracies):
        self.accuracies, self.now, self.fits = accuracies, 0.0, []

    def fit(self, chosen, rows):
        seconds = (len(rows) / 100) ** 2
        self.now += seconds
        self.fits.append((chosen.stage, len(rows)))
        return Trial(chosen, "ridge", len(rows), self.accuracies[chosen.stage], 1.0, seconds)

    def halve(self, budget=None):
        names = [option(name) for name in self.accuracies]
        samples = [np.arange(100), np.arange(200), np.arange(400)]
        return halve(names, self.fit, samples, budget=budget, clock=lambda: self.now)


def test_each_round_keeps_the_first_and_the_better_half_of_the_others():
    world = World({name: number / 10 for number, name in enumerate("abcdefgh")})
    rounds = world.halve()
    assert [[trial.option.stage for trial in tried] for tried in rounds] == [
        list("hgfedcba"),
        list("hgfea"),
        list("hga"),
    ]
    assert [tried[0].images for tried in rounds] == [100, 200, 400]


@given(budget=st.floats(0.5, 80))
def test_nothing_is_begun_that_would_break_the_budget_but_the_first_trial(budget):
    world = World({name: number / 10 for number, name in enumerate("abcdefgh")})
    rounds = world.halve(budget)
    assert len(world.fits) >= 1
    assert world.now <= max(budget, 1.0) + 1.0  # the first round foresees no cost: one trial may run over
    assert all("a" in [trial.option.stage for trial in tried] for tried in rounds)


def test_no_budget_runs_all_rounds_and_a_larger_one_no_fewer_trials():
    counts = []
    for budget in (1, 4, 16, 64, None):
        world = World({name: number / 10 for number, name in enumerate("abcdefgh")})
        world.halve(budget)
        counts.append(len(world.fits))
    assert counts == sorted(counts)
    assert counts[-1] == 8 + 5 + 3


@pytest.fixture
def banked(tmp_path):
    """Two stages: `late` separates the two classes by a line, `early` by nothing."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    late = rng.normal(size=(80, 3)) + 2.5 * labels[:, None]
    rows = np.concatenate([rng.normal(size=(80, 4)), late], axis=1).astype(np.float32)
    ids = np.array([f"{number:032d}".encode() for number in range(80)])
    shelf = FeatureBank(tmp_path).shelf({"weights": "w"}, {"early": 4, "late": 3})
    with shelf.writer() as writer:
        writer.append(ids, rows)
    return shelf.table(ids), labels


def looked():
    probes = [
        replace(score(name, accuracy), dim=dim, gain_error=0.05)
        for name, accuracy, dim in (("early", 0.9, 4), ("late", 0.9, 3))
    ]
    found = evidence(*probes, per_class=40)
    stages = tuple(replace(found.backbone.stages[0], name=name) for name in ("early", "late"))
    return replace(found, backbone=replace(found.backbone, stages=stages))


def test_trials_find_what_the_evidence_could_not_tell(banked):
    table, labels = banked
    advice = decide(looked())
    decision = search(looked(), advice, table, labels, progress=False)
    assert decision.mode == "search"
    assert decision.stage == "late"
    assert decision.expected in (advice.expected, *advice.alternatives)
    assert "trials in 3 rounds" in decision.reasons[0]
    assert "no limit" in decision.reasons[0]
    assert decision.reasons[1].startswith("Share of held-back images right in it: ")
    assert len(decision.alternatives) == len(advice.alternatives)


def test_a_head_that_was_asked_for_is_the_only_one_tried(banked):
    table, labels = banked
    for head in ("ridge", "logistic", "average"):
        told = search(looked(), decide(looked()), table, labels, head=head, progress=False).reasons[1]
        assert f"({head} head)" in told


def test_nothing_is_tried_where_nothing_can_reach_the_best(banked):
    table, labels = banked
    poor = looked()
    poor = replace(poor, probes=(replace(poor.probes[0], accuracy=0.1, gain_error=0.001), poor.probes[1]))
    decision = search(poor, decide(poor), table, labels, progress=False)
    assert (decision.mode, decision.stage) == ("search", "late")
    assert "no trials were needed" in decision.reasons[0]


@pytest.mark.parametrize(("lead", "wins"), [(0.02, False), (0.2, True)])
def test_what_was_advised_yields_to_a_clear_lead_only(lead, wins):
    advised, other = option("advised"), option("other")
    tried = [Trial(other, "ridge", 100, 0.7 + lead, 1.0, 1.0), Trial(advised, "ridge", 100, 0.7, 1.0, 1.0)]
    assert (pilots._winner(tried, advised).option is other) == wins  # a standard error is 4 to 5 points


def test_budget_must_be_more_than_nothing(banked):
    table, labels = banked
    with pytest.raises(OptionError, match="budget must be > 0 seconds, got 0"):
        search(looked(), decide(looked()), table, labels, budget=0)


def test_rounds_with_too_few_images_per_class_are_passed_over():
    rng = np.random.default_rng(0)
    assert [len(rows) for rows in pilots._samples(np.repeat([0, 1], 10), rng)] == [20]
    assert [len(rows) for rows in pilots._samples(np.repeat([0, 1], 40), rng)] == [20, 40, 80]
