from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from transferkit.measure.transferability import logme


def best_evidence(features, target):
    """Largest log density of y ~ N(0, F F' / alpha + I / beta) per image, searched without any algebra."""
    gram, identity = features @ features.T, np.eye(len(target))

    def loss(logs):
        covariance = gram * np.exp(-logs[0]) + identity * np.exp(-logs[1])
        return -multivariate_normal.logpdf(target, cov=covariance) / len(target)

    starts = [np.array([a, b]) for a in (-2.0, 2.0) for b in (0.0, 3.0)]
    options = {"xatol": 1e-7, "fatol": 1e-12, "maxiter": 2000}
    return max(-minimize(loss, start, method="Nelder-Mead", options=options).fun for start in starts)


@pytest.mark.parametrize(("images", "width", "classes"), [(14, 3, 2), (15, 4, 3), (8, 12, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_evidence_equals_a_brute_force_search(images, width, classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    features = rng.normal(size=(images, width)) + 1.5 * np.eye(classes, width)[labels]
    expected = np.mean([best_evidence(features, (labels == label).astype(float)) for label in range(classes)])
    assert logme(features, labels) == pytest.approx(expected, abs=1e-5)


def test_unit_and_rotation_of_features_do_not_matter():
    rng = np.random.default_rng(2)
    labels = np.arange(40) % 3
    features = rng.normal(size=(40, 5)) + np.eye(3, 5)[labels]
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert logme(1e4 * features @ rotation, labels) == pytest.approx(logme(features, labels))


def test_features_that_are_zero_leave_the_noise_to_explain_all():
    labels = np.array([0, 0, 0, 1])
    expected = np.mean(
        [norm.logpdf(labels == label, scale=np.sqrt(np.mean(labels == label))).mean() for label in (0, 1)]
    )
    assert logme(np.zeros((4, 3)), labels) == pytest.approx(expected)


def test_a_perfect_fit_is_finite_and_beats_a_near_one():
    labels = np.arange(30) % 3
    exact = np.eye(3)[labels]
    near = exact + 0.01 * np.random.default_rng(3).normal(size=(30, 3))
    assert logme(near, labels) < logme(exact, labels) < 20


def test_features_without_signal_add_nothing():
    rng = np.random.default_rng(4)
    labels = np.arange(60) % 2
    good = rng.normal(size=(60, 2)) + 2 * labels[:, None]
    assert logme(np.hstack([good, rng.normal(size=(60, 30))]), labels) < logme(good, labels)
