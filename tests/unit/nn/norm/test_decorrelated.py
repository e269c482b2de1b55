"""Whitened channels: their covariance, the derivative against finite differences, evaluation before any training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.norm.inputs import trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import DecorrelatedBatchNorm
from transferkit.nn.norm.decorrelated import inverse_root


def plain(channels: int, *, eps: float = 1e-12) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=eps, affine=False).double()


def mixed(images: int, channels: int, *, seed: int = 0) -> torch.Tensor:
    """Channels that share what varies in them."""
    values = values_of(images, channels, 4, 4, seed=seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.einsum("ncyx,cd->ndyx", values, mixing)


def covariance_of(values: torch.Tensor) -> torch.Tensor:
    return torch.atleast_2d(torch.cov(values.movedim(1, 0).flatten(1), correction=0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 1), (6, 2), (6, 3), (12, 1), (6, 6)]))
def test_channels_of_a_group_come_out_uncorrelated_with_variance_one(seed, channels_and_groups):
    channels, groups = channels_and_groups
    layer = DecorrelatedBatchNorm(plain(channels), groups=groups)
    made = layer(mixed(8, channels, seed=seed))
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(channels, dtype=torch.float64), atol=1e-8, rtol=0)
    for group in made.split(channels // groups, dim=1):
        identity = torch.eye(channels // groups, dtype=torch.float64)
        torch.testing.assert_close(covariance_of(group), identity, atol=1e-5, rtol=0)


def test_groups_of_one_channel_are_batch_normalisation():
    layer, values = trained(4), values_of(3, 4, 2, 2)
    ours = DecorrelatedBatchNorm(layer, groups=4)
    torch.testing.assert_close(ours(values), layer(values), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.running_var, layer.running_var)


def test_of_all_whitenings_it_turns_the_channels_least():
    values = mixed(8, 4)
    made = DecorrelatedBatchNorm(plain(4), groups=1)(values)
    centred = values - values.mean((0, 2, 3), keepdim=True)
    cross = (centred.movedim(1, 0).flatten(1) @ made.movedim(1, 0).flatten(1).T) / (8 * 16)
    torch.testing.assert_close(cross, cross.T, atol=1e-8, rtol=1e-8)  # the symmetric root, and no other, does this
    assert torch.linalg.eigvalsh(cross).min() > 0


def test_until_it_trains_evaluation_gives_what_the_layer_gave():
    layer, values = trained(6).eval(), values_of(3, 6, 2, 2)
    torch.testing.assert_close(DecorrelatedBatchNorm(layer, groups=2)(values), layer(values))


def test_after_training_on_one_batch_alone_evaluation_whitens_it():
    layer, values = DecorrelatedBatchNorm(plain(4), groups=1), mixed(8, 4)
    layer.momentum = 1.0
    in_training = layer.train()(values)
    torch.testing.assert_close(layer.eval()(values), in_training)
    layer.momentum = 0.5
    layer.train()(mixed(8, 4, seed=1))
    other = inverse_root(covariance_of(mixed(8, 4, seed=1)))
    expected = 0.5 * inverse_root(covariance_of(values)) + 0.5 * other
    torch.testing.assert_close(layer.running_whitening[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eigenvalues", [[4.0, 1.0, 0.5], [2.0, 2.0, 2.0], [3.0, 3.0 + 1e-9, 1.0]])
def test_the_derivative_is_right_also_where_eigenvalues_are_equal(eigenvalues):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    matrix = (turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T).requires_grad_()
    root = inverse_root(matrix)
    torch.testing.assert_close(root @ matrix @ root, torch.eye(3, dtype=torch.float64))
    # Only symmetric matrices have such a root: those are what the differences are taken of.
    assert torch.autograd.gradcheck(lambda m: inverse_root((m + m.T) / 2), (matrix,))


def test_gradients_of_the_layer_are_right():
    values = mixed(2, 3)[:, :, :2, :2].contiguous().requires_grad_()
    layer = DecorrelatedBatchNorm(plain(3, eps=0.1), groups=1)
    layer.track_running_stats = False  # else it would not be a function of the values alone
    assert torch.autograd.gradcheck(layer, (values,))


def test_channels_that_never_vary_stay_finite():
    values = torch.ones(4, 3, 2, 2, requires_grad=True)
    made = DecorrelatedBatchNorm(nn.BatchNorm2d(3))(values)
    made.sum().backward()
    assert made.isfinite().all()
    assert values.grad.isfinite().all()


def test_half_precision_is_whitened_in_full():
    layer = DecorrelatedBatchNorm(nn.BatchNorm2d(4, affine=False), groups=1)
    values = mixed(8, 4).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = layer(values)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(covariance_of(made.double()), torch.eye(4, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("channels", "groups", "expected"), [(64, None, 4), (24, None, 2), (7, None, 1), (17, None, 17), (12, 5, 4)]
)
def test_how_many_groups(channels, groups, expected):
    layer = DecorrelatedBatchNorm(plain(channels), groups=groups)
    assert layer.running_whitening.shape == (expected, channels // expected, channels // expected)


def test_what_it_cannot_work_on_is_refused():
    with pytest.raises(OptionError, match="Groups must be >= 1, got 0"):
        DecorrelatedBatchNorm(plain(4), groups=0)
    with pytest.raises(OptionError, match="no running statistics, which whitening needs"):
        DecorrelatedBatchNorm(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(DataError, match="needs at least 2 values per channel"):
        DecorrelatedBatchNorm(plain(4))(torch.zeros(1, 4, 1, 1, dtype=torch.float64))
