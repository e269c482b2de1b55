"""The scale of the signal in every layer, saturated values and dead units."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.unit.nn.init_toys import WIDE, Applied, deep, noise
from transferkit.nn.activation_statistics import activation_statistics
from transferkit.nn.init import initialise


@pytest.mark.parametrize(
    ("factor", "verdict", "evidence"),
    [(0.01, "too small", "standard deviation"), (40.0, "too big", "tanh saturated"), (math.nan, "not finite", "NaN")],
)
def test_wrong_scales_are_named_with_a_remedy(factor, verdict, evidence):
    net = deep(3, nn.Tanh())
    initialise(net)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(factor)
    report = activation_statistics(net, noise(100, WIDE))
    assert report.verdict == verdict
    assert evidence in report.sentence
    assert "'0'" in report.sentence


def test_dead_units_are_counted():
    net = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 36, 2))
    initialise(net)
    with torch.no_grad():
        net[0].bias[:4] = -1000
    first = activation_statistics(net, noise(20, 3, 8, 8)).layers[0]
    assert first.dead == pytest.approx(0.4)
    with torch.no_grad():
        net[0].bias[:7] = -1000
    assert "70 % of units dead" in activation_statistics(net, noise(20, 3, 8, 8)).sentence


def test_saturated_relu6_is_too_big():
    net = nn.Sequential(nn.Linear(10, 50), nn.ReLU6(), nn.Linear(50, 2))
    initialise(net)
    with torch.no_grad():
        net[0].bias.fill_(50)
    assert activation_statistics(net, noise(40, 10)).verdict == "too big"


def test_normalisation_counts_before_the_nonlinearity():
    net = nn.Sequential(nn.Linear(10, 50), nn.LayerNorm(50), nn.ReLU(), nn.Linear(50, 2))
    with torch.no_grad():
        net[0].weight.mul_(1e4)
    first = activation_statistics(net, noise(40, 10)).layers[0]
    assert first.deviation == pytest.approx(1, abs=0.05)
    assert first.nonlinearity == "relu"


def test_fresh_batch_normalisation_normalises():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    )
    with torch.no_grad():
        net[0].weight.mul_(0.001)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    report = activation_statistics(net, noise(16, 3, 12, 12))
    assert report.verdict == "just right", report.sentence
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape", "view"),
    [
        (nn.Linear(6, 10), (8, 6), (slice(None), slice(0, 3))),
        (nn.Linear(6, 10), (8, 5, 6), (slice(None), slice(None), slice(0, 3))),
        (nn.Linear(6, 10), (8, 5, 4, 6), (..., slice(0, 3))),
        (nn.Conv1d(6, 10, 1), (8, 6, 7), (slice(None), slice(0, 3))),
        (nn.Conv2d(6, 10, 1), (8, 6, 10, 10), (slice(None), slice(0, 3))),
    ],
)
def test_dead_units_lie_on_the_axis_of_the_layer(layer, shape, view):
    net = nn.Sequential(layer, nn.ReLU())
    initialise(net)
    with torch.no_grad():
        layer.bias[:3] = -1000
    assert activation_statistics(net, noise(*shape)).layers[0].dead == pytest.approx(0.3)
    assert (net(noise(*shape))[view] == 0).all()


def test_units_are_found_behind_a_permutation():
    net = nn.Sequential(nn.Conv2d(3, 10, 1), Applied(lambda x: x.permute(0, 2, 3, 1)), nn.ReLU())
    initialise(net)
    with torch.no_grad():
        net[0].bias[:4] = -1000
    assert activation_statistics(net, noise(8, 3, 5, 6)).layers[0].dead == pytest.approx(0.4)
