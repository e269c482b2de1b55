"""Scores, exact held-back predictions and calibration of labels and numbers, against other routes to the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, r2_score

from transferkit.measure import (
    assess,
    average_precisions,
    calibrate_labels,
    choose_thresholds,
    fit_label_calibration,
    fit_ridge,
    label_loss,
    rank_resampled,
    resample_score,
    ridge_paths,
    score_targets,
    select_features,
)
from transferkit.records import HeldOut, TargetFolds, Targets

NAMES = ("a", "b", "c")


@pytest.fixture
def problem():
    """Features of 60 images in two stages, and numbers and labels that depend on them; groups of two images."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 12)).astype(np.float32)
    numbers = features @ rng.normal(size=(12, 3)) + rng.normal(size=(60, 3)) * (0.1, 1, 4)
    numbers = numbers * (1, 100, 1e-3) + (0, 5, 1e4)
    labels = (numbers > np.quantile(numbers, (0.5, 0.7, 0.85), axis=0)[np.arange(3), np.arange(3)]).astype(float)
    return features, numbers, labels


def folds_of(task, values, groups=None):
    targets = Targets(task=task, names=NAMES[: values.shape[1]], values=values)
    groups = np.arange(len(values)) if groups is None else groups
    return TargetFolds(targets.strata, groups, np.arange(len(values)), targets)


BLOCKS = {"s": slice(0, 4), "t": slice(4, 12)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_average_precision_is_scikit_learns_with_ties_and_weights(seed, levels):
    rng = np.random.default_rng(seed)
    truth, scores = rng.integers(0, 2, (20, 1)), rng.integers(0, levels + 1, (20, 1)).astype(float)
    truth[0] = 1
    weights = rng.integers(1, 4, 20).astype(float)
    expected = average_precision_score(truth[:, 0], scores[:, 0], sample_weight=weights)
    assert average_precisions(truth, scores, weights)[0] == pytest.approx(expected)


def test_r2_is_scikit_learns_far_from_0(problem):
    _, numbers, _ = problem
    predicted = numbers + np.random.default_rng(1).normal(size=numbers.shape) * numbers.std(axis=0)
    targets = folds_of("regression", numbers).targets
    assert score_targets(targets, predicted) == pytest.approx(r2_score(numbers, predicted), rel=1e-9)


def test_labels_on_no_image_and_constant_numbers_are_left_out(problem):
    _, numbers, labels = problem
    labels[:, 1], numbers[:, 2] = 0, 7.0
    scores = np.random.default_rng(0).normal(size=labels.shape)
    expected = average_precision_score(labels[:, [0, 2]], scores[:, [0, 2]])
    assert score_targets(folds_of("multi_label", labels).targets, scores) == pytest.approx(expected)
    expected = r2_score(numbers[:, :2], 0 * numbers[:, :2])
    assert score_targets(folds_of("regression", numbers).targets, 0 * numbers) == pytest.approx(expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_held_back_numbers_are_those_of_a_refit_without_the_group(problem, grouped):
    features, numbers, _ = problem
    groups = np.arange(60) // 3 if grouped else np.arange(60)
    folds = folds_of("regression", numbers, groups)
    head = fit_ridge(lambda: [features], folds.labels, BLOCKS, classes=3, folds=folds)
    unit, out = numbers.std(axis=0), groups == groups[4]
    scale = 1 / features.std(axis=0) / np.sqrt([4] * 4 + [8] * 8)
    scaled = features * scale
    fitted, truth = scaled[~out], numbers[~out] / unit
    centred, mean = fitted - fitted.mean(axis=0), truth.mean(axis=0)
    slope = np.linalg.solve(centred.T @ centred + head.penalty * np.eye(12), centred.T @ (truth - mean))
    expected = ((scaled[out] - fitted.mean(axis=0)) @ slope + mean) * unit
    np.testing.assert_allclose((head.held_back[out] - expected) / unit, 0, atol=2e-3)
    paths = ridge_paths(lambda: [features], folds.labels, BLOCKS, classes=3, folds=folds)
    np.testing.assert_allclose(paths["joined"].predicted[paths["joined"].best], head.held_back, rtol=1e-4)


def test_a_number_in_another_unit_is_predicted_in_that_unit(problem):
    features, numbers, _ = problem
    one, other = (
        fit_ridge(lambda: [features], folds.labels, BLOCKS, classes=3, folds=folds)
        for folds in (folds_of("regression", numbers), folds_of("regression", 1000 * numbers - 3))
    )
    np.testing.assert_allclose(other.held_back, 1000 * one.held_back - 3, rtol=1e-3)
    np.testing.assert_allclose(other.weight, 1000 * one.weight, rtol=1e-3, atol=1e-6)


def test_features_without_information_rank_labels_by_chance():
    """Left out alone, an image with a label lowers its share in the fit: ranks must not show that."""
    rng = np.random.default_rng(0)
    values = (rng.random((400, 2)) < (0.1, 0.4)).astype(float)
    folds = folds_of("multi_label", values)
    noise = rng.normal(size=(400, 3)).astype(np.float32)
    head = fit_ridge(lambda: [noise], folds.labels, {"s": slice(0, 3)}, classes=2, folds=folds)
    found = average_precisions(values, head.held_back)
    assert np.abs(found - values.mean(axis=0)).max() < 0.06
    assert abs(head.path.accuracy[head.path.best]) < 0.02


def test_selection_finds_the_feature_that_numbers_depend_on():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 40)).astype(np.float32)
    folds = folds_of("regression", 3 * features[:, [7]] + rng.normal(size=(120, 1)))
    found = select_features(lambda: [features], folds.labels, {"s": slice(0, 40)}, classes=1, folds=folds)
    assert int(found.emphasis.argmax()) == 7
    assert found.gain > 0
    assert found.error_gain < 0
    assert found.accuracy > 0.8


