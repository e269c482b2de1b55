"""Wrong labels are found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from transferkit.core.errors import DataError
from transferkit.measure import find_label_errors, fit_ridge


def planted(images=300, classes=5, wrong=30, spread=1.0, seed=0):
    """Features of separable classes, true labels, and labels of which some were changed."""
    rng = np.random.default_rng(seed)
    true = np.arange(images) % classes
    rows = (4 * rng.normal(size=(classes, 20))[true] / 4**0.5 + spread * rng.normal(size=(images, 20))).astype(
        np.float32
    )
    given = true.copy()
    at = rng.choice(images, wrong, replace=False)
    given[at] = (true[at] + rng.integers(1, classes, wrong)) % classes
    return rows, true, given


def held_back(rows, labels, classes=5):
    return fit_ridge(lambda: [rows], labels, {"all": slice(0, rows.shape[1])}, classes=classes).held_back


def test_planted_errors_come_first():
    rows, true, labels = planted()
    found = find_label_errors(held_back(rows, labels), labels)
    assert average_precision_score(labels != true, found.suspicion) > 0.98
    wrong = labels != true
    assert (found.suggested[wrong] == true[wrong]).mean() > 0.95


def test_the_share_is_about_right():
    for wrong in (0, 15, 60):
        rows, _, labels = planted(wrong=wrong, seed=wrong)
        assert find_label_errors(held_back(rows, labels), labels).share == pytest.approx(wrong / 300, abs=0.02)


def test_a_flexible_fit_hides_what_held_back_scores_show():
    rows, true, labels = planted(images=100, wrong=10, spread=2.0)
    wide = np.column_stack([rows, np.random.default_rng(5).normal(size=(100, 400)).astype(np.float32)])
    head = fit_ridge(lambda: [wide], labels, {"all": slice(0, wide.shape[1])}, classes=5)
    precision = {
        name: average_precision_score(labels != true, find_label_errors(scores, labels).suspicion)
        for name, scores in {"held back": head.held_back, "seen": wide @ head.weight.T + head.bias}.items()
    }
    assert precision["held back"] >= precision["seen"] - 0.02


@given(st.integers(2, 6), st.integers(0, 1000))
def test_suspicion_is_bounded_and_suggests_another_class(classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 40)
    found = find_label_errors(rng.normal(size=(40, classes)), labels)
    assert (np.abs(found.suspicion) <= 1).all()
    assert (found.suggested != labels).all()
    assert sorted(found.order.tolist()) == list(range(40))
    assert (found.suspicion[found.likely] > 0).all()


def test_a_class_without_images_is_never_suggested_as_likely():
    scores = np.array([[0.0, 0.1, 9.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    assert not find_label_errors(scores, np.array([0, 0, 1])).likely[0]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((3, 1)), np.zeros(3, dtype=int), "two classes or more"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), r"in \[0, 2\), got 3 from 0 to 2"),
        (np.zeros((3, 2)), np.array([0, 1]), "Expected 3 labels"),
    ],
)
def test_wrong_input_is_refused(scores, labels, message):
    with pytest.raises(DataError, match=message):
        find_label_errors(scores, labels)
