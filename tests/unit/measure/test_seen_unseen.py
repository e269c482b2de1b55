"""Accuracy on seen and unseen classes: answers known by construction, and the sweep against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.measure.seen_unseen import SeenUnseen, harmonic_mean, score_domains

SEEN = np.array([True, True, False])


def test_the_harmonic_mean_is_that_of_scipy():
    from scipy.stats import hmean

    assert harmonic_mean(0.3, 0.8) == pytest.approx(hmean([0.3, 0.8]))
    assert harmonic_mean(0.0, 0.8) == harmonic_mean(0.0, 0.0) == 0.0


def test_accuracy_is_a_mean_over_classes_not_images():
    scores = np.eye(3)[[0, 0, 0, 0, 2]]
    found = score_domains(scores, np.array([0, 0, 0, 1, 2]), SEEN).accuracy()
    assert found == SeenUnseen(seen=0.5, unseen=1.0)  # class 0: 3 of 3, class 1: 0 of 1


def test_a_penalty_moves_images_from_seen_to_unseen_classes():
    scores = np.array([[5.0, 0.0, 1.0], [3.0, 0.0, 2.0]])  # margins 4 and 1
    answers = score_domains(scores, np.array([0, 2]), SEEN)
    reached = [(answers.accuracy(gamma).seen, answers.accuracy(gamma).unseen) for gamma in (0.0, 2.0, 5.0)]
    assert reached == [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert answers.best_penalty() == 2.5
    assert answers.among_unseen == 1.0


def test_copies_of_an_image_count_once():
    scores = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    labels = np.array([0, 0, 0, 2])
    alone = score_domains(scores, labels, SEEN).accuracy()
    counted = score_domains(scores, labels, SEEN, counting=np.array([0.5, 0.5, 1.0, 1.0])).accuracy()
    assert (alone.seen, counted.seen) == (pytest.approx(2 / 3), 0.5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_the_best_penalty_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (12, 5)).astype(float)  # ties on purpose
    labels, seen = rng.integers(0, 5, 12), np.array([True, True, True, False, False])
    answers = score_domains(scores, labels, seen)
    tried = np.concatenate([[-9.0], np.arange(-4, 5), np.arange(-4, 5) + 0.5])
    best = max(answers.accuracy(float(gamma)).harmonic for gamma in tried)
    assert answers.accuracy(answers.best_penalty()).harmonic == pytest.approx(best)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_with_a_penalty_the_answer_is_that_of_the_argmax(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    answers = score_domains(scores, labels, SEEN)
    assert (answers.right(0.3) == ((scores - 0.3 * SEEN).argmax(axis=1) == labels)).all()


def test_the_interval_holds_the_mean_and_narrows_with_classes():
    rng = np.random.default_rng(0)

    def interval(classes: int) -> tuple[float, float]:
        labels = np.repeat(np.arange(classes), 10)
        scores = np.eye(classes)[labels] + 0.6 * rng.normal(size=(len(labels), classes))
        answers = score_domains(scores, labels, np.arange(classes) < classes // 2)
        low, high = answers.harmonic_interval(0.0)
        assert low <= answers.accuracy().harmonic <= high
        return low, high

    few, many = interval(6), interval(60)
    assert many[1] - many[0] < few[1] - few[0]
