"""One image at a time: against torch's functions, and against one another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from torch import nn
from torch.nn import functional as F

from tests.unit.nn.norm.inputs import along_channels, shapes, trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import ChannelLayerNorm, GroupNorm, InstanceNorm, LayerNorm

EVERY = [GroupNorm, LayerNorm, ChannelLayerNorm, InstanceNorm]


def affine(values: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return values * along_channels(layer.weight, values) + along_channels(layer.bias, values)


@settings(max_examples=40, deadline=None)
@given(shapes(least=1))
def test_one_group_is_a_normalisation_of_the_whole_image(shape):
    layer, values = trained(shape[1], axes=len(shape)), values_of(*shape)
    expected = affine(F.layer_norm(values, shape[1:]), layer)
    torch.testing.assert_close(GroupNorm(layer, groups=1)(values), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(LayerNorm(layer)(values), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes(least=1))
def test_a_group_per_channel_is_a_normalisation_of_each_channel(shape):
    assume(torch.Size(shape[2:]).numel() > 1)
    assume(len(shape) > 2)
    layer, values = trained(shape[1], axes=len(shape)), values_of(*shape)
    expected = affine(F.instance_norm(values), layer)
    torch.testing.assert_close(GroupNorm(layer, groups=shape[1])(values), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(InstanceNorm(layer)(values), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes(least=1))
def test_a_normalisation_over_channels_brings_every_position_to_mean_zero_and_variance_one(shape):
    layer, values = trained(shape[1], axes=len(shape), eps=0.0), values_of(*shape)
    made = (ChannelLayerNorm(layer)(values) - along_channels(layer.bias, values)) / along_channels(layer.weight, values)
    torch.testing.assert_close(made.mean(1), torch.zeros_like(made.mean(1)), atol=1e-9, rtol=0)
    torch.testing.assert_close(made.square().mean(1), torch.ones_like(made.mean(1)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("make", EVERY)
def test_no_image_knows_of_the_others_and_training_is_evaluation(make):
    layer, values = make(trained(4)), values_of(5, 4, 3, 3)
    whole = layer.train()(values)
    torch.testing.assert_close(whole[2:3], layer(values[2:3]), rtol=1e-12, atol=1e-12)
    assert torch.equal(whole, layer.eval()(values))
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("make", EVERY)
def test_an_image_scaled_as_a_whole_comes_out_the_same(make):
    layer, values = make(trained(4, eps=0.0)), values_of(5, 4, 3, 3)
    torch.testing.assert_close(layer(7 * values), layer(values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", EVERY)
def test_a_layer_without_an_affine_map_makes_one_without(make):
    layer, values = nn.BatchNorm2d(4, affine=False).double(), values_of(2, 4, 3, 3)
    assert list(make(layer).parameters()) == []
    assert make(layer)(values).shape == values.shape


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda layer: GroupNorm(layer, groups=4), (3, 4)),
        (lambda layer: GroupNorm(layer, groups=4), (3, 4, 1, 1)),
        (InstanceNorm, (3, 4)),
        (InstanceNorm, (3, 4, 1, 1)),
    ],
)
def test_values_that_are_alone_are_refused(make, shape):
    with pytest.raises(DataError, match="needs at least 2 values to normalise together, got 1: shape"):
        make(trained(4, axes=len(shape)))(values_of(*shape))


def test_single_channels_are_refused_where_only_channels_count():
    with pytest.raises(DataError, match="ChannelLayerNorm needs at least 2 values to normalise together, got 1"):
        ChannelLayerNorm(trained(1))(values_of(3, 1, 2, 2))


@pytest.mark.parametrize("make", EVERY)
def test_other_channels_are_an_error(make):
    with pytest.raises(DataError, match=r"expects values \(N, 4, ...\), got shape \(2, 3, 5, 5\)"):
        make(trained(4))(values_of(2, 3, 5, 5))


def test_groups_are_brought_to_a_number_that_divides():
    assert GroupNorm(trained(12), groups=5).num_groups == 4
    with pytest.raises(OptionError, match="Groups must be >= 1, got 0"):
        GroupNorm(trained(12), groups=0)
