"""Remedies do what their formulas say, and nothing to the model they are made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.shift.alterations import ALTERATIONS
from transferkit.shift.guard import proportions_gain
from transferkit.shift.measuring import remedies_of
from transferkit.shift.remedies import REMEDIES
from transferkit.shift.remedies.class_proportions import log_ratios
from transferkit.shift.remedies.entropy import minimise_entropy
from transferkit.shift.remedies.feature_alignment import aligning_map, fold_map
from transferkit.shift.remedies.importance_weights import density_ratios
from transferkit.shift.remedies.norm_statistics import blend_statistics


class Toy(nn.Module):
    """One batch norm between input and head."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.eval()

    def normalise(self, pixels):
        return pixels.float() / 255

    def forward(self, images):
        return self.head(self.norm(images).mean(dim=(2, 3)))


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(count, 3, 6, 6)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 16, 200])
def test_statistics_are_those_of_the_mixture(count):
    model, given = Toy(), pictures(count)
    made = blend_statistics(model, given, prior=16)
    share = count / (count + 16)
    values = torch.from_numpy(given).float().div(255).transpose(0, 1).flatten(1).double()
    mean = share * values.mean(1)
    second = share * (values**2).mean(1) + (1 - share) * 1.0
    torch.testing.assert_close(made.norm.running_mean.double(), mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.norm.running_var.double(), second - mean**2, atol=1e-5, rtol=1e-4)
    assert model.norm.running_mean.tolist() == [0, 0, 0]
    assert not made.training


def test_one_picture_moves_statistics_by_a_seventeenth():
    moved = blend_statistics(Toy(), pictures(1)).norm.running_mean
    every = torch.from_numpy(pictures(1)).float().div(255).mean(dim=(0, 2, 3))
    torch.testing.assert_close(moved, every / 17)


def test_entropy_falls_and_only_the_norm_moves():
    model = Toy()
    before, given = copy.deepcopy(model.state_dict()), pictures(64)
    made = minimise_entropy(copy.deepcopy(model), given, steps=30)
    moved = [name for name, value in made.state_dict().items() if not torch.equal(value, before[name])]
    assert set(moved) == {"norm.weight", "norm.bias"}
    assert not any(parameter.grad is not None and parameter.requires_grad is False for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_a_folded_map_is_the_map_and_brings_moments_together():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    new = rng.normal(size=(2000, 6)) @ rng.normal(size=(6, 6)) + 3
    found = aligning_map(old, new)
    weight, bias = rng.normal(size=(2, 6)), rng.normal(size=2)
    plain = new * found.scale + found.shift
    mapped = plain + (plain - found.mean) @ found.into @ (found.core - np.eye(len(found.core))).T @ found.back.T
    head, offset = fold_map(weight, bias, found)
    np.testing.assert_allclose(new @ head.T + offset, mapped @ weight.T + bias, atol=1e-8)
    before, after = (np.abs(np.cov(one.T) - np.cov(old.T)).mean() for one in (plain, mapped))
    assert after < 0.5 * before
    np.testing.assert_allclose(mapped.mean(0), old.mean(0), atol=0.3)


def test_density_ratios_are_higher_where_new_images_are():
    rng = np.random.default_rng(1)
    old, new = rng.normal(size=(200, 3)), rng.normal(size=(100, 3)) + np.array([2, 0, 0])
    weights = density_ratios(old, new)
    assert weights.mean() == pytest.approx(1)
    assert np.corrcoef(weights, old[:, 0])[0, 1] > 0.5


def test_correcting_proportions_gains_where_they_moved_and_nothing_where_they_did_not():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 600)
    value = rng.normal(size=600) * 1.5 + np.where(labels == 1, 1.0, -1.0)
    odds = np.exp(2 * value / 1.5**2)
    given = np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)
    moved, error = proportions_gain(given, labels, np.array([0.95, 0.05]), images=200)
    same, _ = proportions_gain(given, labels, np.array([0.5, 0.5]), images=200)
    assert moved > 0.05
    assert moved > error
    assert abs(same) < 0.02


def test_log_ratios_are_bounded():
    assert np.abs(log_ratios(np.array([1.0, 0.0]), np.array([0.5, 0.5]))).max() <= 3.0


@pytest.mark.parametrize("name", ALTERATIONS)
def test_alterations_keep_shape_and_type_and_are_the_same_again(name):
    given = np.random.default_rng(0).integers(0, 256, size=(3, 3, 64, 64)).astype(np.uint8)
    before = given.copy()
    made = ALTERATIONS[name](given)
    assert (made.shape, made.dtype) == (given.shape, np.uint8)
    np.testing.assert_array_equal(made, ALTERATIONS[name](given))
    np.testing.assert_array_equal(given, before)
    assert (made != given).any()


def test_remedies_by_name():
    assert remedies_of("auto") == tuple(REMEDIES)
    assert "norm_statistics" in REMEDIES
    with pytest.raises(OptionError, match="Unknown remedy 'norm_statistic'. Closest known: norm_statistics"):
        remedies_of("norm_statistic")
