"""Gradients of large depthwise kernels, computed as a convolution, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferkit.nn import depthwise
from transferkit.nn.depthwise import convolve


@pytest.fixture(autouse=True)
def on_any_machine(monkeypatch):
    monkeypatch.setattr(depthwise, "FAST_ON", (torch.backends.cpu.get_cpu_capability(),))


def compare(conv: nn.Conv2d, images: torch.Tensor) -> str:
    images = images.requires_grad_()
    plain, found = conv(images), convolve(conv, images)
    assert torch.equal(plain, found)
    weights = torch.randn_like(plain)
    wanted = [images, *conv.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, wanted, weights), torch.autograd.grad(plain, wanted, weights), strict=True
    ):
        assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(other)
    return type(found.grad_fn).__name__


@given(
    channels=st.integers(2, 5),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda sides: max(sides) > 3),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_gradients_are_the_same_for_any_options(channels, kernel, stride, padding, bias, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)
    assert compare(conv, torch.randn(2, channels, 11, 12)) == "_DepthwiseBackward"


@pytest.mark.parametrize(
    ("sides", "stride", "padding"),
    [((1, 1), 1, 2), ((2, 2), 2, 2), ((5, 5), 1, 0), ((2, 1), (2, 3), 2), ((6, 5), 2, 0)],
)
def test_outputs_of_a_single_value_have_the_same_gradients(sides, stride, padding):
    conv = nn.Conv2d(3, 3, 5, stride, padding, groups=3)
    images = torch.randn(4, 3, *sides)
    assert conv(images).shape == (4, 3, 1, 1)
    assert compare(conv, images) == "_DepthwiseBackward"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 5),
        nn.Conv2d(4, 8, 5, groups=4),
        nn.Conv2d(4, 4, 5, groups=4, dilation=2),
        nn.Conv2d(4, 4, 5, groups=4, padding="same"),
    ],
)
def test_other_convolutions_are_computed_as_before(conv):
    assert compare(conv, torch.randn(2, 4, 11, 12)) == "ConvolutionBackward0"


@pytest.mark.parametrize("at_once", [1, 300, 10**9])
def test_images_are_convolved_in_parts(monkeypatch, at_once):
    monkeypatch.setattr(depthwise, "AT_ONCE", at_once)
    assert compare(nn.Conv2d(4, 4, 5, groups=4, padding=2), torch.randn(7, 4, 6, 6)) == "_DepthwiseBackward"


def test_no_image_has_no_gradient():
    conv = nn.Conv2d(4, 4, 5, groups=4)
    convolve(conv, torch.randn(0, 4, 9, 9)).sum().backward()
    assert not conv.weight.grad.any()


class Inner(nn.Conv2d):
    """Depthwise itself, but what it computes is something else."""

    def forward(self, images):
        return torch.conv2d(images, self.weight, self.bias, 1, 4, 2, self.groups)


def test_a_convolution_that_computes_something_else_is_left_alone():
    assert compare(Inner(4, 4, 5, groups=4), torch.randn(2, 4, 9, 9)) == "ConvolutionBackward0"


def test_only_what_is_wanted_is_computed():
    conv = nn.Conv2d(4, 4, 5, groups=4).requires_grad_(False)
    images = torch.randn(2, 4, 9, 9)
    assert not convolve(conv, images).requires_grad
    convolve(conv, images.requires_grad_()).sum().backward()
    assert conv.weight.grad is None
    assert images.grad is not None


def test_it_stays_away_from_machines_where_it_was_not_measured(monkeypatch):
    monkeypatch.setattr(depthwise, "FAST_ON", ("other",))
    assert compare(nn.Conv2d(4, 4, 5, groups=4), torch.randn(2, 4, 9, 9)) == "ConvolutionBackward0"
