"""The pure functions behind the report; every answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from transferkit.report._answers import (
    class_recalls,
    confusion_counts,
    mean_confidence,
    most_confused,
    reliability_bins,
)
from transferkit.report._plots import draw_heat_map, draw_reliability, fit_scale


def binary(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and two-class probabilities with these confidences, answered with class 0."""
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


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.61, 0.975], 0.6, 1.0),
        ([0.0, 1.0], 0.0, 1.0),
        ([0.6, 0.6], 0.59, 0.6),
        ([0.0], 0.0, 0.01),
        ([1.0], 0.99, 1.0),
    ],
)
def test_scale_holds_all_values_between_round_ends(values, low, high):
    scale = fit_scale(values)
    assert (scale.low, scale.high) == (pytest.approx(low), pytest.approx(high))
    assert scale.place(low) == 0
    assert scale.place(high) == 100
    assert 2 <= len(scale.ticks) <= 6


def test_heat_map_draws_only_cells_with_images_inside_its_frame():
    counts = np.array([[3, 1], [0, 1234]])
    heat_map = draw_heat_map(counts, ["cat", "a very long name of a class indeed"])
    assert [(cell.text, cell.right) for cell in heat_map.cells] == [("3", True), ("1", False), ("1.2k", True)]
    assert heat_map.cells[1].title == "cat: 1 of 4 images taken for a very long name of a class indeed"
    assert all(cell.x + heat_map.side <= heat_map.width for cell in heat_map.cells)
    assert all(cell.y + heat_map.side <= heat_map.height for cell in heat_map.cells)
    assert [label.full for label in heat_map.rows] == ["cat", "a very long name of a class indeed"]


def test_exact_calibration_lies_on_the_diagonal():
    labels, probabilities = binary([0.75] * 4, [True, True, True, False])
    plot = draw_reliability(reliability_bins(labels, probabilities, bins=1))
    point = plot.points[0]
    assert point.x - plot.left == pytest.approx(plot.top + plot.side - point.y, abs=0.02)
