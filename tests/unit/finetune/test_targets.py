"""Targets of each task: what is refused and with which remedy, weights of classes, and the scale of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from transferkit.core.errors import DataError, OptionError
from transferkit.finetune.targets import (
    TargetScale,
    check_classes,
    check_labels,
    check_numbers,
    weigh_classes,
    weigh_labels,
    weigh_numbers,
)
from transferkit.probe.weighting import choose_weighting

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((4, 3)), "task 'multi_label', for numbers 'regression'"),
        (np.array([0.5, 1.0]), "needs (N,) integer labels, got (2,) of float64"),
        (np.array([0, 3, -1, 1]), "must be in [0, 3), the known classes; got -1, 3."),
        (np.array([1, 1, 1]), "All images are of one class"),
        (np.array([], dtype=int), "All images are of one class"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused_with_a_remedy(targets, message):
    with pytest.raises(DataError) as caught:
        check_classes(targets, NAMES)
    assert message in str(caught.value)


def test_labels_that_cannot_be_learned_are_all_named_at_once():
    with pytest.raises(DataError) as caught:
        check_labels(np.array([[0, 1, 1], [0, 1, 0]]), NAMES)
    assert "label 'cat' is on no image: leave it out" in str(caught.value)
    assert "label 'dog' is on every image: leave it out" in str(caught.value)
    assert "owl" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1, 2]), "A multi-label task with 3 outputs needs targets (N, 3)"),
        (np.zeros((4, 2)), "got (4, 2) of float64"),
        (np.zeros((0, 3)), "N >= 1"),
        (np.array([[0, 1, 2], [1, 0, 0.5]]), "must be 0 or 1, got 0.5, 2.0."),
    ],
)
def test_targets_that_are_no_labels_are_refused(targets, message):
    with pytest.raises(DataError) as caught:
        check_labels(targets, NAMES)
    assert message in str(caught.value)


def test_numbers_that_cannot_be_learned_are_all_named_at_once():
    with pytest.raises(DataError) as caught:
        check_numbers(np.array([[np.nan, 1.0, 7.0], [np.inf, 2.0, 7.0]]), NAMES)
    assert "target 'cat' has 2 values that are not finite" in str(caught.value)
    assert "target 'owl' is 7.0 for all images" in str(caught.value)
    assert "dog" not in str(caught.value)


@pytest.mark.parametrize("targets", [np.ones((4, 2)), np.ones(4), np.array([["a", "b", "c"]])])
def test_targets_that_are_no_numbers_are_refused(targets):
    with pytest.raises(DataError, match="A regression with 3 outputs needs targets"):
        check_numbers(targets, NAMES)


def test_good_targets_pass():
    check_classes(np.array([0, 2]), NAMES)
    check_labels(np.eye(3, dtype=bool), NAMES)
    check_numbers(np.eye(3), NAMES)
    check_numbers(np.arange(4), ["age"])


@given(hnp.arrays(np.int64, st.integers(2, 60), elements=st.integers(0, 4)))
def test_class_weights_are_those_of_scikit_learn(labels):
    weights = weigh_classes(labels, 7, "balanced")
    present = np.unique(labels)
    np.testing.assert_allclose(weights[present], compute_class_weight("balanced", classes=present, y=labels))
    assert weights[labels].mean() == pytest.approx(1)
    assert np.all(np.delete(weights, present) == 1)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(2, 40), st.integers(1, 4))))
def test_label_weights_are_those_of_two_classes_a_label(labels):
    weights = weigh_labels(labels, labels.shape[1], "balanced")
    for k, column in enumerate(labels.T):
        if len(np.unique(column)) == 2:
            off, on = compute_class_weight("balanced", classes=np.array([False, True]), y=column)
            assert weights[k] == pytest.approx(on / off)
        else:
            assert weights is None or weights[k] == 1


@pytest.mark.parametrize(
    ("counts", "chosen"), [([20, 10], "none"), ([21, 10], "balanced"), ([10, 21, 0], "balanced"), ([5], "none")]
)
def test_auto_weights_classes_from_an_imbalance_of_two_on(counts, chosen):
    assert choose_weighting(counts, "auto") == chosen
    assert choose_weighting(counts, "none") == "none"
    assert choose_weighting(counts, "balanced") == "balanced"
    labels = np.repeat(np.arange(len(counts)), counts)
    assert (weigh_classes(labels, len(counts), "auto") is None) == (chosen == "none")
    assert weigh_classes(labels, len(counts), "none") is None


def test_auto_weights_only_labels_that_are_rare_or_common():
    labels = np.zeros((12, 3))
    labels[:6, 0] = 1
    labels[:3, 1] = 1
    labels[:9, 2] = 1
    np.testing.assert_allclose(weigh_labels(labels, 3, "auto"), [1, 3, 1 / 3])
    assert weigh_labels(labels[:, :1], 1, "auto") is None


def test_an_unknown_weighting_is_told_with_the_nearest_one():
    with pytest.raises(OptionError, match="Unknown class_weight 'balance'. Closest known: balanced."):
        weigh_numbers(np.arange(3), 1, "balance")


def test_numbers_have_no_classes_to_balance():
    assert weigh_numbers(np.arange(3), 1, "auto") is None
    with pytest.raises(OptionError, match="A regression has no classes to balance"):
        weigh_numbers(np.arange(3), 1, "balanced")


@pytest.mark.parametrize("shape", [(30,), (30, 1), (30, 4)])
def test_the_scale_is_that_of_scikit_learn_and_goes_back(shape):
    targets = np.random.default_rng(0).normal(3, 5, shape)
    scale = TargetScale.fit(targets)
    expected = StandardScaler().fit_transform(targets.reshape(30, -1)).reshape(shape)
    np.testing.assert_allclose(scale.apply(targets), expected)
    np.testing.assert_allclose(scale.invert(scale.apply(targets)), targets)


def test_targets_without_a_spread_have_no_scale():
    with pytest.raises(DataError, match="needs a finite standard deviation > 0"):
        TargetScale.fit(np.ones(5))
