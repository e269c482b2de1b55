"""Class proportions of unlabelled images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.shift.proportions import estimate_proportions, match_proportions, proportion_weights


def drawn(labels, *, noise, seed=0):
    """Calibrated probabilities of a two-class problem whose classes have means -1 and 1."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=len(labels)) * noise + np.where(labels == 1, 1.0, -1.0)
    odds = np.exp(2 * value / noise**2)
    return np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_estimate_is_near_the_truth_though_predictions_are_not(share):
    labels = (np.arange(2000) < 2000 * share).astype(int)
    given_ = drawn(labels, noise=1.5)
    found = estimate_proportions(given_, np.array([0.5, 0.5]))[1]
    assert found == pytest.approx(share, abs=0.04)
    if share != 0.5:
        assert abs((given_.argmax(1) == 1).mean() - share) > abs(found - share)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 100))
def test_proportions_are_a_distribution(images, classes, seed):
    rng = np.random.default_rng(seed)
    given_ = rng.dirichlet(np.ones(classes), size=images)
    found = estimate_proportions(given_, np.full(classes, 1 / classes))
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0


def test_weights_turn_one_into_the_other():
    training, wanted = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    weights = proportion_weights(wanted, training)
    np.testing.assert_allclose(weights * training, wanted)


def test_matching_takes_a_subset_in_the_wanted_proportions():
    labels = np.repeat([0, 1], 100)
    rows = match_proportions(labels, np.array([0.9, 0.1]))
    assert len(np.unique(rows)) == len(rows)
    assert (labels[rows] == 0).mean() == pytest.approx(0.9, abs=0.11)


def test_matching_never_leaves_too_few():
    labels = np.repeat([0, 1, 2], [4, 60, 60])
    rows = match_proportions(labels, np.array([0.98, 0.01, 0.01]))
    assert len(rows) >= 12


def test_matching_equal_proportions_takes_all():
    labels = np.tile([0, 1], 50)
    assert len(match_proportions(labels, np.array([0.5, 0.5]))) == 100
