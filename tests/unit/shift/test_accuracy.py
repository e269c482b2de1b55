"""Accuracy without labels: what must hold whatever the weights are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from transferkit.shift.accuracy import Answers, estimate_accuracy, score_changes

NOBODY = np.empty((0, 400), dtype=int)


def classified(labels, *, noise, seed, classes=4):
    """Probabilities of a classifier that is right less often with more noise, and as sure as before."""
    rng = np.random.default_rng(seed)
    logits = 4 * np.eye(classes)[labels] + noise * rng.normal(size=(len(labels), classes))
    return softmax(logits, axis=1)


LABELS = np.arange(400) % 4


def answers(noise, seed):
    return Answers(classified(LABELS, noise=noise, seed=seed), NOBODY)


def test_without_a_shift_it_is_the_held_back_accuracy():
    found = estimate_accuracy(answers(2, 0), LABELS, answers(2, 1), kind="none", effective=400)
    assert found.accuracy == found.held_back
    assert found.low < found.accuracy < found.high


def test_scores_hardly_move_between_equal_sets():
    changes = score_changes(answers(2, 0), LABELS, answers(2, 1))
    assert all(abs(change) < 0.4 for change in changes.values())


def test_collapsed_predictions_are_estimated_as_bad_however_sure_they_are():
    collapsed = Answers(np.tile([0.97, 0.01, 0.01, 0.01], (400, 1)), NOBODY)
    found = estimate_accuracy(answers(2, 0), LABELS, collapsed, kind="images", effective=400)
    assert found.methods["difference of confidences"] > 0.9
    assert found.accuracy < found.held_back - 0.25


def test_new_class_proportions_are_weighed_by_the_accuracy_of_each_class():
    rng = np.random.default_rng(0)
    held = np.where((LABELS == 0)[:, None], np.eye(4)[LABELS], np.eye(4)[rng.integers(1, 4, 400)])
    sure = np.clip(held, 0.01, None)
    known = Answers(sure / sure.sum(1, keepdims=True), NOBODY)
    new = Answers(np.tile([0.97, 0.01, 0.01, 0.01], (400, 1)), NOBODY)
    found = estimate_accuracy(known, LABELS, new, kind="classes", effective=400)
    assert found.held_back < 0.6
    assert found.accuracy > 0.9


def test_the_order_of_images_does_not_matter_much():
    new = answers(4, 3)
    order = np.random.default_rng(0).permutation(400)
    one, other = (
        estimate_accuracy(answers(2, 0), LABELS, found, kind="images", effective=400).accuracy
        for found in (new, new.take(order))
    )
    assert one == pytest.approx(other, abs=1e-6)
