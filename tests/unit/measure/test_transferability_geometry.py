from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm, spearmanr

from transferkit.core.errors import OptionError
from transferkit.measure.transferability import gbc, parc, transrate


def overlapping(seed, *, images=60, width=5, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    return rng.normal(size=(images, width)) + 1.5 * np.eye(classes, width)[labels], labels


def test_transrate_is_zero_when_every_class_is_a_copy_of_the_whole():
    points = np.random.default_rng(0).normal(size=(10, 4))
    assert transrate(np.vstack([points] * 3), np.repeat([0, 1, 2], 10)) == pytest.approx(0, abs=1e-9)


def test_transrate_of_two_points_by_hand():
    # Centred and scaled the features are -1 and 1: each class, and all of them, have second moment 1 in one dimension.
    assert transrate(np.array([[3.0], [5.0]]), np.array([0, 1])) == pytest.approx(0, abs=1e-9)
    # A square of 4 points, one direction per class: 1/2 log(1 + 1/(2e)) twice, less 1/2 log(1 + 1/e) on average.
    square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    expected = math.log1p(0.5 / 0.01) - 0.5 * math.log1p(1 / 0.01)
    assert transrate(square, np.array([0, 0, 1, 1]), distortion=0.01) == pytest.approx(expected)


@pytest.mark.parametrize("width", [4, 90])
def test_transrate_from_eigenvalues(width):
    features, labels = overlapping(1, width=width)
    labels[:15] = 0  # classes of unequal size weigh by their share
    unit = features - features.mean(axis=0)
    unit /= np.sqrt(unit.var(axis=0).sum())

    def rate(rows):
        return (
            0.5
            * np.log1p(np.linalg.eigvalsh(np.cov(rows.T, bias=True) + np.outer(m := rows.mean(axis=0), m)) / 0.1).sum()
        )

    within = sum((labels == label).mean() * rate(unit[labels == label]) for label in range(3))
    assert transrate(features, labels, distortion=0.1) == pytest.approx(rate(unit) - within)


def test_transrate_ignores_unit_offset_and_rotation():
    features, labels = overlapping(2)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    assert transrate(1e3 * features @ rotation + 7, labels) == pytest.approx(transrate(features, labels))


@pytest.mark.parametrize("distortion", [0.0, -1.0, float("nan")])
def test_distortion_that_allows_nothing_is_an_error(distortion):
    with pytest.raises(OptionError, match="distortion must be > 0, got"):
        transrate(*overlapping(3), distortion=distortion)


def two_classes(offset, deviation):
    """Points on a line whose class means and deviations are exactly 0 and 1, and `offset` and `deviation`."""
    base = np.array([-1.0, 1, -1, 1])[:, None]
    return np.vstack([base, offset + deviation * base]), np.repeat([0, 1], 4)


@pytest.mark.parametrize(("offset", "deviation"), [(0.0, 1.0), (2.0, 1.0), (0.0, 3.0), (1.5, 0.4)])
@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_gbc_of_two_gaussians_is_the_integral_of_the_root_of_their_product(offset, deviation, covariance):
    features, labels = two_classes(offset, deviation)
    overlap, _ = quad(
        lambda x: math.sqrt(norm.pdf(x, 0, 1) * norm.pdf(x, offset, deviation)), -20, 20, points=[0, offset]
    )
    assert gbc(features, labels, covariance=covariance) == pytest.approx(-2 * overlap, rel=1e-6)


def test_gbc_tells_spherical_from_diagonal():
    # Axes are principal: variances 4 and 1 in the first class, 1 and 1 in the second, means alike.
    first = np.array([[2.0, 1], [-2, 1], [2, -1], [-2, -1]])
    second = np.sign(first)
    features, labels = np.vstack([first, second]), np.repeat([0, 1], 4)
    coefficient = math.sqrt(2 * 2 * 1 / (4 + 1))
    assert gbc(features, labels, covariance="diagonal") == pytest.approx(-2 * coefficient)
    sphere = 2 * math.sqrt(2.5) * 1 / (2.5 + 1)  # to the power 1/2 per dimension, of which there are two
    assert gbc(features, labels, covariance="spherical") == pytest.approx(-2 * sphere)


def test_gbc_of_classes_that_cannot_be_told_apart_is_full_overlap():
    points = np.random.default_rng(4).normal(size=(8, 3))
    assert gbc(np.vstack([points] * 3), np.repeat([0, 1, 2], 8)) == pytest.approx(-6)
    assert gbc(np.full((6, 3), 0.1), np.arange(6) % 3) == pytest.approx(-6)


def test_gbc_of_classes_far_apart_is_zero():
    features, labels = overlapping(5)
    assert gbc(features + 1e4 * np.eye(3, 5)[labels], labels) == 0


def test_gbc_lends_a_lonely_image_the_spread_of_the_others():
    base = np.array([-1.0, 1, -1, 1])
    features = np.append(base, 2.0)[:, None]
    overlap = gbc(features, np.array([0, 0, 0, 0, 1]))
    borrowed = 4 / 5  # mean squared distance of all five images from their class means
    average = (1 + borrowed) / 2
    expected = math.exp(-4 / (8 * average)) * (borrowed / average**2) ** 0.25
    assert overlap == pytest.approx(-2 * expected)


def test_gbc_beyond_the_leading_components_sees_nothing():
    rng = np.random.default_rng(6)
    labels = np.arange(40) % 2
    features = np.column_stack([100 * rng.normal(size=40), 10.0 * labels])
    blind, seeing = (gbc(features, labels, components=kept, covariance="diagonal") for kept in (1, 2))
    assert blind < -1.9
    assert seeing > -0.1


def test_gbc_options_that_have_no_meaning_are_errors():
    with pytest.raises(OptionError, match="Unknown covariance 'spheric'. Closest known: spherical."):
        gbc(*overlapping(7), covariance="spheric")
    with pytest.raises(OptionError, match="components must be >= 1, got 0."):
        gbc(*overlapping(7), components=0)


@pytest.mark.parametrize("classes", [2, 4])
def test_parc_equals_scipys_rank_correlation_of_the_full_tables(classes):
    features, labels = overlapping(8, images=24, width=6, classes=classes)
    pairs = np.tril_indices(24, k=-1)
    images, targets = 1 - np.corrcoef(features), 1 - np.corrcoef(np.eye(classes)[labels])
    expected = spearmanr(images[pairs], targets[pairs].round(9)).statistic
    assert parc(features, labels) == pytest.approx(expected)


def test_parc_ignores_the_unit_of_each_image():
    features, labels = overlapping(9)
    scale = np.exp(np.random.default_rng(9).normal(size=(60, 1)))
    assert parc(features * scale, labels) == pytest.approx(parc(features, labels))


def test_parc_of_images_that_are_flat_is_zero():
    assert parc(np.full((6, 4), 0.1), np.arange(6) % 2) == 0


def test_parc_of_many_images_is_near_that_of_all_and_repeats():
    features, labels = overlapping(10, images=400)
    sampled = parc(features, labels, max_images=200, seed=3)
    assert sampled == parc(features, labels, max_images=200, seed=3)
    assert sampled != parc(features, labels, max_images=200, seed=4)
    assert sampled == pytest.approx(parc(features, labels), abs=0.05)


def test_parc_needs_a_pair():
    with pytest.raises(OptionError, match="max_images must be >= 2, got 1."):
        parc(*overlapping(11), max_images=1)
