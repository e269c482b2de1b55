"""Batch normalisation with something fixed: against torch's own layers, and against the affine map written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.norm.inputs import along_channels, same_state, shapes, trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import AffineFrozenBatchNorm, BatchNorm, FrozenBatchNorm, SyncBatchNorm, folded_affine


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from([BatchNorm, AffineFrozenBatchNorm, SyncBatchNorm]), st.sampled_from([0.1, 0.7, None]))
def test_in_training_it_is_torchs_own_layer_statistics_and_gradients_too(shape, make, momentum):
    torchs_own = trained(shape[1], axes=len(shape), momentum=momentum)
    ours = make(torchs_own)
    inputs = [values_of(*shape).requires_grad_() for _ in range(2)]
    for seed in range(3):
        outputs = [layer(x + seed) for layer, x in zip((torchs_own, ours), inputs, strict=True)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert same_state(torchs_own, ours)


@settings(max_examples=40, deadline=None)
@given(shapes(least=1))
def test_in_evaluation_it_is_its_folded_affine_map(shape):
    layer, values = trained(shape[1], axes=len(shape)).eval(), values_of(*shape)
    scale, shift = folded_affine(layer)
    expected = values * along_channels(scale, values) + along_channels(shift, values)
    for one in (layer, BatchNorm(layer), FrozenBatchNorm(layer).train()):
        torch.testing.assert_close(one(values), expected, rtol=1e-12, atol=1e-12)


def test_the_folded_map_of_known_numbers():
    layer = nn.BatchNorm1d(1, eps=0.0)
    with torch.no_grad():
        for name, value in {"weight": 6, "bias": 1, "running_mean": 5, "running_var": 4}.items():
            getattr(layer, name).fill_(value)
    scale, shift = folded_affine(layer)
    assert (scale.item(), shift.item()) == (3, -14)  # (x - 5) / 2 * 6 + 1


@settings(max_examples=40, deadline=None)
@given(shapes(least=1))
def test_frozen_is_the_same_bits_in_training_and_evaluation_and_never_moves(shape):
    layer = trained(shape[1], axes=len(shape))
    frozen, values = FrozenBatchNorm(layer), values_of(*shape)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    in_training = frozen.train()(values)
    assert torch.equal(in_training, frozen.eval()(values))
    assert torch.equal(in_training, layer.eval()(values))
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_images_of_a_batch_do_not_meet_in_a_frozen_layer():
    frozen, values = FrozenBatchNorm(trained(3)).train(), values_of(4, 3, 2, 2)
    torch.testing.assert_close(frozen(values)[1:2], frozen(values[1:2]), rtol=0, atol=0)


def test_a_frozen_layers_affine_map_may_learn():
    frozen = FrozenBatchNorm(trained(3))
    frozen(values_of(2, 3, 2, 2)).sum().backward()
    torch.testing.assert_close(frozen.bias.grad, torch.full((3,), 8.0, dtype=torch.float64))


def test_a_frozen_affine_map_is_out_of_reach_of_optimizers():
    layer = AffineFrozenBatchNorm(trained(3))
    assert list(layer.parameters()) == []
    layer.requires_grad_(True)
    values = values_of(4, 3, 2, 2).requires_grad_()
    layer(values).square().sum().backward()
    assert values.grad.abs().sum() > 0
    assert not layer.weight.requires_grad


def test_momentum_is_the_weight_of_the_new_batch():
    layer = trained(3)
    old, values = layer.running_mean.clone(), values_of(4, 3, 2, 2)
    slow = BatchNorm(layer, momentum=0.01)
    slow(values)
    torch.testing.assert_close(slow.running_mean, 0.99 * old + 0.01 * values.mean(dim=(0, 2, 3)))
    every = BatchNorm(nn.BatchNorm2d(3).double(), momentum=None)
    for seed in range(3):
        every(values_of(4, 3, 2, 2, seed=seed))
    everything = torch.cat([values_of(4, 3, 2, 2, seed=seed) for seed in range(3)])
    torch.testing.assert_close(every.running_mean, everything.mean(dim=(0, 2, 3)))


def test_a_synchronised_layer_is_what_torch_would_convert_to():
    layer, values = trained(3), values_of(4, 3, 2, 2)
    ours = SyncBatchNorm(layer)
    torchs_own = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert torch.equal(ours(values), torchs_own(values))
    assert same_state(ours, torchs_own)


def test_a_copy_is_a_copy():
    layer = trained(3)
    made = BatchNorm(layer)
    made(values_of(4, 3, 2, 2))
    with torch.no_grad():
        made.weight.add_(1)
    assert same_state(layer, trained(3))


def test_a_layer_that_keeps_no_statistics_uses_the_batch_in_evaluation_too():
    layer = nn.BatchNorm2d(3, affine=False, track_running_stats=False).double().eval()
    values = values_of(4, 3, 2, 2)
    assert torch.equal(BatchNorm(layer)(values), layer(values))
    with pytest.raises(OptionError, match="BatchNorm2d has no running statistics, which frozen needs"):
        FrozenBatchNorm(layer)
    with pytest.raises(OptionError, match="has no running statistics. Pass a layer"):
        folded_affine(layer)


@pytest.mark.parametrize("make", [BatchNorm, AffineFrozenBatchNorm, SyncBatchNorm])
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_cannot_be_trained_on(make, shape):
    layer = make(trained(3))
    with pytest.raises(DataError, match=r"needs at least 2 values per channel, got 1: shape \(1, 3.* frozen, group"):
        layer.train()(torch.zeros(shape, dtype=torch.float64))
    layer.eval()(torch.zeros(shape, dtype=torch.float64))


def test_one_image_of_several_positions_will_do():
    layer = trained(3)
    values = values_of(1, 3, 2, 2)
    assert torch.equal(BatchNorm(layer)(values), layer(values))


@pytest.mark.parametrize("make", [BatchNorm, FrozenBatchNorm])
def test_other_channels_are_an_error(make):
    with pytest.raises(DataError, match=r"expects values \(N, 3, ...\), got shape \(2, 4, 5, 5\)"):
        make(trained(3))(torch.zeros(2, 4, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0, -0.1, 1.5, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(OptionError, match=r"must be in \(0, 1\], or None, got"):
        BatchNorm(nn.BatchNorm2d(3), momentum=momentum)
