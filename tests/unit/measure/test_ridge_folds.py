"""Images left out together, one of each class: against refitting without them, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.unit.measure.problems import OneByOne
from transferkit.measure import PENALTIES, fit_ridge, ridge_paths


def scaled(features, width):
    centred = features - features.mean(axis=0)
    return centred / centred.std(axis=0) / np.sqrt(width)


def refit_without(sets, known, labels, classes, penalty, weights):
    scores = np.empty((len(labels), classes))
    for fold in sets:
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
    turn = np.array([np.count_nonzero(labels[:i] == label) for i, label in enumerate(labels)])
    sets = [np.flatnonzero(turn == number) for number in range(turn.max() + 1)]
    expected = refit_without(sets, known, labels, 3, fit.penalty, weights)
    np.testing.assert_allclose(fit.held_back, expected, atol=2e-3)
    path = ridge_paths(lambda: [features], labels, {"s": slice(0, width)}, classes=3, weights=weights)["s"]
    best = int(np.flatnonzero(path.penalties == fit.penalty)[0])
    np.testing.assert_array_equal(path.right[best], expected.argmax(axis=1) == labels)


def test_small_classes_without_any_signal_score_chance_where_single_images_score_below_it():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 4)

    def accuracy(folds):
        found = []
        for _ in range(60):
            features = rng.normal(size=(16, 40)).astype(np.float32)
            paths = ridge_paths(lambda rows=features: [rows], labels, {"s": slice(0, 40)}, classes=4, folds=folds)
            path = paths["s"]
            found.append(path.accuracy[PENALTIES == 1])
        return np.mean(found)

    assert accuracy(None) == pytest.approx(0.25, abs=0.04)
    assert accuracy(OneByOne.alone(labels)) < 0.15
