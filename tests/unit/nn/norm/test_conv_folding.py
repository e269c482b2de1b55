"""Convolutions that compute the normalisation of their outputs, against the two layers one after the other."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.conftest import PACKAGED
from tests.unit.nn.test_moments import trained
from tests.unit.nn.toy_networks import spec_of
from transferkit import load_backbone
from transferkit.finetune.freeze import FreezePlan
from transferkit.nn import Backbone
from transferkit.nn.norm import FrozenBatchNorm, is_batch_norm
from transferkit.nn.norm.conv_folding import find_foldable, fold_convolutions
from transferkit.strategies import Phase, Rule

ALL = Phase(name="all", rules=(Rule(stage="*", lr=1e-3),))


class NormAct(nn.BatchNorm2d):
    """As timm's: dropout and activation in the same module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU6(inplace=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(values)))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: four buffers, and no mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.5), ("bias", 0.5), ("running_mean", 0.25), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, 1e-5)


class SameConv(nn.Conv2d):
    """As TensorFlow's: pads by the size of what it gets, more on the far side."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total = [max((-(-n // 2) - 1) * 2 + k - n, 0) for n, k in zip(images.shape[2:], self.kernel_size, strict=True)]
        pads = [pad for all_of_it in reversed(total) for pad in (all_of_it // 2, all_of_it - all_of_it // 2)]
        return F.conv2d(F.pad(images, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    """Every kind of convolution and normalisation that is folded, behind one another, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = SameConv(3, 8, 3, 2, bias=False), NormAct(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode="reflect"), NormAct(8)
        self.down, self.down_norm = SameConv(8, 8, 5, 2, groups=8, bias=False), nn.BatchNorm2d(8, affine=False)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 3, padding=2, dilation=2), FrozenBatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.down_norm(self.down(self.deep_norm(self.deep(self.stem_norm(self.stem(images))))))
        return (values + self.wide_norm(self.wide(values)).relu()).mean((2, 3))


PAIRS = [(name, f"{name}_norm") for name in ("stem", "deep", "down", "wide")]


def pictures(count: int = 4, size: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2)).to(dtype)


def foldable(network: nn.Module) -> list[tuple[str, str]]:
    return list(find_foldable(network, lambda images: {"": network(images)}, size=32))


def gradients(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the images and of every parameter."""
    images = images.clone().requires_grad_()
    output = network(images)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    found = torch.autograd.grad((output * weights).sum(), [images, *network.parameters()])
    return [output.detach(), *found]


def assert_same(network: nn.Module, pairs: list[tuple[str, str]], images: torch.Tensor) -> None:
    """Outputs and gradients agree to 1e-5 of each tensor's norm."""
    expected = gradients(network, images)
    handles = fold_convolutions(network, pairs)
    assert len(handles) == 2 * len(pairs)
    found = gradients(network, images)
    for one, other in zip(found, expected, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(other) + 1e-12
    assert any(not torch.equal(one, other) for one, other in zip(found, expected, strict=True))  # it was folded
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, gradients(network, images), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_pair_is_found_and_has_the_same_gradients(dtype):
    torch.manual_seed(0)
    network = trained(Block()).eval().to(dtype)
    assert foldable(network) == PAIRS
    assert_same(network, PAIRS, pictures(dtype=dtype))


def test_the_packaged_network_has_the_same_gradients():
    backbone = load_backbone(PACKAGED, image_size=64)
    norms = [path for path, module in backbone.trunk.named_modules() if is_batch_norm(module)]
    assert [norm for _, norm in backbone.foldable] == norms
    assert_same(backbone.trunk.double(), list(backbone.foldable), pictures(2, 64, torch.float64))


@given(
    channels=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_convolution_has_the_same_gradients(
    channels, groups, kernel, stride, padding, dilation, mode, bias, affine, seed
):
    torch.manual_seed(seed)
    width = channels * groups
    conv = nn.Conv2d(width, 2 * width, kernel, stride, padding, dilation, groups, bias, mode)
    network = trained(nn.Sequential(conv, nn.BatchNorm2d(2 * width, affine=affine))).double().eval()
    assert_same(network, [("0", "1")], torch.randn(3, width, 17, 16, dtype=torch.float64))


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_of_signals_and_volumes_are_folded(axes):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes](2, 4, 3)
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[axes](4)
    network = trained(nn.Sequential(conv, norm)).double().eval()
    assert_same(network, [("0", "1")], torch.randn(5, 2, *(9,) * axes, dtype=torch.float64))


class ReadTwice(nn.Module):
    """The first convolution's output is used behind its normalisation as well; the second one's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.last_norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.conv(images)
        return self.last_norm(self.last(self.norm(values) + 0 * values))


class Standardised(nn.Conv2d):
    """Its weights have no scale."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(images, self.weight / self.weight.norm(), self.bias)


def test_an_output_that_is_read_elsewhere_is_not_folded():
    assert foldable(trained(ReadTwice())) == [("last", "last_norm")]


def test_a_convolution_that_does_something_else_with_its_weights_is_not_folded():
    assert foldable(trained(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))) == []


def test_a_layer_that_runs_twice_or_has_no_statistics_is_not_folded():
    norm = trained(nn.BatchNorm2d(3))
    assert foldable(nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.Conv2d(3, 3, 3), norm)) == []
    assert foldable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))) == []


