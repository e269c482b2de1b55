"""Two-sample tests: answers known by construction, and the rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from transferkit.shift.two_sample import energy_tests, principal_coordinates_of


def sides(first, second):
    return np.arange(first + second) >= first


def test_the_effect_is_the_energy_distance_of_the_definition():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(20, 3)), rng.normal(size=(15, 3)) + 1
    (found,) = energy_tests({"a": np.concatenate([one, other])}, sides(20, 15), rounds=9)
    across = cdist(one, other).mean()
    within = cdist(one, one).sum() / (20 * 19) + cdist(other, other).sum() / (15 * 14)
    assert found.effect == pytest.approx((2 * across - within) / (2 * across), rel=1e-4)


def test_equal_sets_raise_no_more_alarms_than_promised():
    rng = np.random.default_rng(1)
    alarms = 0
    for draw in range(200):
        points = rng.normal(size=(40, 4))
        several = {"a": points[:, :2], "b": points[:, 1:], "c": points}
        alarms += min(one.adjusted for one in energy_tests(several, sides(25, 15), rounds=99, seed=draw)) <= 0.05
    assert alarms <= 18  # of 200 at 5 %: more has a chance below 1 %


def test_only_the_shifted_representation_is_named():
    rng = np.random.default_rng(2)
    shifted = sides(40, 40)
    found = energy_tests({"early": rng.normal(size=(80, 3)) + 2 * shifted[:, None], "late": rng.normal(size=(80, 3))},
                         shifted)  # fmt: skip
    assert [one.adjusted <= 0.05 for one in found] == [True, False]
    assert found[0].effect > 0.2 > found[1].effect


def test_adjusted_values_are_never_below_those_of_one_test_alone():
    rng = np.random.default_rng(3)
    points = {str(at): rng.normal(size=(30, 2)) for at in range(5)}
    for one in energy_tests(points, sides(15, 15), rounds=199):
        assert one.adjusted >= one.p_value


def test_constant_features_are_no_difference():
    (found,) = energy_tests({"flat": principal_coordinates_of(np.ones((20, 5)))}, sides(10, 10), rounds=19)
    assert (found.effect, found.p_value) == (0.0, 1.0)


def test_coordinates_keep_the_distances_of_standardised_features():
    features = np.random.default_rng(4).normal(size=(12, 4)) * [1, 10, 100, 1000]
    points = principal_coordinates_of(features)
    standardised = (features - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(cdist(points, points), cdist(standardised, standardised), atol=1e-4)
