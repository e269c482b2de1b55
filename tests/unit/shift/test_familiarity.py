"""Distances to training images: the promised rate of false rejection, and groups."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.shift.familiarity import fit_familiarity


def test_images_like_those_of_training_are_rejected_as_often_as_promised():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(20):
        points = rng.standard_t(4, size=(300, 6))
        shares.append((fit_familiarity(points[:200]).p_values(points[200:]) <= 0.1).mean())
    assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


def test_far_images_get_the_least_p_value_and_training_images_a_large_one():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(99, 4))
    fitted = fit_familiarity(points)
    assert fitted.p_values(np.full((1, 4), 50.0))[0] == pytest.approx(1 / 100)
    assert fitted.p_values(points).min() > 0.01


def test_images_of_one_group_do_not_vouch_for_each_other():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(20, 5))
    points = np.repeat(centres, 5, axis=0) + 1e-3 * rng.normal(size=(100, 5))
    new = rng.normal(size=(200, 5))
    alone = (fit_familiarity(points).p_values(new) <= 0.05).mean()
    grouped = (fit_familiarity(points, np.repeat(np.arange(20), 5)).p_values(new) <= 0.05).mean()
    assert alone > 0.9
    assert grouped < 0.3


def test_constant_features_are_all_familiar():
    assert fit_familiarity(np.ones((10, 3))).p_values(np.ones((2, 3))).tolist() == [1.0, 1.0]
