"""Initialisation by what follows a layer, and by data; what a forward pass shows of both."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.activation_statistics import activation_statistics
from transferkit.nn.following import find_nonlinearities
from transferkit.nn.init import INITS, initialise, initialise_by_data

WIDE = 600


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Nonlinearities called as functions, one in place, a residual sum, and a layer that is used out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.norm(self.first(x)))
        x = F.silu(self.second(x) + x)
        x = torch.tanh(F.max_pool2d(self.third(x), 2))
        return self.last(x.mean(dim=(2, 3)))


def deep(layers: int, nonlinearity: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDE, WIDE), nonlinearity)))


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


@pytest.mark.parametrize("init", sorted(INITS))
def test_every_initialisation_has_its_scale(init):
    net = nn.Sequential(nn.Linear(WIDE, 400), nn.ReLU(), nn.Linear(400, 300))
    done = initialise(net, init, seed=3)
    expected = {
        "he_normal": math.sqrt(2 / WIDE),
        "he_uniform": math.sqrt(2 / WIDE),
        "xavier_normal": math.sqrt(2 / (WIDE + 400)),
        "xavier_uniform": math.sqrt(2 / (WIDE + 400)),
        "sparse": math.sqrt(2 / WIDE),
        "orthogonal": math.sqrt(2 / WIDE),
        "auto": math.sqrt(2 / WIDE),
    }[init]
    assert done[0].deviation == pytest.approx(expected, rel=0.05)
    assert done[0].deviation == pytest.approx(float(net[0].weight.detach().std(correction=0)))
    assert net[0].bias.abs().sum() == 0


def test_auto_is_xavier_before_a_tanh_and_he_before_a_rectifier():
    net = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, 9))
    first, second, last = initialise(net, batch=noise(2, WIDE))
    assert first.deviation == pytest.approx(math.sqrt(1 / WIDE), rel=0.02)
    assert second.deviation == pytest.approx(math.sqrt(2 / WIDE), rel=0.02)
    assert last.deviation == pytest.approx(math.sqrt(2 / (WIDE + 9)), rel=0.05)


def test_he_is_that_of_torch():
    ours, theirs = nn.Conv2d(64, 128, 3), torch.empty(128, 64, 3, 3)
    nn.init.kaiming_normal_(theirs, nonlinearity="relu")
    (done,) = initialise(nn.Sequential(ours, nn.ReLU()), "he_normal", batch=noise(1, 64, 3, 3))
    assert done.deviation == pytest.approx(float(theirs.std()), rel=0.02)


def test_a_depthwise_layer_counts_the_inputs_that_it_has():
    net = nn.Sequential(nn.Conv2d(256, 256, 5, groups=256), nn.ReLU())
    (he,) = initialise(net, "he_normal", batch=noise(1, 256, 5, 5))
    assert he.deviation == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    (xavier,) = initialise(net, "xavier_normal")
    assert xavier.deviation == pytest.approx(math.sqrt(2 / 50), rel=0.05)


def test_sparse_units_have_few_inputs():
    net = nn.Sequential(nn.Linear(100, 40), nn.Linear(6, 4))
    initialise(net, "sparse")
    assert ((net[0].weight != 0).sum(dim=1) == 15).all()
    assert ((net[1].weight != 0).sum(dim=1) == 6).all()


def test_the_same_seed_gives_the_same_weights():
    nets = [nn.Linear(20, 5) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        initialise(net, seed=seed)
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert not torch.equal(nets[0].weight, nets[2].weight)


def test_biases_follow_their_rule():
    net = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
    before = net[0].bias.detach().clone()
    initialise(net, bias="keep")
    assert torch.equal(net[0].bias, before)
    initialise(net, bias="positive")
    assert (net[0].bias == 0.01).all()
    assert (net[2].bias == 0).all()


def test_the_prior_makes_the_first_loss_that_of_guessing_by_it():
    net = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    initialise(net, prior=[6, 3, 1])
    shares = net(torch.zeros(1, 9)).softmax(dim=1)
    assert torch.allclose(shares, torch.tensor([[0.6, 0.3, 0.1]]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init": "he"}, "Unknown initialisation 'he'"),
        ({"bias": "zeros"}, "Unknown rule for biases 'zeros'. Closest known: zero"),
        ({"prior": [0.5, 0.5]}, "each of the 3 biases of the last layer"),
        ({"prior": [0.5, 0.5, 0.0]}, "a share > 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        initialise(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), **wrong)


def test_a_network_without_layers_is_refused():
    with pytest.raises(OptionError, match="no linear or convolutional layer"):
        initialise(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(("nonlinearity", "init"), [(nn.ReLU(), "he_normal"), (nn.Tanh(), "xavier_normal")])
def test_the_fitting_initialisation_is_just_right(nonlinearity, init):
    net = deep(8, nonlinearity)
    initialise(net, init)
    report = activation_statistics(net, noise(100, WIDE))
    assert report.verdict == "just right", report.sentence
    assert "8 layers" in report.sentence


def test_he_keeps_the_scale_of_relu_layers_where_xavier_halves_it():
    net, deviations = deep(10, nn.ReLU()), {}
    for init in ("he_normal", "xavier_normal"):
        initialise(net, init)
        layers = activation_statistics(net, noise(200, WIDE)).layers
        deviations[init] = layers[-1].deviation / layers[0].deviation
    assert deviations["he_normal"] == pytest.approx(1, abs=0.4)
    assert deviations["xavier_normal"] == pytest.approx(2 ** (-9 / 2), rel=0.4)


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


@pytest.mark.parametrize("nonlinearity", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU()])
def test_by_data_every_layer_comes_out_with_variance_one(nonlinearity):
    net, rows = deep(5, nonlinearity), 3 * noise(200, WIDE) + 2
    done = initialise_by_data(net, rows)
    assert [one.init for one in done] == ["lsuv"] * 5
    for layer in activation_statistics(net, rows).layers:
        assert layer.deviation == pytest.approx(1, abs=0.03)


def test_by_data_takes_layers_in_the_order_of_their_calls():
    net, images = Functional(), noise(16, 3, 8, 8)
    initialise_by_data(net, images)
    outputs = {}
    for name in ("first", "second", "third", "last"):
        net.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: outputs.update({name: float(output.detach().std())})
        )
    net.eval()(images)
    assert all(deviation == pytest.approx(1, abs=0.05) for deviation in outputs.values())


def test_constant_inputs_leave_a_layer_orthogonal():
    net = nn.Sequential(nn.Linear(6, 4))
    initialise_by_data(net, torch.zeros(10, 6))
    assert torch.isfinite(net[0].weight).all()


def test_several_inputs_are_a_tuple():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(a + b))

    assert find_nonlinearities(Two(), (noise(3, 4), noise(3, 4))) == {"layer": "relu"}
    assert activation_statistics(Two(), (noise(30, 4), noise(30, 4))).layers[0].layer == "layer"


def test_a_layer_that_is_called_several_times_is_scaled_by_its_first_call():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(20, 20), nn.Linear(20, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.relu(self.inner(x))
            return self.outer(x)

    net, rows = Recurrent(), noise(256, 20)
    done = initialise_by_data(net, rows)
    assert [one.init for one in done] == ["lsuv", "lsuv"]
    assert float(net.inner(rows).detach().std()) == pytest.approx(1, abs=0.03)


def test_shared_weights_are_initialised_once():
    first, second = nn.Linear(30, 30), nn.Linear(30, 30)
    second.weight = first.weight
    done = initialise(nn.Sequential(first, nn.ReLU(), second))
    assert [one.layer for one in done] == ["0"]


def test_weights_that_are_computed_from_others_are_refused():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2))
    with pytest.raises(OptionError, match="computed from others"):
        initialise(net)


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


@pytest.mark.parametrize("init", sorted(INITS))
def test_any_memory_layout_and_precision(init):
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU()).to(memory_format=torch.channels_last).to(torch.bfloat16)
    (done,) = initialise(net, init)
    assert done.deviation > 0
    grouped = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False))
    initialise(grouped, "orthogonal")
    assert float(grouped(noise(8, 96, 16, 16)).detach().std()) == pytest.approx(0.97, abs=0.1)


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
