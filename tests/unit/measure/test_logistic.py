from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss

from tests.unit.measure.problems import chunked, make_problem, scaled
from transferkit.core.errors import OptionError
from transferkit.measure import logistic
from transferkit.measure.logistic import STRENGTHS, fit_logistic


@pytest.fixture
def tight(monkeypatch):
    """Solve to the end, so that two roads to the same optimum meet."""

    class Patient(LogisticRegression):
        def __init__(self, C=1.0, max_iter=100, tol=1e-4):
            super().__init__(C=C, max_iter=10_000, tol=1e-8)

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Patient)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_equals_scikit_learns_on_scaled_features(classes, weighted, tight):
    features, labels, blocks = make_problem(1, images=80, widths=(6, 5), classes=classes)
    weights = np.linspace(0.5, 2, 80) if weighted else None
    fit = fit_logistic(chunked(features, 13), labels, blocks, weights=weights)
    known = scaled(features, blocks)
    model = LogisticRegression(C=fit.strength, max_iter=10_000, tol=1e-8).fit(known, labels, sample_weight=weights)
    assert fit.weight.shape == (classes, 11)
    answers = softmax(features @ fit.weight.T + fit.bias, axis=1)
    np.testing.assert_allclose(answers, model.predict_proba(known), atol=1e-3)


def test_held_back_probabilities_come_from_fits_that_had_not_seen_them(tight):
    features, labels, blocks = make_problem(2, images=60, widths=(40,))
    fit = fit_logistic(chunked(features, 60), labels, blocks)
    assert sorted(fit.held_back) == list(range(60))
    known = scaled(features, blocks)
    # Find each image's fold by the order in which it was held back: five folds of twelve.
    for held in np.split(fit.held_back, 5):
        seen = np.setdiff1d(np.arange(60), held)
        model = LogisticRegression(C=fit.strength, max_iter=10_000, tol=1e-8).fit(known[seen], labels[seen])
        place = np.flatnonzero(np.isin(fit.held_back, held))
        np.testing.assert_allclose(fit.probabilities[place], model.predict_proba(known[held]), atol=1e-3)


def test_strength_is_the_one_with_the_lower_loss_on_the_first_fold(monkeypatch):
    features, labels, blocks = make_problem(3, images=60, widths=(10,))
    losses = {}
    for strength in STRENGTHS:
        monkeypatch.setattr(logistic, "STRENGTHS", (strength,))
        alone = fit_logistic(chunked(features, 60), labels, blocks)
        losses[strength] = sklearn_log_loss(labels[alone.held_back[:12]], alone.probabilities[:12])
    monkeypatch.undo()
    assert fit_logistic(chunked(features, 60), labels, blocks).strength == min(losses, key=losses.get)


def test_random_labels_are_not_read_better_than_chance():
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(200, 150)).astype(np.float32), np.arange(200) % 2
    fit = fit_logistic(chunked(features, 200), labels, {"s": slice(0, 150)})
    accuracy = (fit.probabilities.argmax(axis=1) == labels[fit.held_back]).mean()
    assert abs(accuracy - 0.5) < 5 * np.sqrt(0.25 / 200)


def test_same_seed_same_head_and_another_seed_other_folds():
    features, labels, blocks = make_problem(5, images=40, widths=(6,))
    one, again, other = (fit_logistic(chunked(features, 40), labels, blocks, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.weight, again.weight)
    np.testing.assert_array_equal(one.held_back, again.held_back)
    assert (one.held_back != other.held_back).any()


def test_many_images_are_held_back_once_only(monkeypatch):
    monkeypatch.setattr(logistic, "FOLDED_IMAGES", 50)
    features, labels, blocks = make_problem(6, images=60, widths=(6,))
    fit = fit_logistic(chunked(features, 60), labels, blocks)
    assert len(fit.held_back) == len(set(fit.held_back.tolist())) == 12  # one fold of five


def test_class_of_two_images_is_held_back_one_at_a_time():
    features, labels, blocks = make_problem(7, images=30, widths=(6,))
    labels = np.where(labels == 2, 1, labels)
    labels[:2] = 2
    fit = fit_logistic(chunked(features, 30), labels, blocks)
    assert sorted(fit.held_back) == list(range(30))
    assert fit.probabilities.shape == (30, 3)


def test_class_of_one_image_is_an_error_that_names_the_way_out():
    labels = np.array([0, 0, 0, 1])
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(OptionError, match="needs 2 images per class to hold one back, got 1. Use head=ridge."):
        fit_logistic(chunked(features, 4), labels, {"s": slice(0, 4)})
