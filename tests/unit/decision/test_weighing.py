"""The choice by evidence, for tables of numbers whose answer plain sense gives, and for knowledge made up here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.decision.test_decision import STAGES, evidence, score
from transferkit.decision import (
    Belief,
    GainModel,
    Situation,
    best_probe,
    default_epochs,
    default_folds,
    default_passes,
    load_gain_model,
    refits,
    update,
    weigh,
)
from transferkit.decision.effort import FITS_SECONDS, LOOP_COST
from transferkit.decision.gains import LEAST_LEFT
from transferkit.decision.weighing import (
    START_SECONDS,
    STEP_COST,
    TIE,
    TUNED_SHARES,
    WORTH,
)
from transferkit.records import JOINED, SELECTED

NOTHING = GainModel(coefficients={}, spread={})
"""Knows no task: what is measured decides."""

FLAT = (0.0, 0.0, 0.0, 0.0)


def measured(stage: str, accuracy: float, *, dim: int = 8, gain_error: float | None = 0.01, error: float = 0.5):
    return replace(score(stage, accuracy, error=error), dim=dim, gain_error=gain_error)


accuracies = st.lists(st.sampled_from([0.5, 0.7, 0.9]), min_size=6, max_size=6)
errors = st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=6, max_size=6)


@settings(deadline=None)
@given(accuracies=accuracies, errors=errors)
def test_without_knowledge_the_best_measured_probe_is_taken_and_the_rest_is_ranked(accuracies, errors):
    names = [*STAGES, JOINED]
    probes = [
        measured(name, a, error=e, gain_error=0.0 if name == JOINED else 0.001)
        for name, a, e in zip(names, accuracies, errors, strict=True)
    ]
    looked = evidence(*probes, score("top", 1.0, method="knn"))
    decision = weigh(looked, knowledge=NOTHING)
    assert decision == weigh(looked, knowledge=NOTHING)
    assert looked.probe(decision.stage).accuracy == max(accuracies)
    ranked = [alternative.expected_accuracy for alternative in decision.alternatives]
    assert ranked == sorted(ranked, reverse=True)
    assert sorted([decision.stage, *(a.stage for a in decision.alternatives)]) == sorted(names)


def test_nearest_neighbours_are_a_sanity_row_and_never_chosen():
    decision = weigh(evidence(score("late", 0.6), score("top", 0.99, method="knn")), knowledge=NOTHING)
    assert decision.stage == "late"
    assert decision.alternatives == ()


def test_knowledge_decides_where_the_measurement_is_weak_and_yields_where_it_is_strong():
    wiser = GainModel(coefficients={"stage": (-1.0, 0, 0, 0)}, spread={"stage": 0.1})
    looked = evidence(measured(JOINED, 0.8, gain_error=0.0), measured("late", 0.82, gain_error=0.05))
    assert weigh(looked, knowledge=wiser).stage == JOINED
    sure = evidence(measured(JOINED, 0.8, gain_error=0.0), measured("late", 0.82, gain_error=0.0005))
    assert weigh(sure, knowledge=wiser).stage == "late"


def test_expected_accuracy_lies_between_what_was_measured_and_what_was_known():
    knowing = GainModel(coefficients={"stage": FLAT}, spread={"stage": 0.05})
    looked = evidence(measured(JOINED, 0.8, gain_error=0.0), measured("late", 0.9, gain_error=0.02))
    expected = weigh(looked, knowledge=knowing).expected
    assert expected is not None
    trust = 0.02**2 / (0.02**2 + 0.02**2)  # 0.05 * sqrt(0.8 * 0.2) = 0.02, as uncertain as the measurement
    assert expected.expected_accuracy == pytest.approx(0.8 + trust * 0.1)
    assert expected.low < expected.expected_accuracy < expected.high
    noise = math.sqrt(0.16 / 60 + trust * 0.02**2)
    assert expected.high - expected.low == pytest.approx(2 * 1.96 * noise)


@settings(deadline=None)
@given(
    budget=st.floats(0.001, 10),
    gains=st.lists(st.floats(-0.2, 0.1), min_size=5, max_size=5),
    dims=st.lists(st.integers(1, 4000), min_size=5, max_size=5),
)
def test_the_budget_is_kept_wherever_anything_fits_it(budget, gains, dims):
    probes = [measured(name, 0.8 + g, dim=d) for name, g, d in zip(STAGES, gains, dims, strict=True)]
    looked = evidence(*probes, measured(JOINED, 0.8, dim=sum(dims), gain_error=0.0))
    decision = weigh(looked, budget=budget, knowledge=NOTHING)
    options = [decision.expected, *decision.alternatives]
    cheapest = min(option.cost_seconds for option in options)
    assert decision.expected.cost_seconds <= max(budget, cheapest)
    assert (cheapest > budget) == any("No strategy fits the budget" in reason for reason in decision.reasons)
    free = weigh(looked, knowledge=NOTHING)
    assert sum(option.cost_seconds for option in [free.expected, *free.alternatives]) == pytest.approx(1.5)


@settings(deadline=None)
@given(one=st.floats(0.001, 3), other=st.floats(0.001, 3), gains=st.lists(st.floats(-0.2, 0.1), min_size=5, max_size=5))
def test_more_budget_never_lowers_what_is_expected(one, other, gains):
    probes = [measured(name, 0.8 + g, dim=9 * i + 1) for i, (name, g) in enumerate(zip(STAGES, gains, strict=True))]
    looked = evidence(*probes, measured(JOINED, 0.8, dim=99, gain_error=0.0))
    least = min(option.cost_seconds for option in weigh(looked, knowledge=NOTHING).alternatives)
    less, more = sorted((one, other))
    assume(less >= least)
    expected = [weigh(looked, budget=limit, knowledge=NOTHING).expected.expected_accuracy for limit in (less, more)]
    assert expected[0] <= expected[1] + TIE


def test_a_strategy_hardly_worse_but_cheaper_is_taken_and_that_is_said():
    looked = evidence(
        measured(JOINED, 0.9000, dim=4000, gain_error=0.0), measured("late", 0.8995, dim=10, gain_error=1e-6)
    )
    decision = weigh(looked, knowledge=NOTHING)
    assert decision.stage == "late"
    assert any("because it is the cheapest" in reason for reason in decision.reasons)
    assert "ahead but more expensive" in decision.reasons[1]


def test_a_better_one_beyond_the_budget_is_named():
    looked = evidence(measured(JOINED, 0.95, dim=4000, gain_error=0.0), measured("late", 0.8, dim=10, gain_error=1e-6))
    decision = weigh(looked, budget=0.5, knowledge=NOTHING)
    assert decision.stage == "late"
    assert "expected accuracy 95.0 %, but it takes about 1.5 s, over the budget of 0.5 s." in " ".join(decision.reasons)


@given(ahead=st.floats(0, 0.2))
def test_points_of_a_lead_agree_with_the_percentages_beside_them(ahead):
    looked = evidence(measured("late", 0.7 + ahead, gain_error=1e-6), measured(JOINED, 0.7049, gain_error=0.0))
    said = weigh(looked, knowledge=NOTHING).reasons
    first, second = (float(text.split("expected")[-1].split(" %")[0].split()[-1]) for text in said[:2])
    points = float(said[1].split(" points")[0].split()[-1])
    assert points == pytest.approx(abs(first - second), abs=1e-6)


def test_what_is_dearer_and_clearly_ahead_is_called_so():
    looked = evidence(measured(JOINED, 0.95, dim=4000, gain_error=0.0), measured("late", 0.8, dim=10, gain_error=1e-3))
    told = weigh(looked, budget=0.5, knowledge=NOTHING).reasons[1]
    assert "15.0 points ahead but more expensive, a clear lead" in told


def test_reasons_contain_their_numbers():
    looked = evidence(
        measured("late", 0.913, gain_error=1e-4), measured("top", 0.842, gain_error=1e-4), measured(JOINED, 0.871)
    )
    said = " ".join(weigh(looked, knowledge=NOTHING).reasons)
    for number in ("91.3 %", "60", "87.1 %", "4.2 points", "84.2 %", "7.1 points"):
        assert number in said, number
    assert "all stages joined" in said


@pytest.mark.parametrize(("doubt", "certainty"), [(0.001, "a clear lead"), (0.2, "within chance")])
def test_a_lead_is_judged_by_the_doubt_about_the_gains(doubt, certainty):
    looked = evidence(measured(JOINED, 0.8, gain_error=0.0), measured("late", 0.9, gain_error=doubt))
    assert certainty in weigh(looked, knowledge=NOTHING).reasons[1]


@given(
    prior=st.tuples(st.floats(-1, 1), st.floats(0.01, 1)),
    seen=st.tuples(st.floats(-1, 1), st.floats(0.01, 1)),
)
def test_two_beliefs_combine_by_their_precisions(prior, seen):
    (a, s), (b, t) = prior, seen
    both = update(Belief(mean=a, error=s), Belief(mean=b, error=t))
    assert both.mean == pytest.approx((a / s**2 + b / t**2) / (1 / s**2 + 1 / t**2), abs=1e-9)
    assert both.error == pytest.approx((1 / s**2 + 1 / t**2) ** -0.5)
    assert update(Belief(mean=a, error=0.0), Belief(mean=b, error=t)).mean == a


def test_doubt_moves_what_is_expected_towards_what_was_known():
    known = GainModel(coefficients={"stage": FLAT}, spread={"stage": 0.1})
    situation, seen = Situation(images=100, classes=2, accuracy=0.8), Belief(mean=0.1, error=0.02)
    means = [replace(known, doubt=doubt).expect("stage", situation, seen).mean for doubt in (1.0, 2.0, 6.0)]
    assert 0.1 > means[0] > means[1] > means[2] > 0


def test_what_is_far_behind_is_expected_to_stay_there_whatever_was_known():
    known = GainModel(coefficients={"stage": (1.0, 0, 0, 0)}, spread={"stage": 0.01}, doubt=3.0)
    situation = Situation(images=100, classes=2, accuracy=0.8)
    assert known.expect("stage", situation, Belief(mean=-0.5, error=0.01)) == Belief(mean=-0.5, error=0.03)
    assert known.expect("stage", situation, Belief(mean=-0.05, error=0.01)).mean > 0.3


def test_gains_are_in_units_of_the_spread_of_an_answer():
    model = GainModel(coefficients={SELECTED: (0.1, 0, 0, 0)}, spread={SELECTED: 0.02})
    half, sure = (Situation(images=100, classes=2, accuracy=a) for a in (0.5, 0.9))
    assert model.prior(SELECTED, half).mean == pytest.approx(0.05)
    assert model.prior(SELECTED, sure).mean == pytest.approx(0.03)
    assert model.prior(SELECTED, sure).error == pytest.approx(0.006)
    assert Situation(images=100, classes=2, accuracy=1.0).spread > 0


def test_what_ships_was_learnt_from_tasks_and_knows_every_kind_of_probe():
    shipped = load_gain_model()
    assert set(shipped.coefficients) == set(shipped.spread) == {"stage", SELECTED, *TUNED_SHARES}
    assert "bench_regret" in shipped.origin
    situation = Situation(images=200, classes=10, accuracy=0.8)
    for kind in ("stage", SELECTED):
        belief = shipped.prior(kind, situation)
        assert abs(belief.mean) < 0.2
        assert 0 < belief.error < 0.2
    assert shipped.prior("stage", situation, depth=0.0).mean < shipped.prior("stage", situation, depth=0.8).mean
    near, far = (replace(situation, similarity=value) for value in (0.8, 0.2))
    for strategy in TUNED_SHARES:
        assert shipped.tuned_gain(strategy, near, 0.8).mean < shipped.tuned_gain(strategy, far, 0.8).mean < 0.2


@given(probe=st.floats(0, 1), share=st.floats(-1, 1), images=st.integers(2, 5000), similarity=st.floats(0, 1))
def test_fine_tuning_gains_a_share_of_what_the_probe_leaves(probe, share, images, similarity):
    model = GainModel(coefficients={"lp_ft": (share, 0, 0)}, spread={"lp_ft": 0.5})
    situation = Situation(images=images, classes=2, accuracy=0.5, similarity=similarity)
    gain = model.tuned_gain("lp_ft", situation, probe)
    left = max(1 - probe, LEAST_LEFT)
    assert gain.mean == pytest.approx(share * left)
    assert gain.error == pytest.approx(0.5 * left)


def test_a_similarity_that_is_not_known_counts_as_middling():
    model = GainModel(coefficients={"lp_ft": (0.5, 0, -0.4)}, spread={"lp_ft": 0.1})
    situation = Situation(images=100, classes=2, accuracy=0.5)
    middling = replace(situation, similarity=0.5)
    assert model.tuned_gain("lp_ft", situation, 0.8) == model.tuned_gain("lp_ft", middling, 0.8)


def tuned(gain: float, *, image_seconds: float | None = 0.01, joined: float = 0.8):
    """A joined probe, and knowledge that fine-tuning everything gains so much."""
    knowing = GainModel(coefficients={"lp_ft": (gain / (1 - joined), 0, 0)}, spread={"lp_ft": 0.1})
    looked = replace(evidence(measured(JOINED, joined, gain_error=0.0)), image_seconds=image_seconds)
    return looked, knowing


def test_fine_tuning_is_chosen_where_it_is_expected_to_gain_enough_to_be_worth_its_time():
    looked, knowing = tuned(2 * WORTH)
    decision = weigh(looked, knowledge=knowing)
    assert (decision.strategy, decision.stage) == ("lp_ft", "top")
    assert decision.expected is not None
    assert decision.expected.expected_accuracy == pytest.approx(0.8 + 2 * WORTH)
    assert "it takes about" in " ".join(decision.reasons)
    assert [option.strategy for option in decision.alternatives] == ["linear_probe"]


def test_fine_tuning_that_gains_too_little_is_an_alternative_and_no_more():
    looked, knowing = tuned(WORTH / 2)
    decision = weigh(looked, knowledge=knowing)
    assert decision.strategy == "linear_probe"
    assert [option.strategy for option in decision.alternatives] == ["lp_ft"]
    assert "not worth the time" in " ".join(decision.reasons)


def test_a_budget_strikes_fine_tuning_out_and_says_what_would_be_expected_of_it():
    looked, knowing = tuned(0.1)
    cost = next(o for o in [weigh(looked, knowledge=knowing).expected] if o is not None).cost_seconds
    assert weigh(looked, knowledge=knowing, budget=2 * cost).strategy == "lp_ft"
    decision = weigh(looked, knowledge=knowing, budget=cost / 2)
    assert decision.strategy == "linear_probe"
    assert "The best would be fine-tuning (lp_ft)" in " ".join(decision.reasons)


@given(gain=st.floats(0.0, 0.15), dear=st.floats(1.0, 1e4))
def test_the_knee_asks_a_point_for_each_doubling_of_the_time(gain, dear):
    looked, knowing = tuned(gain, image_seconds=0.01 * dear)
    choice = weigh(looked, knowledge=knowing, budget="auto")
    probe, network = sorted([choice.expected, *choice.alternatives], key=lambda option: option.strategy)
    before = START_SECONDS + 0.01 * dear * looked.data.train_images
    doublings = math.log2((before + network.cost_seconds) / (before + probe.cost_seconds))
    assume(abs(gain - 0.01 * doublings) > 1e-9)
    assert (choice.strategy == "lp_ft") == (gain > 0.01 * doublings)
    assert "budget=auto: 1 point of expected accuracy is worth twice the time" in " ".join(choice.reasons)


def test_what_the_bank_holds_does_not_move_the_knee():
    looked, knowing = tuned(0.05)
    warm = replace(looked, seconds={"frozen pass": 0.0}, images_computed=0)
    cold = replace(looked, seconds={"frozen pass": 1000.0}, images_computed=100)
    assert weigh(warm, knowledge=knowing, budget="auto") == weigh(cold, knowledge=knowing, budget="auto")


def test_the_knee_names_what_more_time_would_gain():
    looked, knowing = tuned(0.011)
    said = " ".join(weigh(looked, knowledge=knowing, budget="auto").reasons)
    assert "lp_ft would gain 1.1 points for" in said
    assert "times the time." in said


@pytest.mark.parametrize("images", [50, 150, 1400])
def test_fine_tuning_costs_its_folds_and_epochs_at_the_pace_of_the_frozen_pass(images):
    looked, knowing = tuned(0.1, image_seconds=0.02)
    looked = replace(looked, data=replace(looked.data, counts={"train": (images // 2, images - images // 2)}))
    expected = weigh(looked, knowledge=knowing).expected
    assert expected is not None
    # Folds of 10 images begin at two rates until 30 have told, of 30 one of them; of two, there is no refit.
    passes = {50: 0.8 * (4 + 3 / 2) + 1, 150: 0.8 * (2 + 1 / 2), 1400: 0.8 * (1 + 1 / 2) + 1}[images]
    share = 1 if images >= 500 else TUNED_SHARES["lp_ft"]  # then all stages are trained
    assert expected.cost_seconds == pytest.approx(STEP_COST * share * 0.02 * images * default_epochs(images) * passes)


def test_a_step_that_was_timed_counts_instead_of_the_pace_of_the_frozen_pass():
    looked, knowing = tuned(0.1, image_seconds=0.02)
    images = looked.data.train_images
    timed = weigh(replace(looked, step_seconds={"lp_ft": 0.01}), knowledge=knowing).expected
    steps = default_epochs(images) * images * (default_passes(images) + refits(default_folds(images)))
    assert timed is not None
    assert timed.cost_seconds == pytest.approx(FITS_SECONDS + LOOP_COST * 0.01 * steps)


def test_fine_tuning_is_not_weighed_where_nothing_is_known_of_its_gain_or_its_cost():
    for looked, knowing in (tuned(0.1, image_seconds=None), (tuned(0.1)[0], NOTHING)):
        decision = weigh(looked, knowledge=knowing)
        assert decision.strategy == "linear_probe"
        assert "Fine-tuning was not considered" in " ".join(decision.reasons)


def test_fine_tuning_is_not_weighed_where_no_image_of_a_class_can_be_held_back():
    looked, knowing = tuned(0.1)
    looked = replace(looked, data=replace(looked.data, counts={"train": (9, 1)}))
    decision = weigh(looked, knowledge=knowing)
    assert (decision.strategy, decision.alternatives) == ("linear_probe", ())
    assert "a class has fewer than 2" in " ".join(decision.reasons)


def test_the_probe_to_be_held_against_is_the_best_one_whatever_is_chosen():
    looked, knowing = tuned(0.1)
    assert weigh(looked, knowledge=knowing).strategy == "lp_ft"
    assert best_probe(looked, knowledge=knowing) == JOINED
