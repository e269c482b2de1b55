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


@pytest.mark.parametrize("wrong", [15.0, None, "0.1", float("nan")])
def test_percentages_and_other_values_are_no_errors(wrong):
    hint = "Divide percentages by 100" if wrong == 15.0 else "must be a share"
    with pytest.raises(OptionError, match=hint):
        explain_errors(0.1, wrong, held_back_images=400)
    with pytest.raises(OptionError, match="> 0 and finite"):
        explain_errors(0.1, 0.2, held_back_images=None if wrong == 15.0 else float("inf"))


def test_a_training_error_above_the_held_back_one_is_no_bias_alone():
    assert "look whether these are accuracies" in explain_errors(0.98, 0.85, held_back_images=400).sentence
    assert "accuracies" not in explain_errors(0.12, 0.11, held_back_images=400).sentence


@pytest.mark.parametrize("served", [["Größe", "DOG "], ["gro\u0308\u00dfe", "dog"]])
def test_names_that_are_spelt_otherwise_are_the_same_classes(served):
    (found,) = check_class_order(["gr\u00f6\u00dfe", "dog"], served)
    assert (found.cause, found.severity) == ("other_spelling", "note")
    both = check_class_order(["gr\u00f6\u00dfe", "dog"], served[::-1])
    assert [one.cause for one in both] == ["other_spelling", "label_map_changed"]


def test_classes_that_differ_by_case_alone_stay_apart():
    (found,) = check_class_order(["a", "A"], ["A", "a"])
    assert found.cause == "label_map_changed"


def test_class_names_come_with_numbers_as_well():
    names = ["cat", "dog"]
    for same in ({"dog": 1, "cat": 0}, {0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, np.array(names)):
        assert check_class_order(names, same) == ()
    assert check_class_order([3, 7], ["3", "7"]) == ()
    (found,) = check_class_order(names, {"cat": 1, "dog": 0})
    assert found.cause == "label_map_changed"
    with pytest.raises(OptionError, match=r"numbers 0 to 1, or these to names, got the numbers \[1, 2\]"):
        check_class_order(names, {"cat": 1, "dog": 2})
    for wrong in ("cat", None, 5):
        with pytest.raises(OptionError, match="served must be the class names in label order"):
            check_class_order(names, wrong)
    with pytest.raises(OptionError, match="None among them"):
        check_class_order(["cat", None], names)


def test_long_lists_of_classes_are_cut():
    (found,) = check_class_order([str(k) for k in range(1000)], [f"n{k}" for k in range(1000)])
    assert "and 990 more" in found.evidence
    assert len(found.items) == 2000


def test_labels_may_be_names_and_lists():
    names = ["cat", "dog"] * 100
    (found,) = check_shuffled_labels(lambda shuffled: 0.9 if set(shuffled) == {"cat", "dog"} else 0.5, names)
    assert found.cause == "leak_in_evaluation"
    assert check_shuffled_labels(lambda shuffled: 0.5, [10**12, -1] * 50, groups=list(range(100))) == ()


@pytest.mark.parametrize("returned", [52.0, None, float("nan")])
def test_what_an_evaluation_returns_is_checked(returned):
    with pytest.raises(OptionError, match=r"held-back accuracy in \[0, 1\]"):
        check_shuffled_labels(lambda shuffled: returned, np.arange(40) % 2)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"groups": [1, 2]}, "per image"), ({"draws": 0}, "draws must be >= 1")]
)
def test_wrong_shuffles_are_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        check_shuffled_labels(lambda shuffled: 0.5, np.arange(40) % 2, **wrong)
    with pytest.raises(OptionError, match="one label"):
        check_shuffled_labels(lambda shuffled: 0.5, np.eye(4))
