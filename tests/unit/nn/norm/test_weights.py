"""Normalised weights: what stays true of them whatever is learnt."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.norm import StandardisedWeight, normalise_weights, plain_weights, standardise_weights

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(96, 2))


def train(network: nn.Module, *, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        network(IMAGES).square().mean().backward()
        optimizer.step()


def test_weight_norm_changes_nothing_at_first_and_keeps_the_length_apart():
    network = make_network()
    expected = network(IMAGES)
    assert normalise_weights(network) is network
    torch.testing.assert_close(network(IMAGES), expected)
    train(network)
    for layer in (network[0], network[2]):
        length, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), length.flatten())
        torch.testing.assert_close(
            nn.functional.cosine_similarity(layer.weight.flatten(1), direction.flatten(1)), torch.ones(6)
        )


def test_standardised_filters_have_mean_zero_and_deviation_one_whatever_they_learn():
    network = standardise_weights(make_network())
    before = network[0].weight.detach().clone()
    train(network)
    assert not torch.equal(before, network[0].weight)
    for layer in (network[0], network[2]):
        rows = layer.weight.flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(6), atol=1e-6, rtol=0)
        torch.testing.assert_close(rows.std(1, correction=0), torch.ones(6), atol=1e-3, rtol=0)


def test_standardised_filters_do_not_feel_a_shift_or_a_scale():
    weight = torch.randn(4, 3, 3, 3)
    standardised = StandardisedWeight(eps=1e-12)
    torch.testing.assert_close(standardised(3 * weight + 2), standardised(weight), atol=1e-5, rtol=1e-5)


def test_filters_of_a_single_weight_are_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 3, 3))
    before = network[0].weight.detach().clone()
    assert torch.equal(standardise_weights(network)[0].weight, before)


@pytest.mark.parametrize("normalise", [normalise_weights, standardise_weights])
def test_plain_weights_compute_the_same_under_the_old_names(normalise):
    network = normalise(make_network())
    train(network)
    expected = network(IMAGES)
    plain = plain_weights(network)
    torch.testing.assert_close(plain(IMAGES), expected)
    assert set(plain.state_dict()) == set(make_network().state_dict())
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("normalise", [normalise_weights, standardise_weights])
def test_a_copy_learns_for_itself(normalise):
    network = normalise(make_network())
    expected = network(IMAGES)
    other = copy.deepcopy(network)
    train(other)
    torch.testing.assert_close(network(IMAGES), expected)
    fresh = normalise(make_network())
    fresh.load_state_dict(other.state_dict())
    torch.testing.assert_close(fresh(IMAGES), other(IMAGES))


@pytest.mark.parametrize("normalise", [normalise_weights, standardise_weights])
def test_what_cannot_be_normalised_is_refused(normalise):
    with pytest.raises(OptionError, match="Linear has no convolution to normalise"):
        normalise(nn.Linear(2, 2))
    network = normalise(make_network())
    with pytest.raises(OptionError, match="The weight of '0' is parametrized already. Remove that with plain_weights"):
        normalise(network)


def test_filters_of_equal_values_come_out_as_zero_and_learn_nothing_odd():
    weight = torch.randn(4, 3, 3, 3)
    weight[1] = 0.0
    weight.requires_grad_()
    made = StandardisedWeight()(weight)
    made.square().sum().backward()
    assert made[1].abs().max() == 0
    assert weight.grad.isfinite().all()


def test_filters_of_zeros_have_the_length_zero():
    network = make_network()
    nn.init.zeros_(network[0].weight[2])
    expected = network(IMAGES)
    normalise_weights(network)
    torch.testing.assert_close(network(IMAGES), expected)
    train(network)
    assert network(IMAGES).isfinite().all()
