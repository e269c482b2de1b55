from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from transferkit.measure import assess, calibration_error, fit_temperature, log_loss
from transferkit.records import Folds, HeldOut


def answers(seed: int, images: int, classes: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    labels[:classes] = np.arange(classes)
    scores = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax(scores, axis=1), labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), images=st.integers(5, 80), classes=st.integers(2, 5))
def test_log_loss_is_scikit_learns(seed, images, classes):
    probabilities, labels = answers(seed, images, classes)
    assert log_loss(probabilities, labels) == pytest.approx(sklearn_log_loss(labels, probabilities))


def test_log_loss_of_certainty():
    sure = np.array([[1.0, 0.0]], dtype=np.float32)
    assert log_loss(sure, np.array([0])) == 0
    assert np.isfinite(log_loss(sure, np.array([1])))
    assert log_loss(sure, np.array([1])) > 80


def test_calibration_error_is_the_gap_that_was_built_in():
    # 15 bins of 20 images; all say 0.8 and 14 of each 20 are right: a gap of 0.1 everywhere.
    probabilities = np.tile([0.8, 0.2], (300, 1))
    labels = np.where(np.arange(300) % 20 < 14, 0, 1)
    assert calibration_error(probabilities, labels) == pytest.approx(0.1)


def test_gaps_of_either_sign_add_up():
    # Half say 0.6 and are always right (gap 0.4), half say 0.9 and are right every other time (gap 0.4).
    confidence = np.repeat([0.6, 0.9], 15 * 20)
    labels = np.where(np.arange(600) < 300, 0, np.arange(600) % 2)
    # No bin of 40 ends at image 300: one holds 20 of each half, and their gaps cancel.
    straddling = 40 / 600 * (0.4 - abs((0.6 + 0.9) / 2 - (1 + 0.5) / 2))
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    assert calibration_error(probabilities, labels) == pytest.approx(0.4 - straddling)


def test_fewer_images_than_bins_compare_each_on_its_own():
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7]])
    assert calibration_error(probabilities, np.array([0, 0])) == pytest.approx((0.1 + 0.7) / 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), images=st.integers(5, 80), classes=st.integers(2, 5))
def test_calibration_error_lies_between_the_overall_gap_and_one(seed, images, classes):
    probabilities, labels = answers(seed, images, classes)
    overall = abs(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == labels).mean())
    assert overall - 1e-9 <= calibration_error(probabilities, labels) <= 1


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_temperature_recovers_the_one_that_made_the_labels(temperature):
    rng = np.random.default_rng(0)
    scores = 3 * rng.normal(size=(20_000, 3))
    chances = softmax(scores / temperature, axis=1)
    labels = (rng.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=2)
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.06)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), factor=st.floats(0.1, 10))
def test_temperature_follows_the_unit_of_the_scores(seed, factor):
    probabilities, labels = answers(seed, 200, 3)
    scores = np.log(probabilities)
    assert fit_temperature(factor * scores, labels) == pytest.approx(factor * fit_temperature(scores, labels), rel=1e-3)


def test_no_temperature_near_the_fitted_one_has_a_lower_loss():
    probabilities, labels = answers(1, 100, 4)
    scores = np.log(probabilities) * 3
    best = fit_temperature(scores, labels)
    losses = [sklearn_log_loss(labels, softmax(scores / t, axis=1)) for t in (best, 0.95 * best, 1.05 * best)]
    assert losses[0] == min(losses)


def test_temperature_of_perfect_scores_is_finite():
    labels = np.arange(10) % 2
    temperature = fit_temperature(np.eye(2)[labels], labels)
    assert np.isfinite(temperature)
    assert 0 < temperature < 0.1


def held_out(probabilities, labels):
    items = tuple(f"{i}.png" for i in range(len(labels)))
    return HeldOut(split="val", labels=labels, probabilities=probabilities, items=items)


def test_assess_agrees_with_scikit_learn_and_scipy():
    probabilities, labels = answers(2, 90, 3)
    metrics = assess(held_out(probabilities, labels))
    predicted = probabilities.argmax(axis=1)
    right = int((predicted == labels).sum())
    assert metrics.images == 90
    assert metrics.accuracy == pytest.approx(right / 90)
    interval = binomtest(right, 90).proportion_ci(0.95, method="wilson")
    assert (metrics.low, metrics.high) == pytest.approx((interval.low, interval.high))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.log_loss == pytest.approx(sklearn_log_loss(labels, probabilities))


@pytest.mark.parametrize("frames", [2, 5])
def test_copies_and_frames_do_not_narrow_the_interval(frames):
    probabilities, labels = answers(2, 40, 3)
    once = assess(held_out(probabilities, labels))
    many, of_many = np.repeat(probabilities, frames, axis=0), np.repeat(labels, frames)
    whose, own = np.repeat(np.arange(40), frames), np.arange(40 * frames)
    for folds in (Folds(of_many, whose, whose), Folds(of_many, whose, own)):
        copied = assess(held_out(many, of_many), folds)
        assert (copied.images, copied.accuracy) == (40 * frames, pytest.approx(once.accuracy))
        assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert assess(held_out(many, of_many), Folds.alone(of_many)) == assess(held_out(many, of_many))


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_present():
    labels = np.array([0, 0, 0, 0, 2])
    probabilities = np.eye(3)[[0, 0, 0, 1, 2]]
    assert assess(held_out(probabilities, labels)).balanced_accuracy == pytest.approx((0.75 + 1) / 2)


def test_empty_split_cannot_be_assessed():
    with pytest.raises(ValueError, match="The val split has no images to assess."):
        assess(held_out(np.empty((0, 2)), np.empty(0, dtype=np.int64)))
