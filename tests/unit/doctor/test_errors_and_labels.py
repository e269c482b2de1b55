"""Bias and variance, class order, and evaluations of shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from transferkit.core.errors import OptionError
from transferkit.doctor import check_class_order, check_shuffled_labels, explain_errors


@pytest.mark.parametrize(
    ("training", "held_back", "verdict", "remedy"),
    [
        (0.02, 0.15, "variance", "More images"),
        (0.20, 0.21, "bias", "More capacity"),
        (0.15, 0.30, "both", "First more capacity"),
        (0.01, 0.02, "neither", "hold back more images"),
        (0.0, 0.0, "neither", "uncertainty"),
    ],
)
def test_errors_are_explained(training, held_back, verdict, remedy):
    found = explain_errors(training, held_back, held_back_images=400)
    assert found.verdict == verdict
    assert remedy in found.sentence
    assert f"{100 * held_back:.1f} % of held-back" in found.sentence


def test_what_people_miss_as_well_is_no_bias():
    assert explain_errors(0.2, 0.21, held_back_images=400, unavoidable=0.19).verdict == "neither"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_parts_are_not_negative_and_add_up(training, held_back, floor):
    found = explain_errors(training, held_back, held_back_images=100, unavoidable=floor)
    assert min(found.unavoidable, found.bias, found.variance) >= 0
    assert found.unavoidable + found.bias == pytest.approx(training)
    assert found.variance == pytest.approx(max(0.0, held_back - max(training, floor)))


@pytest.mark.parametrize(("wrong", "message"), [((1.2, 0.1), "training_error"), ((0.1, -0.2), "held_back_error")])
def test_errors_are_shares(wrong, message):
    with pytest.raises(OptionError, match=message):
        explain_errors(*wrong, held_back_images=10)
    with pytest.raises(OptionError, match="held_back_images must be > 0"):
        explain_errors(0.1, 0.2, held_back_images=0)


def test_what_was_measured_is_said_and_what_is_unavoidable_is_no_variance():
    assert (
        "20.0 % of training images are wrong, 10.0 % of held-back"
        in explain_errors(0.2, 0.1, held_back_images=900).sentence
    )
    assert explain_errors(0.0, 0.1, held_back_images=1000, unavoidable=0.1).verdict == "neither"


def test_class_orders():
    names = ["bird", "cat", "dog"]
    assert list(check_class_order(names, names)) == []
    (moved,) = check_class_order(names, ["bird", "dog", "cat"])
    assert moved.cause == "label_map_changed"
    assert moved.items == ("cat", "dog")
    assert "2 of 3" in moved.evidence
    (longer,) = check_class_order(["a", "b"], ["a", "b", "b"])
    assert longer.cause == "other_classes"
    assert "2 names against 3" in longer.evidence
    (other,) = check_class_order(names, ["bird", "cow", "dog"])
    assert other.cause == "other_classes"
    assert "missing: cat; unknown: cow" in other.evidence


def features(images=120, width=2000):
    rng = np.random.default_rng(0)
    return rng.normal(size=(images, width)), np.arange(images) % 2


def test_a_sound_evaluation_ends_at_chance():
    rows, labels = features(width=20)
    assert list(check_shuffled_labels(lambda y: cross_val_score(LogisticRegression(), rows, y).mean(), labels)) == []


def test_selection_before_the_split_is_found():
    rows, labels = features()

    def careless(shuffled):
        chosen = SelectKBest(k=20).fit_transform(rows, shuffled)
        return cross_val_score(LogisticRegression(), chosen, shuffled).mean()

    def careful(shuffled):
        return cross_val_score(make_pipeline(SelectKBest(k=20), LogisticRegression()), rows, shuffled).mean()

    (found,) = check_shuffled_labels(careless, labels)
    assert found.cause == "leak_in_evaluation"
    assert "chance is 50.0 %" in found.evidence
    assert list(check_shuffled_labels(careful, labels)) == []


def test_copies_on_both_sides_are_found_where_they_keep_their_label():
    rng = np.random.default_rng(1)
    things = rng.normal(size=(40, 10))
    groups = np.repeat(np.arange(40), 4)
    rows, labels = things[groups] + 0.01 * rng.normal(size=(160, 10)), groups % 2
    order = rng.permutation(160)
    rows, labels, groups = rows[order], labels[order], groups[order]
    near = KNeighborsClassifier(1)
    (found,) = check_shuffled_labels(lambda y: cross_val_score(near, rows, y, cv=5).mean(), labels, groups=groups)
    assert found.cause == "leak_in_evaluation"
    apart = GroupKFold(5)
    assert (
        list(
            check_shuffled_labels(
                lambda y: cross_val_score(near, rows, y, cv=apart, groups=groups).mean(), labels, groups=groups
            )
        )
        == []
    )


def test_one_class_cannot_be_shuffled():
    with pytest.raises(OptionError, match="at least two classes"):
        list(check_shuffled_labels(lambda y: 1.0, np.zeros(5, dtype=np.int64)))


def test_a_small_hold_out_is_above_chance_by_chance():
    """Of 4,000 images 40 are held back: 60 % of 40 fair coins are nothing unusual, 60 % of 4,000 are."""
    labels = np.arange(4000) % 2
    rng = np.random.default_rng(0)

    def coins(shuffled):
        return rng.binomial(40, 0.5) / 40

    alarms = [len(check_shuffled_labels(coins, labels, draws=1, held_back_images=40)) for _ in range(300)]
    assert sum(alarms) == 0
    assert sum(len(check_shuffled_labels(coins, labels, draws=1)) for _ in range(300)) > 50
    assert len(check_shuffled_labels(lambda y: 0.6, labels, held_back_images=40)) == 0
    assert len(check_shuffled_labels(lambda y: 0.6, labels, held_back_images=4000)) == 1


@pytest.mark.parametrize("wrong", [0, -1, 11])
def test_held_back_images_are_some_of_those_there_are(wrong):
    with pytest.raises(OptionError, match=r"held_back_images must be in \[1, 10\]"):
        check_shuffled_labels(lambda y: 0.5, np.arange(10) % 2, held_back_images=wrong)
