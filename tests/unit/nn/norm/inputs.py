"""Batches and trained layers to try normalisation on; double precision, so that equal means equal."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Axes of the values -> torch's layer for them."""


def values_of(*shape: int, seed: int = 0) -> torch.Tensor:
    """Channels that differ in mean and scale."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.5, 2.0, shape[1], dtype=torch.float64).view(1, -1, *(1,) * (len(shape) - 2))
    return values * scale + 3 * scale - 4


def trained(channels: int, *, axes: int = 4, eps: float = 1e-5, momentum: float | None = 0.1) -> nn.Module:
    """A layer whose affine map and statistics are those of no fresh one."""
    generator = torch.Generator().manual_seed(0)
    layer = LAYERS[axes](channels, eps=eps, momentum=momentum).double()
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * torch.randn(channels, generator=generator))
        layer.bias.copy_(torch.randn(channels, generator=generator))
        layer.running_mean.copy_(torch.randn(channels, generator=generator))
        layer.running_var.copy_(0.5 + torch.rand(channels, generator=generator))
        layer.num_batches_tracked.fill_(7)
    return layer


def shapes(*, least: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """(N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W) with `least` images at least."""
    images, channels = st.integers(least, 5), st.sampled_from([2, 4, 6])
    positions = st.lists(st.integers(1, 4), min_size=0, max_size=3)
    return st.builds(lambda n, c, rest: (n, c, *rest), images, channels, positions)


def along_channels(vector: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(C,) ready to be used beside (N, C, ...)."""
    return vector.view(1, -1, *(1,) * (values.ndim - 2))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors have the same names and bits."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def check_alike(one: nn.Module, other: nn.Module, shape: tuple[int, ...], *, batches: int = 1) -> None:
    """That two layers in training give the same outputs, gradients and running statistics."""
    inputs = [values_of(*shape).requires_grad_() for _ in range(2)]
    for _ in range(batches):
        outputs = [layer(values) for layer, values in zip((one, other), inputs, strict=True)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.running_mean, other.running_mean)
    torch.testing.assert_close(one.running_var, other.running_var)
    assert one.num_batches_tracked == other.num_batches_tracked
