"""Honest expectations: what a held-back accuracy is worth, and what is said where none could be measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.decision.test_decision import STAGES, evidence, score
from transferkit.decision import (
    Calibration,
    GainModel,
    best_probe,
    choose,
    load_gain_model,
    read_gain_model,
    weigh,
)
from transferkit.decision.calibration import smoothed_spread
from transferkit.records import JOINED, SELECTED

NOTHING = GainModel(coefficients={}, spread={})


def unmeasured(*stages: str):
    """One image of each class: nothing can be held back."""
    probes = [replace(score(stage, 0.5), accuracy=None, low=None, high=None, squared_error=None) for stage in stages]
    return evidence(*probes, per_class=1, similarity=0.3)


@given(accuracy=st.floats(0, 1), images=st.integers(1, 10**5))
def test_no_mistake_on_few_images_is_not_none_at_all(accuracy, images):
    spread = smoothed_spread(accuracy, images)
    assert 0 < spread <= 0.5
    assert smoothed_spread(1.0, images) == pytest.approx(smoothed_spread(0.0, images))
    assert spread == pytest.approx(math.sqrt(accuracy * (1 - accuracy)), abs=1.5 / math.sqrt(images + 2))


@given(images=st.integers(2, 10**4), per_class=st.floats(1, 10**4), accuracy=st.floats(0, 1))
def test_without_optimism_and_task_error_an_expectation_is_the_measurement_with_its_binomial_error(
    images, per_class, accuracy
):
    found = Calibration().expect(accuracy=accuracy, images=images, per_class=per_class)
    assert found.mean == accuracy
    assert found.error == pytest.approx(smoothed_spread(accuracy, images) / math.sqrt(images))


@given(more=st.floats(1, 100))
def test_more_images_per_class_never_widen_the_interval(more):
    known = Calibration(task_error=0.3, widening=1.2)
    less, many = (known.expect(accuracy=0.8, images=100, per_class=count) for count in (1.0, more))
    assert many.error <= less.error
    assert known.expect(accuracy=0.8, images=100, per_class=5).error > 1.2 * smoothed_spread(0.8, 100) / 10


def test_the_base_of_all_expectations_is_corrected_once_and_keeps_their_order():
    probes = [replace(score(name, a), gain_error=1e-6) for name, a in (("late", 0.7), (JOINED, 0.8), (SELECTED, 0.85))]
    looked = evidence(*probes, per_class=50)
    plain = weigh(looked, knowledge=NOTHING)
    honest = weigh(looked, knowledge=replace(NOTHING, calibration={"probe": Calibration(optimism=0.1, widening=2.0)}))
    lowered = [a.expected_accuracy - b.expected_accuracy for a, b in zip(plain.options, honest.options, strict=True)]
    assert lowered == pytest.approx([0.1 * smoothed_spread(0.8, 100)] * 3)
    assert [option.stage for option in plain.options] == [option.stage for option in honest.options]
    assert honest.expected.high - honest.expected.low > 1.9 * (plain.expected.high - plain.expected.low)


def test_a_gain_of_fine_tuning_is_added_to_the_corrected_base():
    knowing = GainModel(
        coefficients={"lp_ft": (0.5, 0, 0)}, spread={"lp_ft": 0.1}, calibration={"probe": Calibration(optimism=0.25)}
    )
    looked = replace(evidence(score(JOINED, 0.8), per_class=50), image_seconds=0.01)
    base = 0.8 - 0.25 * smoothed_spread(0.8, 100)
    choice = weigh(looked, knowledge=knowing)
    assert choice.strategy == "lp_ft"
    assert choice.expected.expected_accuracy == pytest.approx(base + 0.5 * (1 - base))


def test_what_ships_is_calibrated_for_every_promise_and_older_knowledge_loads():
    shipped = load_gain_model()
    assert set(shipped.calibration) == {"probe", "stage", JOINED, SELECTED, "network"}
    for known in shipped.calibration.values():
        assert abs(known.optimism) < 0.3
        assert 0 <= known.task_error < 1
        assert 1 <= known.widening < 2
    old = {"coefficients": {}, "spread": {}, "doubt": 2.0, "script": "s", "date": "d", "tasks": ["t"]}
    assert read_gain_model(old).calibration == {}


@pytest.mark.parametrize("stages", [(*STAGES, JOINED, SELECTED), (*STAGES, JOINED), (JOINED,)])
def test_where_no_accuracy_is_known_none_is_expected_and_that_is_said(stages):
    looked = unmeasured(*stages)
    choice = choose(looked)
    assert (choice.strategy, choice.stage) == ("linear_probe", JOINED)
    assert (choice.expected, choice.alternatives) == (None, ())
    assert "unknown" in choice.reasons[0]
    assert "The textbook rule would choose" in choice.reasons[-1]
    assert best_probe(looked) == choice.stage
    assert choose(looked).expected is None
    assert choose(looked, budget=1e-9).stage == choice.stage


@pytest.mark.parametrize("worth", [25.0, 50.0, 100.0])
def test_images_that_belong_together_widen_the_interval(worth):
    knowing = replace(NOTHING, calibration={"probe": Calibration(task_error=0.2, widening=1.1)})
    grouped = evidence(replace(score(JOINED, 0.8), images=worth), per_class=50)
    found = weigh(grouped, knowledge=knowing).expected
    error = 1.1 * smoothed_spread(0.8, worth) * math.hypot(1 / math.sqrt(worth), 0.2 / (worth / 2) ** 0.25)
    assert found.expected_accuracy - found.low == pytest.approx(1.96 * error)


def test_a_stage_whose_accuracy_is_not_known_is_not_weighed():
    unknown = replace(score("late", 0.5), accuracy=None, low=None, high=None)
    choice = weigh(evidence(unknown, score(JOINED, 0.8)), knowledge=NOTHING)
    assert [option.stage for option in choice.options] == [JOINED]
