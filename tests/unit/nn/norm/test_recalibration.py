"""Statistics measured anew: against torch's update_bn and the moments themselves; what is frozen stays bit for bit."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from tests.unit.nn.toy_networks import copy_of, same, stir, two_norms
from transferkit.core.errors import DataError
from transferkit.nn.norm import (
    AccumulatedBatchNorm,
    AlphaBatchNorm,
    BatchNorm,
    BatchRenorm,
    DecorrelatedBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    follows_batches,
    recalibrate_statistics,
)
from transferkit.nn.norm.renorm import AT_ONCE


class StopError(Exception):
    """Something goes wrong between two batches."""


def batches(count: int = 3, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 8, 8, generator=generator) * (1 + i) + i for i in range(count)]


def test_statistics_are_those_of_torchs_update_bn_where_all_layers_learn():
    ours, torchs_own = two_norms(), two_norms()
    assert recalibrate_statistics(ours, batches()) == 2
    update_bn(batches(), torchs_own)
    for number in (1, 5):
        torch.testing.assert_close(ours[number].running_mean, torchs_own[number].running_mean)
        torch.testing.assert_close(ours[number].running_var, torchs_own[number].running_var)


def test_a_batch_counts_by_its_number_of_images():
    network = two_norms()
    images = torch.cat(batches())
    recalibrate_statistics(network, torch.split(images, 7))  # 7, 7 and 4
    with torch.no_grad():
        inside = network[0](images)
    torch.testing.assert_close(network[1].running_mean, inside.mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("how", ["mode", "hook"])
def test_frozen_layers_stay_bit_for_bit(how):
    network = two_norms(dropout=0.5)
    stir(network, 0)
    if how == "mode":
        network[1].eval()
    else:  # what a freeze plan hangs on a frozen layer, here after someone called `train()`
        network[1].register_forward_pre_hook(lambda module, _: setattr(module, "training", False))
    before = copy_of(network)
    assert recalibrate_statistics(network, batches()) == 1
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"5.running_mean", "5.running_var", "5.num_batches_tracked"}


def test_dropout_is_off_and_no_random_number_is_drawn():
    with_dropout, without = two_norms(dropout=0.5), two_norms()
    state = torch.get_rng_state()
    recalibrate_statistics(with_dropout, batches())
    assert torch.equal(state, torch.get_rng_state())
    recalibrate_statistics(without, batches())
    assert same(copy_of(with_dropout), copy_of(without))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_momenta_are_as_before(fails):
    network = two_norms(dropout=0.5)
    network[1].eval()
    network[5].momentum = 0.3
    modes = [module.training for module in network.modules()]

    def bad():
        yield batches()[0]
        raise StopError

    with contextlib.suppress(StopError):
        recalibrate_statistics(network, bad() if fails else batches())
    assert [module.training for module in network.modules()] == modes
    assert (network[1].momentum, network[5].momentum) == (0.1, 0.3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_where_nothing_learns_no_batch_is_asked_for():
    def never():
        raise AssertionError
        yield

    assert recalibrate_statistics(two_norms().eval(), never()) == 0
    assert recalibrate_statistics(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), never()) == 0


def test_no_batches_is_an_error_that_leaves_the_statistics():
    network = two_norms()
    stir(network, 0)
    before = copy_of(network)
    with pytest.raises(DataError, match="2 layers need images"):
        recalibrate_statistics(network, [])
    assert same(before, copy_of(network))


def test_layers_named_are_estimated_whatever_their_mode_and_no_others():
    network = two_norms().eval()
    before = copy_of(network)
    assert recalibrate_statistics(network, batches(), layers=[network[5]]) == 1
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"5.running_mean", "5.running_var", "5.num_batches_tracked"}
    assert not network[5].training


@pytest.mark.parametrize(
    "make",
    [BatchNorm, BatchRenorm, GhostBatchNorm, AccumulatedBatchNorm, DecorrelatedBatchNorm],
    ids=lambda m: m.__name__,
)
def test_every_layer_of_ours_that_follows_batches_can_be_estimated(make):
    network = two_norms()
    network[1] = make(network[1])
    images = torch.cat(batches())
    assert follows_batches(network[1])
    assert recalibrate_statistics(network, torch.split(images, 7)) == 2
    with torch.no_grad():
        inside = network[0](images)
    torch.testing.assert_close(network[1].running_mean, inside.mean(dim=(0, 2, 3)))


def test_what_corrects_batches_is_estimated_as_plain_batch_normalisation_is():
    plain = two_norms()
    corrected = copy.deepcopy(plain)
    for place in (1, 5):
        corrected[place] = BatchRenorm(corrected[place])
        corrected[place].running_mean.fill_(3)  # far off: by these a later layer would see other values
    for network in (plain, corrected):
        recalibrate_statistics(network, batches())
    for place in (1, 5):
        torch.testing.assert_close(corrected[place].running_mean, plain[place].running_mean)
        torch.testing.assert_close(corrected[place].running_var, plain[place].running_var)
        assert (int(corrected[place].corrected), corrected[place].clipping) == (0, AT_ONCE)


def test_ghosts_are_estimated_on_whole_batches():
    plain = nn.BatchNorm2d(3)
    ghosts = GhostBatchNorm(plain, size=2)
    images = torch.randn(16, 3, 4, 4) + 3 * torch.randn(16, 1, 1, 1)  # they differ more than a part of them does
    for layer in (plain, ghosts):
        recalibrate_statistics(nn.Sequential(layer), [images])
    torch.testing.assert_close(ghosts.running_var, plain.running_var)
    assert ghosts.size == 2


def test_batches_that_are_added_up_are_so_again_afterwards():
    layer = AccumulatedBatchNorm(nn.BatchNorm2d(3), batches=4)
    recalibrate_statistics(nn.Sequential(layer), batches())
    assert (layer.batches, int(layer.pooled_batches)) == (4, 0)


@pytest.mark.parametrize("make", [FrozenBatchNorm, AlphaBatchNorm], ids=lambda make: make.__name__)
def test_statistics_that_never_follow_are_left_alone_in_any_mode(make):
    network = nn.Sequential(make(nn.BatchNorm2d(3))).train()
    before = copy_of(network)
    assert not follows_batches(network[0])
    assert recalibrate_statistics(network, batches()) == 0
    assert same(before, copy_of(network))