def test_intervals_are_wider_where_images_of_a_group_are_copies(problem):
    _, numbers, _ = problem
    predicted = numbers + np.random.default_rng(0).normal(size=numbers.shape) * numbers.std(axis=0) / 2
    alone = resample_score(folds_of("regression", numbers).targets, predicted, folds_of("regression", numbers))
    twice, doubled = np.repeat(numbers, 4, axis=0), np.repeat(predicted, 4, axis=0)
    groups = np.repeat(np.arange(60), 4)
    known, unknown = folds_of("regression", twice, groups), folds_of("regression", twice)
    right = resample_score(known.targets, doubled, known)
    wrong = resample_score(known.targets, doubled, unknown)
    assert right.score == pytest.approx(alone.score)
    assert right.error == pytest.approx(alone.error, rel=0.3)
    assert wrong.error < 0.7 * right.error


def test_a_perfect_score_is_not_certain():
    truth = np.repeat([[0.0], [1.0]], 30, axis=0)
    folds = folds_of("multi_label", truth)
    found = resample_score(folds.targets, truth, folds)
    assert found.interval == (pytest.approx(0.95), 1.0)


def test_calibrated_scores_are_probabilities():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 2)) * 0.1 + 0.3
    truth = (rng.random((4000, 2)) < expit(np.array([9.0, 14.0]) * scores - np.array([3.0, 7.0]))).astype(float)
    fitted = fit_label_calibration(scores, truth, np.ones(4000))
    np.testing.assert_allclose(fitted.slope, [9, 14], rtol=0.2)
    for k in range(2):
        other = LogisticRegression(C=1e6).fit(scores[:, [k]], truth[:, k])
        assert fitted.slope[k] == pytest.approx(other.coef_[0, 0], rel=0.05)
    logits = fitted.apply(scores)
    assert calibrate_labels(logits, truth, np.ones(4000)) == pytest.approx(1.0, abs=0.03)
    balanced = fit_label_calibration(scores, truth, np.ones(4000), is_balanced=True)
    even = expit(balanced.apply(scores))
    assert np.average(even, weights=np.where(truth > 0, 1 / truth.mean(0), 1 / (1 - truth.mean(0)))) == pytest.approx(
        0.5, abs=0.02
    )


def test_a_label_that_scores_separate_has_a_finite_slope():
    truth = np.repeat([[0.0], [1.0]], 10, axis=0)
    fitted = fit_label_calibration(truth, truth, np.ones(20))
    assert np.isfinite(fitted.slope).all()
    assert label_loss(fitted.apply(truth), truth) < 0.2


def test_thresholds_have_the_best_f1_of_all():
    rng = np.random.default_rng(0)
    chances = rng.random((300, 1))
    truth = (rng.random((300, 1)) < chances**3).astype(float)
    (found,) = choose_thresholds(chances, truth)
    best = max(f1_score(truth[:, 0], chances[:, 0] >= one) for one in np.sort(chances[:, 0]))
    assert f1_score(truth[:, 0], chances[:, 0] >= found) == pytest.approx(best)
    assert choose_thresholds(chances[:12], np.arange(12)[:, None] == 0).tolist() == [0.5]  # on one image


def test_metrics_of_labels_and_numbers(problem):
    _, numbers, labels = problem
    rng = np.random.default_rng(2)
    chances = np.clip(0.5 * labels + 0.5 * rng.random(labels.shape), 0, 1)
    folds = folds_of("multi_label", labels)
    items = tuple(map(str, range(60)))
    answers = HeldOut(split="test", labels=folds.labels, probabilities=chances, items=items, targets=folds.targets)
    found = assess(answers, folds)
    assert found.score == pytest.approx(average_precision_score(labels, chances))
    assert found.f1 == pytest.approx(f1_score(labels, chances >= 0.5, average="micro"))
    assert found.exact == pytest.approx(((chances >= 0.5) == labels).all(axis=1).mean())
    assert found.low < found.score <= found.high
    folds = folds_of("regression", numbers)
    answers = HeldOut(split="test", labels=folds.labels, probabilities=numbers + 1, items=items, targets=folds.targets)
    found = assess(answers, folds)
    assert [one.bias for one in found.numbers] == pytest.approx([1, 1, 1])
    assert found.mae == pytest.approx(1)


def test_ranks_of_resampled_scores():
    found = rank_resampled(np.array([0.5, 0.9, 0.9]), np.array([[0.5, 0.4], [0.9, 0.8], [0.8, 0.9]]))
    assert found.rank.tolist() == [3, 1, 1]
    assert (found.low.tolist(), found.high.tolist()) == ([3, 1, 1], [3, 2, 2])
