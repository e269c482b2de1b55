"""Confusions, recalls and reliability; every answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from transferkit.report._predictions import (
    class_recalls,
    confusion_counts,
    mean_confidence,
    most_confused,
    reliability_bins,
)


def binary(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and two-class probabilities with these confidences, predicted as class 0."""
    top = np.array(confidences)
    return np.where(right, 0, 1), np.stack([top, 1 - top], axis=1)


def test_confusion_and_recall_agree_with_scikit_learn():
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 7, 200), draw.integers(0, 7, 200)
    counts = confusion_counts(labels, predicted, classes=7)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted))
    np.testing.assert_allclose(class_recalls(counts), recall_score(labels, predicted, average=None))


def test_a_class_without_images_has_no_recall():
    recalls = class_recalls(confusion_counts(np.array([0]), np.array([2]), classes=3))
    np.testing.assert_array_equal(recalls, [0.0, np.nan, np.nan])


def test_most_confused_orders_by_count_then_share_and_ignores_the_diagonal():
    counts = np.array([[50, 2, 0], [3, 0, 2], [0, 0, 9]])
    pairs = [(pair.true, pair.predicted, pair.count) for pair in most_confused(counts, limit=9)]
    assert pairs == [(1, 0, 3), (1, 2, 2), (0, 1, 2)]
    assert most_confused(counts, limit=1)[0].share == pytest.approx(0.6)
    assert most_confused(np.eye(3, dtype=np.int64), limit=9) == ()


def test_reliability_bins_hold_equal_masses_in_order_of_confidence():
    labels, probabilities = binary([0.9, 0.6, 0.8, 0.7], [True, False, True, True])
    low, high = reliability_bins(labels, probabilities, bins=2)
    assert (low.count, low.confidence, low.accuracy) == (2, pytest.approx(0.65), 0.5)
    assert (high.count, high.confidence, high.accuracy) == (2, pytest.approx(0.85), 1.0)


@pytest.mark.parametrize("images", [1, 7, 15, 16, 400])
def test_reliability_bins_keep_every_image(images):
    draw = np.random.default_rng(images)
    labels, probabilities = draw.integers(0, 4, images), draw.dirichlet(np.ones(4), images)
    bins = reliability_bins(labels, probabilities)
    assert len(bins) == min(15, images)
    assert sum(one.count for one in bins) == images
    assert max(one.count for one in bins) - min(one.count for one in bins) <= 1
    right = (probabilities.argmax(axis=1) == labels).mean()
    assert sum(one.count * one.accuracy for one in bins) / images == pytest.approx(right)


def test_mean_confidence_of_a_model_that_claims_too_much():
    found = mean_confidence(*binary([0.9] * 100, [True] * 60 + [False] * 40))
    assert found.gap == pytest.approx(0.3)
    assert found.chance == pytest.approx(1.959964 * 0.03)
