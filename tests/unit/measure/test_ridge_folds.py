"""Images left out together, one of each class: against refitting without them, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from transferkit.measure import PENALTIES, fit_ridge, ridge, ridge_paths


def scaled(features, width):
    centred = features - features.mean(axis=0)
    return centred / centred.std(axis=0) / np.sqrt(width)


def refit_without(folds, known, labels, classes, penalty, weights):
    scores = np.empty((len(labels), classes))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(labels)), fold)
        model = Ridge(alpha=penalty).fit(known[others], np.eye(classes)[labels[others]], sample_weight=weights[others])
        scores[fold] = model.predict(known[fold])
    return scores


@pytest.mark.parametrize("width", [4, 60])
@pytest.mark.parametrize("weighted", [False, True])
def test_held_back_scores_equal_refitting_without_the_fold(width, weighted):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [13, 8, 4]))
    features = (rng.normal(size=(25, width)) + labels[:, None]).astype(np.float32)
    weights = np.ones(25)
    if weighted:
        weights = 1 / np.bincount(labels)[labels]
        weights /= weights.mean()
    mean = np.average(features, axis=0, weights=weights)
    deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    known = (features - mean) / deviation / np.sqrt(width)
    fit = fit_ridge(
        lambda: [features], labels, {"s": slice(0, width)}, classes=3, weights=weights if weighted else None
    )
    norms = ((features - mean) ** 2 / deviation**2 * weights[:, None]).sum(axis=1)
    turn = np.array([np.count_nonzero(norms[labels == label] < norms[i]) for i, label in enumerate(labels)])
    folds = [np.flatnonzero(turn == number) for number in range(turn.max() + 1)]
    expected = refit_without(folds, known, labels, 3, fit.penalty, weights)
    np.testing.assert_allclose(fit.held_back, expected, atol=2e-3)
    path = ridge_paths(lambda: [features], labels, {"s": slice(0, width)}, classes=3, weights=weights)["s"]
    best = int(np.flatnonzero(path.penalties == fit.penalty)[0])
    np.testing.assert_array_equal(path.right[best], expected.argmax(axis=1) == labels)


labelled = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)


@given(labels=labelled, size=st.integers(1, 8))
def test_every_image_is_in_one_fold_that_holds_no_class_twice_and_no_more_than_allowed(labels, size):
    folds = [fold for group in ridge._folds(labels, size, np.zeros(len(labels))).values() for fold in group]
    assert sorted(np.concatenate(folds)) == list(range(len(labels)))
    for fold in folds:
        assert len(fold) <= size
        assert len(set(labels[fold])) == len(fold)


def test_large_classes_are_left_out_one_by_one_and_small_ones_never_all_at_once():
    assert ridge._fold_size(np.repeat([0, 1], ridge.LARGE_CLASS), 2) == 1
    assert ridge._fold_size(np.repeat([0, 1, 2], 5), 3) == 3
    assert ridge._fold_size(np.arange(6), 6) == 3  # one image of each class: something must be left to learn from
    assert ridge._fold_size(np.repeat(np.arange(1000), 5), 1000) == ridge.FOLD_SIZE


def test_small_classes_without_any_signal_score_chance_where_single_images_score_below_it(monkeypatch):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 4)

    def accuracy():
        found = []
        for _ in range(60):
            features = rng.normal(size=(16, 40)).astype(np.float32)
            path = ridge_paths(lambda rows=features: [rows], labels, {"s": slice(0, 40)}, classes=4)["s"]
            found.append(path.accuracy[PENALTIES == 1])
        return np.mean(found)

    assert accuracy() == pytest.approx(0.25, abs=0.04)
    monkeypatch.setattr(ridge, "LARGE_CLASS", 0)
    assert accuracy() < 0.15
