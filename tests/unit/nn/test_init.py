"""Initialisation by what follows a layer, and by data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.unit.nn.init_toys import WIDE, Applied, Functional, Packed, deep, noise
from transferkit.core.errors import OptionError
from transferkit.nn.activation_statistics import activation_statistics
from transferkit.nn.init import INITS, initialise, initialise_by_data


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
    assert first.deviation == pytest.approx(1.593 / math.sqrt(WIDE), rel=0.02)
    assert second.deviation == pytest.approx(1.468 / math.sqrt(WIDE), rel=0.02)
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


@pytest.mark.parametrize("init", sorted(INITS))
def test_any_memory_layout_and_precision(init):
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU()).to(memory_format=torch.channels_last).to(torch.bfloat16)
    (done,) = initialise(net, init)
    assert done.deviation > 0
    grouped = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False))
    initialise(grouped, "orthogonal")
    assert float(grouped(noise(8, 96, 16, 16)).detach().std()) == pytest.approx(0.97, abs=0.1)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_stale_running_statistics_do_not_outlive_their_weights(momentum):
    """The second layer's input is measured behind a normalisation whose statistics are of other weights."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)
    )
    images = 5 * noise(32, 3, 12, 12) + 1
    with torch.no_grad():
        net[0].weight.mul_(100)
    net(images)  # training mode: statistics of these weights
    stale = net[1].running_var.clone()
    done = initialise_by_data(net, images)
    assert [one.init for one in done] == ["lsuv", "lsuv"]
    assert net.training
    assert net[1].momentum == momentum
    assert float(stale.min()) > 100
    first = net[0](images).detach()
    torch.testing.assert_close(net[1].running_mean, first.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, first.transpose(0, 1).flatten(1).var(dim=1), rtol=1e-4, atol=1e-5)
    trained, evaluated = net(images), net.eval()(images)
    torch.testing.assert_close(trained, evaluated, rtol=0.05, atol=0.02)
    inner = net[3](net[2](net[1](net[0](images))))
    assert float(inner.detach().std()) == pytest.approx(1, abs=0.03)


def test_any_initialisation_resets_statistics_of_other_weights():
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    net(100 * noise(40, 6))
    initialise(net)
    assert (net[1].running_var == 1).all()
    assert (net[1].running_mean == 0).all()
    assert int(net[1].num_batches_tracked) == 0


def test_by_data_one_image_and_instance_normalisation_are_no_obstacle():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(), nn.Conv2d(4, 2, 3)
    )
    initialise_by_data(net, noise(1, 3, 9, 9))
    initialise_by_data(net, noise(8, 3, 9, 9))
    assert int(net[1].num_batches_tracked) == 1


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("init", ["he_normal", "sparse", "orthogonal"])
def test_transposed_convolutions_count_what_an_output_sees(dim, init):
    make = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dim]
    layer = make(64, 48, 4, stride=2, groups=2)
    (done,) = initialise(nn.Sequential(layer), init)
    outputs = layer(noise(16, 64, *([5] * dim))).detach()
    for axis in range(2, 2 + dim):
        outputs = outputs.narrow(axis, 4, 4)  # away from the border
    assert done.layer == "0"
    # Each output sees 32 channels x 2^dim of its 4^dim weights.
    assert float((outputs**2).mean()) == pytest.approx(1, rel=0.2)


def test_query_key_and_value_are_three_maps():
    for attention in (nn.MultiheadAttention(64, 4), nn.MultiheadAttention(64, 4, kdim=16, vdim=128)):
        initialise(attention, "xavier_uniform")
        stacked = attention.in_proj_weight
        parts = (
            stacked.detach().chunk(3)
            if stacked is not None
            else (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        )
        for part in parts:
            assert float(part.detach().std()) == pytest.approx(math.sqrt(2 / (64 + part.shape[1])), rel=0.05)
        assert (attention.in_proj_bias == 0).all()


@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_maps_are_orthogonal_gate_by_gate(make):
    layer = make(20, 32, num_layers=2, bidirectional=True)
    (done,) = initialise(nn.ModuleDict({"memory": layer}))
    assert (done.layer, done.init) == ("memory", "auto")
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in weight.detach().split(32):
                torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
        elif name.startswith("weight_ih_l0"):
            assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / 52), rel=0.1)
        elif make is nn.LSTM and name.startswith("bias_ih"):
            assert weight.tolist() == [0.0] * 32 + [1.0] * 32 + [0.0] * 64
        else:
            assert name.startswith("weight") or (weight == 0).all()


