"""What every registered measure of transferability must keep to."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from scipy.special import softmax

from transferkit.core.errors import DataError, OptionError
from transferkit.measure import MEASURES

CLASSES = 3
SEPARATION = 2.0
CLOSE = 1e-6
"""Sums in another order: rounding, no more."""


def make_input(needs, seed, *, noise, images=120, width=6):
    """Classes around fixed centres; a source head sees them through as many classes as there are features."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % CLASSES)
    centres = SEPARATION * np.eye(CLASSES, width)
    values = centres[labels] + noise * rng.normal(size=(images, width))
    return (softmax(2 * values, axis=1) if needs == "source_probabilities" else values), labels


def ask(name, seed=0, *, noise=1.0, images=120, width=6):
    measure = MEASURES[name]
    return measure.function, *make_input(measure.needs, seed, noise=noise, images=images, width=width)


every_measure = pytest.mark.parametrize("name", MEASURES)


def test_the_table_is_complete():
    assert set(MEASURES) == {
        *("h_score", "logme", "leep", "nce", "nleep", "transrate", "gbc", "sfda", "parc"),
        *("knn", "press"),
    }
    assert all(measure.higher_is_better for measure in MEASURES.values())
    assert {name for name in MEASURES if MEASURES[name].needs == "source_probabilities"} == {"leep", "nce"}


@every_measure
@pytest.mark.parametrize("seed", range(3))
def test_tighter_classes_score_higher(name, seed):
    scores = []
    for noise in (3.0, 1.0, 0.5):
        function, values, labels = ask(name, seed, noise=noise)
        scores.append(function(values, labels))
    assert scores == sorted(scores)
    assert scores[0] < scores[1]


@every_measure
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_score_lower(name, seed):
    function, values, labels = ask(name, seed)
    assert function(values, np.random.default_rng(seed).permutation(labels)) < function(values, labels)


@every_measure
def test_order_of_images_does_not_matter(name):
    function, values, labels = ask(name)
    order = np.random.default_rng(1).permutation(len(labels))
    assert function(values[order], labels[order]) == pytest.approx(function(values, labels), rel=CLOSE)


@every_measure
def test_names_of_classes_do_not_matter(name):
    function, values, labels = ask(name)
    renamed = np.array([2, 0, 1])[labels]
    assert function(values, renamed) == pytest.approx(function(values, labels), rel=CLOSE)
    assert function(values, 5 * labels + 1) == pytest.approx(function(values, labels), rel=CLOSE)


@every_measure
def test_the_same_call_gives_the_same_number_and_leaves_its_input(name):
    function, values, labels = ask(name)
    before = values.copy(), labels.copy()
    assert function(values, labels) == function(values, labels)
    np.testing.assert_array_equal(values, before[0])
    np.testing.assert_array_equal(labels, before[1])


def awkward(values, labels, case):
    """The same problem with one awkward thing about it."""
    if case == "two classes":
        return values, np.minimum(labels, 1)
    if case == "a class with one image":
        lonely = np.minimum(labels, 1)
        lonely[0] = 2
        return values, lonely
    if case == "a class per image":
        return values[:6], np.arange(6)
    if case == "two images":
        return values[:2], np.arange(2)
    if case == "copies":
        return values[:CLASSES].repeat(10, axis=0), np.arange(CLASSES).repeat(10)
    return values, labels


@every_measure
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "two classes",
        "a class with one image",
        "a class per image",
        "two images",
        "copies",
    ],
)
@pytest.mark.parametrize(("images", "width"), [(60, 6), (20, 70)])
def test_awkward_problems_have_a_finite_answer(name, case, images, width):
    function, values, labels = ask(name, images=images, width=width)
    unmeasured = MEASURES[name].holds_back and case in ("a class per image", "two images")
    assert math.isfinite(function(*awkward(values, labels, case))) != unmeasured


@every_measure
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("images", [9, 60])
def test_constant_features_have_a_finite_answer(name, constant, images):
    function, values, labels = ask(name, images=images, width=12)
    if MEASURES[name].needs == "source_probabilities":
        values[:, 3:] = 0
        values /= values.sum(axis=1, keepdims=True)
        everywhere = np.full_like(values, 1 / 12)
    else:
        values[:, 3:] = constant
        everywhere = np.full_like(values, constant)
    assert math.isfinite(function(values, labels))
    assert math.isfinite(function(everywhere, labels))
    assert function(everywhere, labels) <= function(values, labels)


@every_measure
def test_single_precision_gives_the_same_answer(name):
    function, values, labels = ask(name)
    expected = function(values, labels)
    assert function(values.astype(np.float32), labels.astype(np.int32)) == pytest.approx(expected, rel=1e-3)


@every_measure
def test_input_that_cannot_be_used_is_an_error(name):
    function, values, labels = ask(name)
    broken = values.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="got shape"):
        function(values[0], labels)
    with pytest.raises(DataError, match=r"finite|softmax"):
        function(broken, labels)
    with pytest.raises(DataError, match="one per image, got shape"):
        function(values, labels[:-1])
    with pytest.raises(DataError, match="integers in"):
        function(values, labels + 0.5)
    with pytest.raises(DataError, match="Expected labels of at least 2 classes, got 1"):
        function(values, np.zeros_like(labels))


@every_measure
def test_two_data_arguments_by_position_the_rest_by_name(name):
    kinds = [parameter.kind for parameter in inspect.signature(MEASURES[name].function).parameters.values()]
    assert kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
    assert set(kinds[2:]) <= {inspect.Parameter.KEYWORD_ONLY}


@every_measure
def test_docstring_says_what_the_table_says(name):
    measure = MEASURES[name]
    text = inspect.getdoc(measure.function) or ""
    first, *_ = text.splitlines()
    assert first.endswith("higher is better.")
    sections = ["Args:", "Returns:", "Raises:", "Comparable:", "References:", "Example:"]
    assert [text.count(f"\n{section}\n") for section in sections] == [1] * len(sections)
    said = text.split("Comparable:")[1].split("References:")[0]
    assert " ".join(said.split()) == measure.comparable
    assert "eviation" in text.split("References:")[1]


def test_unknown_measure_offers_the_closest():
    with pytest.raises(OptionError, match="Unknown measure 'log_me'. Closest known: logme"):
        MEASURES["log_me"]
