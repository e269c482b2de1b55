"""Clamping activations that keep their output: the same to the bit as torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from transferkit.nn.clamps import clamp_sparingly


def gradient(clamp: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = values.clone().requires_grad_()
    output = clamp(values * 1)
    return output.detach(), torch.autograd.grad((output * output.detach().cos()).sum(), values)[0]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 2.0)])
def test_outputs_and_gradients_are_the_same_to_the_bit_at_and_beyond_the_bounds(inplace, bounds):
    clamp = nn.ReLU6(inplace) if bounds == (0.0, 6.0) else nn.Hardtanh(*bounds, inplace)
    edges = [bound + step for bound in bounds for step in (-1e-6, 0.0, 1e-6, -1.0, 1.0)]
    values = torch.tensor([*edges, torch.inf, -torch.inf, 0.5, 1.0, -0.0])
    expected = gradient(copy.deepcopy(clamp), values)
    handles = clamp_sparingly(clamp)
    assert all(map(torch.equal, gradient(clamp, values), expected))
    assert torch.isnan(gradient(clamp, torch.tensor([torch.nan]))[0]).all()
    for handle in handles:
        handle.remove()
    assert not vars(clamp).get("forward")


def test_only_the_output_is_kept():
    kept = []
    layers = nn.Sequential(nn.ReLU6(inplace=True))
    clamp_sparingly(layers)
    values = torch.randn(3, requires_grad=True) * 10
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = layers(values)
    assert [tensor.data_ptr() for tensor in kept] == [output.data_ptr()]


def test_functional_transforms_and_passes_without_gradients_work_as_before():
    layers = nn.Sequential(nn.ReLU6())
    clamp_sparingly(layers)
    values = torch.tensor([-1.0, 3.0, 9.0])
    assert layers(values).tolist() == [0, 3, 6]
    assert torch.func.grad(lambda x: layers(x).sum())(values).tolist() == [0, 1, 0]
    assert torch.func.vmap(layers)(values).tolist() == [0, 3, 6]


def test_other_activations_are_left_alone():
    assert clamp_sparingly(nn.Sequential(nn.ReLU(), nn.SiLU())) == []
