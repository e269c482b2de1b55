from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tests.unit.measure.problems import make_problem
from transferkit.core.errors import OptionError
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


def discriminant_of(features, labels, regularisation):
    """(N, K) log-probabilities of scikit-learn's linear discriminant, shrunk towards a sphere of the same trace."""
    shares = np.bincount(labels) / len(labels)
    model = LinearDiscriminantAnalysis(solver="lsqr", priors=shares, shrinkage=regularisation)
    return model.fit(features, labels).predict_log_proba(features)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_sfda_is_the_second_of_two_discriminants_of_scikit_learns(classes, spread):
    """The second one sees every image mixed with the mean of the other classes, as the first one doubts its class."""
    features, labels, _ = make_problem(4, images=90, widths=(5, 3), classes=classes)
    centres = means_per_image(features, labels)
    features = (centres + spread * (features - centres)).astype(np.float64)
    residual = features - means_per_image(features, labels)
    widest = eigh(np.cov(residual.T, bias=True), eigvals_only=True)[-1]
    regularisation = float(np.exp(-5 * widest / features.var(axis=0).sum()))  # 5 is the authors' rate
    rows = np.arange(len(labels))
    unmixed = discriminant_of(features, labels, regularisation)[rows, labels]
    share = np.exp(unmixed)[:, None]
    others = np.stack([features[labels != label].mean(axis=0) for label in labels])
    mixed = discriminant_of(share * features + (1 - share) * others, labels, regularisation)[rows, labels]
    assert sfda(features, labels) == pytest.approx(mixed.mean(), rel=1e-6)


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
