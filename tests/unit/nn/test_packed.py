"""Layers whose outputs are taken apart, and what follows the parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.nn.init_toys import Applied, Packed, noise
from transferkit.nn.packed import find_parts


class Taken(nn.Module):
    """A layer of 12 units, whose outputs a function takes apart."""

    def __init__(self, function, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(4, 12)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


def interleaved(x: torch.Tensor) -> torch.Tensor:
    even, odd = x.reshape(len(x), 6, 2).unbind(2)
    return torch.tanh(even) + odd


TAKEN = {
    "chunks": (lambda x: F.relu(x.chunk(2, dim=1)[0]) * x.chunk(2, dim=1)[1], [(0, 6, "relu"), (6, 12, "linear")]),
    "slices": (lambda x: torch.tanh(x[:, :4]).sum() + x[:, 4:].sum(), [(0, 4, "tanh"), (4, 12, "linear")]),
    "normalised first": (
        lambda x: F.silu(F.layer_norm(x, (12,)).split(6, dim=1)[0]) + F.layer_norm(x, (12,)).split(6, dim=1)[1],
        [(0, 6, "silu"), (6, 12, "linear")],
    ),
    "glu": (F.glu, [(0, 6, "gated"), (6, 12, "linear")]),
}


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_parts_are_found_with_what_follows_them(name):
    function, expected = TAKEN[name]
    parts = find_parts(Taken(function), noise(3, 4))["layer"]
    found = [(int(part.units[0]), int(part.units[-1]) + 1, part.nonlinearity.name) for part in parts]
    assert found == expected


def test_units_of_a_part_need_not_be_neighbours():
    parts = find_parts(Taken(interleaved), noise(3, 4))["layer"]
    assert [part.units.tolist() for part in parts] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert [part.nonlinearity.name for part in parts] == ["tanh", "linear"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:1],  # an image
        lambda x: x[:, :5],  # some units, the others unused
        lambda x: x[:, :8].sum() + x[:, 4:].sum(),  # overlapping
        lambda x: F.relu(x).chunk(2, dim=1),
        lambda x: F.relu_(x).chunk(2, dim=1),
        lambda x: x.reshape(len(x), 3, 4).mean(dim=1),
    ],
)
def test_layers_that_are_not_divided_have_no_parts(function):
    assert find_parts(Taken(function), noise(3, 4)) == {}


def test_convolutions_have_parts_as_well():
    net = Taken(lambda x: torch.sigmoid(x.chunk(2, dim=1)[1]) * x.chunk(2, dim=1)[0], nn.Conv2d(3, 12, 3))
    images = noise(2, 3, 7, 6)
    assert [len(part.units) for part in find_parts(net, images)["layer"]] == [6, 6]
    assert find_parts(net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    grouped = Taken(net.function, nn.Conv2d(4, 12, 3, groups=2))
    assert find_parts(grouped, noise(2, 4, 7, 6)) == {}


def test_nothing_is_changed_and_one_pass_is_enough():
    net = nn.Sequential(Packed(24, heads=3), Applied(torch.relu)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parts = find_parts(net, noise(1, 5, 24))
    assert list(parts) == ["0.qkv"]
    assert [len(part.units) for part in parts["0.qkv"]] == [24] * 3
    assert net.training
    assert not any(one._forward_hooks for one in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