def test_a_stage_that_is_read_between_both_is_not_folded():
    """A container that ends with the convolution returns its output, which is then a stage's."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.between = self.first(images)
            return self.norm(self.between)

    network = trained(Cut())
    assert find_foldable(network, lambda x: {"": network(x)}, size=32) == [("first.0", "norm")]
    assert find_foldable(network, lambda x: {"": network(x), "first": network.between}, size=32) == []


def test_statistics_are_updated_as_before_in_training_mode():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    plain = copy.deepcopy(network)
    fold_convolutions(network, [("0", "1")])
    for _ in range(2):
        assert torch.equal(network(pictures()), plain(pictures()))
    assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))


def test_a_frozen_kind_is_folded_in_training_mode_too():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    network[1] = FrozenBatchNorm(network[1])
    assert_same(network.double().train(), [("0", "1")], pictures(dtype=torch.float64))


def hidden(network: nn.Module) -> torch.Tensor:
    """What the normalisation is given."""
    seen = []
    handle = network[1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach()))
    network(pictures())
    handle.remove()
    return seen[0]


def test_hooks_read_what_they_did_before():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    expected, before = network[0](pictures()), gradients(network, pictures())
    fold_convolutions(network, [("0", "1")])
    assert torch.equal(hidden(network), expected)
    for module, register in ((network[0], "register_forward_hook"), (network[1], "register_forward_hook")):
        handle = getattr(module, register)(lambda *_: None)
        assert all(map(torch.equal, gradients(network, pictures()), before))
        handle.remove()
    assert not torch.equal(gradients(network, pictures())[0], before[0])


def test_a_convolution_with_more_weights_than_outputs_is_left_alone():
    network = trained(nn.Sequential(nn.Conv2d(64, 4, 1), nn.BatchNorm2d(4))).eval()
    few, many = torch.randn(1, 64, 7, 9), torch.randn(1, 64, 8, 8)
    plain = copy.deepcopy(network)
    fold_convolutions(network, [("0", "1")])
    assert torch.equal(network(few), plain(few))
    assert not torch.equal(network(many), plain(many))


def test_copies_are_folded_with_their_own_parameters():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    fold_convolutions(network, [("0", "1")])
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(map(torch.equal, gradients(copied, pictures()), gradients(network, pictures())))
        with torch.no_grad():
            copied[0].weight.zero_()
            copied[1].running_mean.zero_()
        assert not torch.equal(copied(pictures()), network(pictures()))
        assert len(gradients(copied, pictures())) == 6
    assert list(network.state_dict()) == list(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())


def test_half_precision_is_folded_in_single_precision():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    exact = network(pictures())
    fold_convolutions(network, [("0", "1")])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(pictures())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.05)
    assert network.bfloat16()(pictures(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_second_derivatives_are_the_same():
    network = trained(nn.Sequential(nn.Conv2d(1, 2, 5, groups=1), nn.BatchNorm2d(2))).double().eval()
    fold_convolutions(network, [("0", "1")])
    images = torch.randn(2, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda values: network(values) ** 2, images)


def kept_bytes(network: nn.Module, images: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(images)
    assert output.requires_grad
    return sum(storage.nbytes() for at, storage in kept.items() if at not in own)


def backbone_of(network: nn.Module) -> Backbone:
    return Backbone(trained(network), spec_of())


def test_a_freeze_plan_folds_while_it_is_on_and_keeps_names_and_moments():
    torch.manual_seed(0)
    network = nn.Sequential(backbone_of(Block()), nn.Linear(8, 2))
    images, names = pictures(8), list(network.state_dict())
    plan = FreezePlan(network, [ALL], norm="frozen")
    before, expected = kept_bytes(network.eval(), images), gradients(network, images)
    plan.start(0)
    plan.set_modes(training=True)
    during = gradients(network, images)
    assert list(network.state_dict()) == names
    assert kept_bytes(network, images) < 0.7 * before
    for one, other in zip(during, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with network[0].recording_moments() as moments:
        network(images)
    plan.release()
    assert all(map(torch.equal, gradients(network, images), expected))
    with network[0].recording_moments() as plain:
        network(images)
    for stage in plain:
        torch.testing.assert_close(moments[stage], plain[stage])
    assert len(plain) == len(moments) > 1


def test_phases_follow_one_another_without_leftovers():
    network = nn.Sequential(backbone_of(Block()), nn.Linear(8, 2))
    plan = FreezePlan(network, [ALL, ALL], norm="frozen")
    plan.start(0)
    plan.start(1)
    plan.release()
    assert not any("forward" in vars(module) for module in network.modules())


def test_a_layer_that_was_replaced_meanwhile_is_left_alone():
    network = trained(Block()).eval()
    pairs = foldable(network)
    network.stem_norm = nn.Identity()
    network.deep = nn.utils.parametrizations.weight_norm(network.deep)
    expected = gradients(network, pictures())
    handles = fold_convolutions(network, pairs)
    assert len(handles) == 4
    for one, other in zip(gradients(network, pictures()), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_modules_are_not_mixed_up_with_their_neighbours():
    assert all(one != other for one, other in pairwise(foldable(trained(Block()))))


def test_a_convolution_with_two_normalisations_stays():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.other = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.conv, self.norm = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = self.stem(images)
            return self.norm(self.conv(self.one(values) + self.other(values).relu()))

    assert foldable(trained(Shared())) == [("conv", "norm")]