@pytest.mark.parametrize("make", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_are_recurrent_layers(make):
    cell = make(6, 8)
    initialise(cell, bias="keep")
    gate = cell.weight_hh.detach()[:8]
    torch.testing.assert_close(gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0)


def test_what_is_left_alone_is_said_with_the_reason():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
            self.position = nn.Parameter(torch.zeros(1, 3, 4))
            self.layer = nn.Linear(4, 2)

    net = Tokens()
    words = net.words.weight.detach().clone()
    layer, own, table = initialise(net)
    assert (layer.layer, layer.init, layer.reason) == ("layer", "auto", "")
    assert (own.layer, own.init, own.reason) == ("", "left alone", "no linear map with a known fan-in: position")
    assert (table.layer, table.init) == ("words", "left alone")
    assert "looked up" in table.reason
    assert torch.equal(words, net.words.weight)


def test_a_transformer_layer_is_initialised_as_a_whole():
    net = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    done = {one.layer: one for one in initialise(net, batch=noise(8, 5, 32))}
    assert list(done) == ["self_attn", "self_attn.out_proj", "linear1", "linear2"]
    assert torch.isfinite(net(noise(8, 5, 32))).all()
    assert {one.layer: one.init for one in initialise_by_data(net, noise(8, 5, 32))}["linear1"] == "lsuv"


BOUNDED = {
    "tanh": torch.tanh,
    "softsign": nn.functional.softsign,
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
    "clamp": lambda x: x.clamp(0, 1),
    "scaled sigmoid": lambda x: 2 * torch.sigmoid(x) - 1,
}


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_deep_bounded_networks_keep_their_signal(name):
    """At a gain of 1, as Xavier without a gain has, 40 layers leave 1e-2 (tanh) to 1e-24 of it."""
    net = deep(40, Applied(BOUNDED[name]))
    initialise(net, batch=noise(2, WIDE), seed=3)
    rows = noise(40, WIDE)
    moments = [float((net[:depth](rows).detach() ** 2).mean()) for depth in (40, 80)]
    assert moments[1] == pytest.approx(moments[0], rel=0.5)
    assert activation_statistics(net, rows).verdict == "just right"


def test_random_slopes_count_by_their_average():
    net = deep(2, nn.RReLU(0.2, 0.4))
    first, _ = initialise(net, batch=noise(2, WIDE))
    assert first.nonlinearity == "leaky_relu"
    assert first.gain == pytest.approx(math.sqrt(2 / (1 + 0.3**2)), rel=1e-3)


def test_bilinear_layers_sum_over_pairs_of_inputs():
    layer = nn.Bilinear(40, 30, 500)
    (done,) = initialise(layer, "he_normal", batch=(noise(4, 40), noise(4, 30)))
    assert done.deviation == pytest.approx(1 / math.sqrt(40 * 30), rel=0.02)
    outputs = layer(noise(200, 40), noise(200, 30).flip(0)).detach()
    assert float((outputs**2).mean()) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("init", ["xavier_uniform", "orthogonal", "auto"])
def test_packed_query_key_and_value_are_three_maps(init):
    """As those of `nn.MultiheadAttention`, whatever the order in which a network takes them apart."""
    net = Packed(96, heads=4)
    done = {one.layer: one for one in initialise(net, init, batch=noise(2, 5, 96))}
    assert (done["qkv"].parts, done["proj"].parts) == (3, 1)
    for part in net.qkv.weight.detach().split(96):
        if init == "orthogonal":
            torch.testing.assert_close(part @ part.T, torch.eye(96), atol=1e-5, rtol=0)
        else:
            assert float(part.std()) == pytest.approx(math.sqrt(1 / 96), rel=0.03)
    initialise(net, init)
    if init == "xavier_uniform":
        assert float(net.qkv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (4 * 96)), rel=0.03)


@pytest.mark.parametrize("gate", ["glu", "swiglu", "geglu"])
def test_packed_gates_keep_the_second_moment(gate):
    functions = {
        "glu": nn.functional.glu,
        "swiglu": lambda x: nn.functional.silu(x[..., :WIDE]) * x[..., WIDE:],
        "geglu": lambda x: nn.functional.gelu(x.chunk(2, dim=-1)[1]) * x.chunk(2, dim=-1)[0],
    }
    layers = [part for _ in range(6) for part in (nn.Linear(WIDE, 2 * WIDE), Applied(functions[gate]))]
    net = nn.Sequential(*layers)
    done = initialise(net, "he_normal", batch=noise(2, WIDE), seed=3)  # seed 0 would make weights of these rows
    assert [one.parts for one in done] == [2] * 6
    assert float((net[:2](noise(100, WIDE)).detach() ** 2).mean()) == pytest.approx(1, rel=0.1)
    if gate == "glu":  # a product of two linear parts doubles any deviation from 1, layer by layer
        assert float((net(noise(100, WIDE)).detach() ** 2).mean()) == pytest.approx(1, rel=0.5)


def test_layers_without_memory_are_refused():
    with pytest.raises(OptionError, match="to_empty"):
        initialise(nn.Linear(3, 2, device="meta"))
