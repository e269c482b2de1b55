"""What follows each layer of a network, and the gain that keeps the scale of its signal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from torch import nn

from tests.unit.nn.init_toys import WIDE, Applied, Functional, deep, noise
from transferkit.nn import following
from transferkit.nn.activation_statistics import activation_statistics
from transferkit.nn.init import initialise


def find_nonlinearities(net: nn.Module, batch) -> dict[str, str]:
    return {layer: found.name for layer, found in following.find_nonlinearities(net, batch).items()}


def test_functions_are_seen_as_modules_are():
    found = find_nonlinearities(Functional(), noise(2, 3, 8, 8))
    assert found == {"first": "relu", "second": "silu", "third": "tanh", "last": "linear"}


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.ReLU6(), "relu6"), (nn.LeakyReLU(), "leaky_relu"), (nn.GELU(), "gelu"), (nn.Hardswish(), "hardswish"),
     (nn.Sigmoid(), "sigmoid"), (nn.ELU(), "elu"), (nn.PReLU(), "prelu"), (nn.SiLU(inplace=True), "silu"),
     (nn.ReLU(inplace=True), "relu"), (nn.Dropout(), "linear")],
)  # fmt: skip
def test_every_nonlinearity_is_named(module, name):
    net = nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 2))
    assert find_nonlinearities(net, noise(3, 4)) == {"0": name, "2": "linear"}


def test_the_network_is_as_it_was():
    net = Functional().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    find_nonlinearities(net, noise(2, 3, 8, 8))
    assert net.training
    assert not net.first._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_several_inputs_are_a_tuple():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(a + b))

    assert find_nonlinearities(Two(), (noise(3, 4), noise(3, 4))) == {"layer": "relu"}
    assert activation_statistics(Two(), (noise(30, 4), noise(30, 4))).layers[0].layer == "layer"


def test_concatenation_is_looked_through_and_inference_mode_hides_nothing():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.relu(torch.cat([self.a(x), x], dim=1)))

    net, rows = Joined(), noise(5, 4)
    assert find_nonlinearities(net, rows) == {"a": "relu", "b": "linear"}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with torch.inference_mode():
        assert find_nonlinearities(net, noise(2, 3, 6, 6)) == {"0": "relu"}


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def second_moment(function, scale: float) -> float:
    """E f(scale z)^2 by adaptive quadrature, an independent route."""

    def integrand(z: float) -> float:
        value = float(function(torch.tensor([scale * z], dtype=torch.float64)))
        return value**2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    return quad(integrand, -12, 0, limit=200)[0] + quad(integrand, 0, 12, limit=200)[0]


UNBOUNDED = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.9), "prelu": nn.PReLU(init=0.5).double(), "selu": nn.SELU(),
    "elu": nn.ELU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "mish": nn.Mish(), "hardswish": nn.Hardswish(),
    "softplus": nn.Softplus(), "quick_gelu": Applied(quick_gelu),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(UNBOUNDED))
def test_the_gain_keeps_the_second_moment(name):
    function = UNBOUNDED[name]
    net = nn.Sequential(nn.Linear(4, 4).double(), function, nn.Linear(4, 2).double())
    found = following.find_nonlinearities(net, noise(3, 4).double())["0"]
    assert found.name == name
    with torch.no_grad():
        assert second_moment(function, found.gain) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("function", "name"), [(torch.tanh, "tanh"), (torch.sigmoid, "sigmoid"), (torch.sin, "sin")])
def test_a_bounded_function_keeps_the_scale_of_its_input(function, name):
    found = following.find_nonlinearities(nn.Sequential(nn.Linear(4, 4), Applied(function)), noise(3, 4))["0"]
    assert found.name == name
    assert not found.keeps
    assert found.gain == pytest.approx(second_moment(function, 1.0) ** -0.5, rel=1e-5)


def test_gains_with_a_closed_form():
    def gain(module: nn.Module) -> float:
        return following.find_nonlinearities(nn.Sequential(nn.Linear(4, 4), module), noise(3, 4))["0"].gain

    assert gain(nn.SELU()) == pytest.approx(1, abs=1e-4)  # Klambauer et al.: the fixed point
    for slope in (0.01, 0.25, 0.9):
        assert gain(nn.LeakyReLU(slope)) == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-5)
    channels = nn.PReLU(4)
    with torch.no_grad():
        channels.weight.copy_(torch.tensor([0.0, 0.5, -1.0, 2.0]))
    assert gain(channels) == pytest.approx(math.sqrt(2 / (1 + 5.25 / 4)), rel=1e-5)
    assert gain(Applied(lambda x: 3 * F.relu(x))) == pytest.approx(math.sqrt(2) / 3, rel=1e-5)


@pytest.mark.parametrize("name", sorted(UNBOUNDED))
def test_a_deep_network_keeps_its_second_moment(name):
    net = deep(10, UNBOUNDED[name]).double()
    rows = noise(100, WIDE).double()
    initialise(net, "he_normal", batch=rows, seed=3)  # of seed 0 are the rows
    assert float((net(rows).detach() ** 2).mean()) == pytest.approx(1, abs=0.35)


COMPOSED = {
    "quick_gelu": quick_gelu,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "hardswish": lambda x: x * F.relu6(x + 3) / 6,
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "silu": lambda x: x.mul_(x.sigmoid()),
    "squared_relu": lambda x: F.relu(x).square(),
    "linear": lambda x: 2 * x + 1,
}


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_functions_that_are_put_together_are_known_by_their_values(name):
    net = nn.Sequential(nn.Linear(4, 4), Applied(COMPOSED[name]), nn.Linear(4, 2))
    assert find_nonlinearities(net, noise(3, 4)) == {"0": name, "2": "linear"}


def test_all_layers_that_enter_a_residual_sum_are_followed():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.shortcut, self.gate = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.main(x)) * self.gate(x).mean((2, 3), keepdim=True).sigmoid() + self.shortcut(x)
            return self.last(F.silu(x))

    found = find_nonlinearities(Block(), noise(2, 4, 6, 6))
    assert found == {"main": "silu", "gate": "sigmoid", "shortcut": "silu", "last": "linear"}


def test_halves_of_an_output_are_not_the_same_values():
    def gated(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1)
        return left * torch.sigmoid(1.702 * right)

    net = nn.Sequential(nn.Linear(4, 8), Applied(gated))
    assert find_nonlinearities(net, noise(3, 4)) == {"0": "sigmoid"}
