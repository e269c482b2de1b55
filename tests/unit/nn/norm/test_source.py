"""What is read of a layer, whoever made it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from transferkit.core.errors import OptionError
from transferkit.nn.norm import is_batch_norm, nearest_divisor, read_source


@pytest.mark.parametrize(
    ("layer", "is_one"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm3d(3, affine=False), True),
        (nn.SyncBatchNorm(3), True),
        (BatchNormAct2d(3), True),
        (FrozenBatchNorm2d(3), True),
        (FrozenBatchNormAct2d(3), True),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), False),
        (nn.GroupNorm(1, 3), False),
        (GroupNormAct(4, num_groups=2), False),
        (nn.LayerNorm(3), False),
        (nn.Conv2d(3, 3, 1), False),
        (nn.Sequential(nn.BatchNorm2d(3)), False),
    ],
    ids=lambda given: type(given).__name__,
)
def test_batch_normalisation_is_known_by_what_it_holds(layer, is_one):
    assert is_batch_norm(layer) is is_one


@pytest.mark.parametrize("layer", [FrozenBatchNorm2d(3, eps=0.25), FrozenBatchNormAct2d(3, eps=0.25)])
def test_a_frozen_layer_tells_the_same_things(layer):
    source = read_source(layer)
    assert (source.channels, source.eps, source.momentum, source.count) == (3, 0.25, 0.1, None)
    assert source.mean is layer.running_mean
    assert source.weight is layer.weight
    assert not source.weight.requires_grad


@given(st.integers(1, 300), st.integers(1, 400))
def test_no_divisor_is_nearer(channels, groups):
    found = nearest_divisor(channels, groups)
    assert channels % found == 0
    nearer = [number for number in range(1, channels + 1) if abs(number - groups) < abs(found - groups)]
    assert all(channels % number for number in nearer)


def test_of_two_divisors_as_near_the_smaller_is_taken():
    assert nearest_divisor(8, 3) == 2
    with pytest.raises(OptionError, match="Groups must be >= 1, got 0"):
        nearest_divisor(8, 0)


class WithExtras(nn.BatchNorm2d):
    """A subclass that does more than is known of."""

    def __init__(self) -> None:
        super().__init__(3)
        self.gate = nn.Sigmoid()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(1, 3), "GroupNorm is not batch normalisation. Pass a layer such as"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d is lazy and has no channels yet. Run one batch"),
        (WithExtras(), "WithExtras has a child 'gate' that a replacement would lose; supported are: drop, act."),
    ],
)
def test_a_layer_that_cannot_be_read_is_refused(layer, message):
    with pytest.raises(OptionError, match=message):
        read_source(layer)


def test_a_lazy_layer_is_as_any_other_once_it_has_seen_a_batch():
    layer = nn.LazyBatchNorm2d()
    layer(torch.randn(2, 5, 3, 3))
    assert read_source(layer).channels == 5
