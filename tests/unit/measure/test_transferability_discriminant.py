from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tests.unit.measure.problems import make_problem
from transferkit.core.errors import OptionError
from transferkit.measure.transferability import discriminant as module
from transferkit.measure.transferability import h_score, sfda


@pytest.fixture
def problem():
    features, labels, _ = make_problem(0, images=90, widths=(5, 3))
    return features.astype(np.float64), labels


def means_per_image(features, labels):
    return np.stack([features[labels == label].mean(axis=0) for label in labels])


def test_h_score_ignores_a_change_of_basis(problem):
    features, labels = problem
    invertible = np.random.default_rng(1).normal(size=(8, 8))
    moved = features @ invertible + 3
    assert h_score(moved, labels, shrinkage=0) == pytest.approx(h_score(features, labels, shrinkage=0))


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3])
def test_h_score_is_the_trace_of_scikit_learns_covariances(problem, shrinkage):
    features, labels = problem
    whole = LedoitWolf().fit(features) if shrinkage is None else ShrunkCovariance(shrinkage=shrinkage).fit(features)
    used = whole.shrinkage_ if shrinkage is None else shrinkage
    between = np.cov(means_per_image(features, labels).T, bias=True)
    expected = (1 - used) * np.trace(np.linalg.solve(whole.covariance_, between))
    assert h_score(features, labels, shrinkage=shrinkage) == pytest.approx(expected)


def test_h_score_is_the_sum_of_squared_canonical_correlations(problem):
    features, labels = problem
    whole, between = np.cov(features.T, bias=True), np.cov(means_per_image(features, labels).T, bias=True)
    assert h_score(features, labels, shrinkage=0) == pytest.approx(eigh(between, whole, eigvals_only=True).sum())


def test_h_score_reaches_its_ceiling_on_classes_without_spread():
    labels = np.arange(12) % 4
    assert h_score(np.eye(4)[labels], labels, shrinkage=0) == pytest.approx(3)


def test_h_score_without_shrinkage_believes_anything_with_fewer_images_than_features():
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(20, 50)), np.arange(20) % 3
    assert h_score(noise, labels, shrinkage=0) == pytest.approx(2)
    assert h_score(noise, labels) < 1


def test_h_score_with_nothing_but_the_sphere_is_zero(problem):
    assert h_score(*problem, shrinkage=1) == 0


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, float("nan")])
def test_shrinkage_outside_its_range_is_an_error(problem, shrinkage):
    with pytest.raises(OptionError, match=r"shrinkage must be None or in \[0, 1\], got"):
        h_score(*problem, shrinkage=shrinkage)


def test_the_discriminant_equals_scikit_learns(problem):
    features, labels = problem
    centred = features - features.mean(axis=0)
    shares = np.bincount(labels) / len(labels)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=shares, shrinkage=None).fit(centred, labels)
    ours = module._discriminate(centred, labels, 0.0)
    np.testing.assert_allclose(np.exp(ours), theirs.predict_proba(centred), atol=1e-9)


def test_the_discriminant_is_regularised_by_a_sphere_of_the_same_trace(problem):
    features, labels = problem
    centred = features - features.mean(axis=0)
    residual = centred - means_per_image(centred, labels)
    within = ShrunkCovariance(shrinkage=0.4, assume_centered=True).fit(residual).covariance_
    whitened = centred @ np.linalg.inv(np.linalg.cholesky(within)).T
    centres = np.stack([whitened[labels == label].mean(axis=0) for label in range(3)])
    gap = ((whitened[:, None] - centres) ** 2).sum(axis=2)
    joint = np.bincount(labels) / len(labels) * np.exp(-gap / 2)
    ours = module._discriminate(centred, labels, 0.4)
    np.testing.assert_allclose(np.exp(ours), joint / joint.sum(axis=1, keepdims=True), atol=1e-9)


def test_sfda_ignores_unit_offset_and_rotation(problem):
    features, labels = problem
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    expected = sfda(features, labels)
    assert sfda(1e4 * features @ rotation + 5, labels) == pytest.approx(expected)
    assert expected < 0


def test_sfda_of_constant_features_is_minus_the_entropy_of_the_labels():
    labels = np.array([0, 0, 0, 1])
    shares = np.array([0.75, 0.25])
    assert sfda(np.full((4, 3), 0.1), labels) == pytest.approx((shares * np.log(shares)).sum())


def test_sfda_of_classes_far_apart_is_zero():
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    assert sfda(rng.normal(size=(60, 4)) + 100 * np.eye(3, 4)[labels], labels) == pytest.approx(0, abs=1e-6)


def test_sfda_still_tells_features_apart_where_they_outnumber_the_images():
    """Backbones have thousands of features: a discriminant that fits them all would call every one of them perfect."""
    labels = np.arange(60) % 4
    scores = []
    for signal in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(0)
        centres = signal * rng.normal(size=(4, 1500))
        scores.append(sfda(rng.normal(size=(60, 1500)) + centres[labels], labels))
    assert scores == sorted(scores)
    assert scores[0] < -0.01


def test_mixing_makes_overlapping_images_harder():
    rng = np.random.default_rng(4)
    labels = np.arange(200) % 2
    features = rng.normal(size=(200, 2)) + 0.8 * labels[:, None]
    centred = features - features.mean(axis=0)
    strength = module._regularisation(centred, labels)
    unmixed = module._discriminate(centred, labels, strength)[np.arange(200), labels]
    share = np.exp(unmixed)[:, None]
    other = np.stack([centred[labels == 1].mean(axis=0), centred[labels == 0].mean(axis=0)])[labels]
    mixed = module._discriminate(share * centred + (1 - share) * other, labels, strength)
    assert sfda(features, labels) == pytest.approx(mixed[np.arange(200), labels].mean())
    assert 0 < strength < 1


def test_means_of_others_are_the_means_of_what_is_left(problem):
    features, labels = problem
    expected = [features[labels != label].mean(axis=0) for label in range(3)]
    np.testing.assert_allclose(module._means_of_others(features, labels), expected)
