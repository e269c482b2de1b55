"""A backbone simplified for inference gives what the backbone gives, and runs fewer layers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.unit.nn.toy_networks import Pyramid, SharedRelu, copy_of, same, spec_of, stir
from transferkit.core.errors import BackboneError
from transferkit.nn import Backbone
from transferkit.nn.inference import for_inference

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class SamePadding(nn.Conv2d):
    """TensorFlow's SAME padding, as timm has it: as much as is missing, the odd one after the values."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        missing = []
        for size, stride, dilation, kernel in zip(
            values.shape[-2:], self.stride, self.dilation, self.kernel_size, strict=True
        ):
            outputs = -(-size // stride)
            missing.append(max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size))
        high, wide = missing
        values = functional.pad(values, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return functional.conv2d(values, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Its weights are not those that it convolves with."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(values, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


class NormAct(nn.BatchNorm2d):
    """A norm with dropout and activation inside, under timm's names."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(values)))


def chain(*layers: nn.Module) -> nn.Sequential:
    """The layers, and a head that makes it a backbone of several stages."""
    return nn.Sequential(*layers, nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def backbone_of(network: nn.Module, *, size: int = 32, seed: int = 0) -> Backbone:
    stir(network, seed)
    return Backbone(network, spec_of(size))


def outputs(backbone: Backbone, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad(), backbone.recording_moments() as moments:
        stages = backbone.pooled_stages(images, pooling="avg+max")
    return {**stages, **{f"moments of {stage}": rows for stage, rows in moments.items()}}


def assert_same_outputs(backbone: Backbone, changed: Backbone, images: torch.Tensor) -> None:
    expected, found = outputs(backbone, images), outputs(changed, images)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows, **CLOSE)


def kinds(backbone: Backbone) -> list[str]:
    return [type(module).__name__ for module in backbone.trunk.modules() if not list(module.children())]


@pytest.mark.parametrize("channels_last", [False, True])
def test_norms_go_into_the_convolutions_before_them(channels_last: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    backbone = backbone_of(network)
    images = torch.randn(5, 3, 32, 32)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = copy_of(backbone)
    changed = for_inference(backbone, images[:1])
    # Those whose input is read as a stage's moments stay: the last one of each stage.
    assert {tap.path for tap in backbone.moment_taps} == {"4", "7"}
    assert kinds(changed).count("BatchNorm2d") == 2
    assert_same_outputs(backbone, changed, images)
    assert same(before, copy_of(backbone))
    assert not any(module._forward_pre_hooks for module in backbone.trunk.modules())


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 8]),
    size=st.integers(24, 40),
    bias=st.booleans(),
)
def test_padding_that_is_computed_at_every_call_becomes_static(
    kernel: int, stride: int, dilation: int, groups: int, size: int, bias: bool
) -> None:
    layer = SamePadding(8, 8, kernel, stride, dilation=dilation, groups=groups, bias=bias)
    backbone = backbone_of(chain(nn.Conv2d(3, 8, 1), layer, nn.BatchNorm2d(8), nn.ReLU()), size=size)
    changed = for_inference(backbone, torch.randn(1, 3, size, size))
    assert_same_outputs(backbone, changed, torch.randn(3, 3, size, size))
    odd_and_dilated = dilation == 2 and "SamePadding" in kinds(changed)
    assert "SamePadding" not in kinds(changed) or odd_and_dilated


def test_what_a_norm_does_afterwards_stays() -> None:
    backbone = backbone_of(chain(nn.Conv2d(3, 8, 3, 1, 1), NormAct(8), nn.Conv2d(8, 8, 3, 1, 1), NormAct(8)))
    images = torch.randn(3, 3, 32, 32)
    changed = for_inference(backbone, images)
    assert kinds(changed).count("Dropout") == kinds(backbone).count("Dropout")
    assert_same_outputs(backbone, changed, images)


def test_convolutions_of_other_weights_than_they_show_stay() -> None:
    backbone = backbone_of(chain(Standardised(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
    images = torch.randn(3, 3, 32, 32)
    changed = for_inference(backbone, images)
    assert "Standardised" in kinds(changed)
    assert_same_outputs(backbone, changed, images)


def test_weights_behind_a_parametrisation_are_taken_as_they_are() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
    backbone = Backbone(chain(layer, nn.BatchNorm2d(8), nn.ReLU()), spec_of())
    images = torch.randn(3, 3, 32, 32)
    assert_same_outputs(backbone, for_inference(backbone, images), images)


class Twice(nn.Module):
    """One convolution and one norm run twice; another convolution is read by two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.stem(images)
        values = self.one(values) + torch.relu(self.other(values))
        values = self.norm(self.conv(torch.relu(self.norm(self.conv(values)))))
        return self.last(values).mean((2, 3))


@pytest.mark.parametrize("network", [Twice, SharedRelu])
def test_layers_with_two_uses_stay(network: type[nn.Module]) -> None:
    backbone = backbone_of(network())
    assert for_inference(backbone, torch.randn(1, 3, 32, 32)) is backbone


def test_a_network_without_anything_to_fold_is_not_copied() -> None:
    backbone = backbone_of(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten()))
    assert for_inference(backbone, torch.randn(1, 3, 32, 32)) is backbone


def test_the_copy_outlives_changes_of_the_backbone() -> None:
    backbone = backbone_of(chain(nn.Conv2d(3, 8, 3, 1, 1), NormAct(8), nn.Conv2d(8, 8, 3, 1, 1), NormAct(8)))
    images = torch.randn(2, 3, 32, 32)
    changed = for_inference(backbone, images)
    before = outputs(changed, images)
    kept = copy.deepcopy(backbone)
    stir(backbone.trunk, 5)
    assert_same_outputs(kept, changed, images)
    assert all(torch.equal(rows, before[name]) for name, rows in outputs(changed, images).items())


def test_modes_are_left_as_they_were() -> None:
    backbone = backbone_of(chain(nn.Conv2d(3, 8, 3, 1, 1), NormAct(8), nn.Conv2d(8, 8, 3, 1, 1), NormAct(8)))
    backbone.train()
    changed = for_inference(backbone, torch.randn(1, 3, 32, 32))
    assert backbone.trunk.training
    assert not changed.training
    assert not any(module.training for module in changed.trunk.modules())


def test_images_that_the_network_cannot_take_are_an_error_and_leave_no_hooks() -> None:
    backbone = backbone_of(Pyramid())
    with pytest.raises(BackboneError, match="cannot take images of shape"):
        for_inference(backbone, torch.randn(1, 5, 32, 32))
    assert not any(module._forward_pre_hooks for module in backbone.trunk.modules())
