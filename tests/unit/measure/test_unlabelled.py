"""Pseudo-labels and label spreading: known answers, and the closed forms against independent ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from transferkit.core.errors import OptionError
from transferkit.measure.unlabelled import (
    UNLABELLED_METHODS,
    best_penalty,
    fit_dual_probe,
    learn_from_unlabelled,
)


def clusters(per_class=80, *, classes=3, width=12, spread=1.0, seed=0):
    """Well separated classes, all of whose images are centred; and their labels."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(classes, width))
    labels = np.tile(np.arange(classes), per_class)
    features = centres[labels] + spread * rng.normal(size=(len(labels), width))
    return features - features.mean(axis=0), labels


def test_it_is_scikit_learns_ridge_with_weights():
    features, labels = clusters(10)
    rng = np.random.default_rng(1)
    rows, weights = rng.permutation(30)[:20], rng.uniform(0.2, 1, 20)
    probe = fit_dual_probe(features @ features.T, rows, labels[rows], weights, classes=3, penalty=0.7)
    base = np.bincount(labels[rows], weights=weights, minlength=3) / weights.sum()
    known = Ridge(alpha=0.7, fit_intercept=False)
    known.fit(features[rows], np.eye(3)[labels[rows]] - base, sample_weight=weights)
    np.testing.assert_allclose(probe.scores(features @ features.T), known.predict(features) + base, atol=1e-8)


def test_the_penalty_is_that_of_leaving_images_out_one_by_one():
    features, labels = clusters(6, spread=3.0)
    products, rows = features @ features.T, np.arange(18)

    def error(penalty):
        total = 0.0
        base = np.bincount(labels, minlength=3) / 18
        for left in rows:
            kept = rows[rows != left]
            model = Ridge(alpha=penalty, fit_intercept=False).fit(features[kept], np.eye(3)[labels[kept]] - base)
            total += float(((np.eye(3)[labels[left]] - base - model.predict(features[left : left + 1])) ** 2).sum())
        return total

    penalty, temperature = best_penalty(products, rows, labels, classes=3)
    assert error(penalty) <= min(error(penalty / 3.2), error(penalty * 3.2)) + 1e-9
    assert temperature > 0


@pytest.mark.parametrize("method", UNLABELLED_METHODS)
def test_unlabelled_images_help_where_classes_are_clusters(method):
    gains = []
    for seed in range(8):
        features, labels = clusters(seed=seed, spread=2.2)
        products, labelled, unlabelled = features @ features.T, np.arange(6), np.arange(6, 160)
        new = np.arange(160, 240)
        answer = {
            how: learn_from_unlabelled(products, labelled, labels[:6], unlabelled, classes=3, method=how)
            for how in (None, method)
        }
        right = {how: (one.scores(products[new]).argmax(axis=1) == labels[new]).mean() for how, one in answer.items()}
        gains.append(right[method] - right[None])
    assert np.mean(gains) > 0.02


@pytest.mark.parametrize("method", UNLABELLED_METHODS)
def test_copies_of_labelled_images_change_no_answer(method):
    features, labels = clusters(20)
    twice = np.concatenate([features, features])
    products, rows = twice @ twice.T, np.arange(60)
    plain = learn_from_unlabelled(products, rows, labels, rows + 60, classes=3, method=None)
    more = learn_from_unlabelled(products, rows, labels, rows + 60, classes=3, method=method)
    assert (plain.scores(products).argmax(axis=1) == more.scores(products).argmax(axis=1)).mean() > 0.97


@pytest.mark.parametrize("method", [None, *UNLABELLED_METHODS])
def test_without_unlabelled_images_it_is_the_plain_probe(method):
    features, labels = clusters(8)
    products, rows, none = features @ features.T, np.arange(24), np.arange(0)
    found = learn_from_unlabelled(products, rows, labels, none, classes=3, method=method)
    plain = learn_from_unlabelled(products, rows, labels, none, classes=3, method=None)
    np.testing.assert_array_equal(found.coefficients, plain.coefficients)


def test_an_unknown_method_is_refused():
    features, labels = clusters(4)
    with pytest.raises(OptionError, match="Unknown way to use unlabelled images 'fixmatch'"):
        learn_from_unlabelled(
            features @ features.T, np.arange(6), labels[:6], np.arange(6, 12), classes=3, method="fixmatch"
        )
