"""The swap in whole networks: what is carried over, what is said about it, and the way back bit for bit."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import nn

import transferkit as tk
from tests.unit.nn.norm.inputs import same_state
from tests.unit.nn.toy_networks import Pyramid, spec_of
from transferkit.core.errors import BackboneError, DataError, OptionError
from transferkit.nn import Backbone
from transferkit.nn.backbone import weights_digest
from transferkit.nn.norm import (
    AlphaBatchNorm,
    BatchRenorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    GroupNorm,
    fit_group_norms,
    is_batch_norm,
    original_of,
    restore_norm,
    standardising,
    swap_norm,
    swapped_layers,
    swapped_norms,
)

PICTURES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pyramid() -> Pyramid:
    """Trained a little, so that statistics are no fresh ones."""
    torch.manual_seed(0)
    network = Pyramid().train()
    for _ in range(3):
        network(PICTURES)
    return network


def frozen_resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d)


NETWORKS = {
    "pyramid": pyramid,
    "torchvision resnet": lambda: torchvision.models.resnet18(weights=None),
    "torchvision resnet, frozen": frozen_resnet,
    "torchvision mobilenet": lambda: torchvision.models.mobilenet_v3_small(weights=None),
    "timm resnet": lambda: timm.create_model("test_resnet", pretrained=False),
    "timm efficientnet": lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False),
    "timm mobilenet": lambda: timm.create_model("mobilenetv3_small_050", pretrained=False),
    "timm regnet": lambda: timm.create_model("regnetx_002", pretrained=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_of_a_networks_batch_normalisation_is_swapped_and_comes_back(name):
    network = NETWORKS[name]().eval()
    expected, digest, listing = network(PICTURES), weights_digest(network), repr(network)
    norms = {path: layer for path, layer in network.named_modules() if is_batch_norm(layer)}
    assert swap_norm(network) is network
    assert [layer for _, layer in network.named_modules() if is_batch_norm(layer)] == []
    assert [swap.path for swap in swapped_norms(network)] == list(norms)
    assert [swap.kind_before for swap in swapped_norms(network)] == [type(norm).__name__ for norm in norms.values()]
    assert network(PICTURES).isfinite().all()
    restore_norm(network)
    assert torch.equal(network(PICTURES), expected)
    assert (weights_digest(network), repr(network)) == (digest, listing)
    assert {path: layer for path, layer in network.named_modules() if is_batch_norm(layer)} == norms
    assert swapped_norms(network) == ()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "torchvision resnet, frozen"])
def test_a_network_of_frozen_layers_computes_the_same_bits_whatever_mode_they_are_in(name):
    network = NETWORKS[name]().eval()
    expected = network(PICTURES)
    swap_norm(network, "frozen")
    assert torch.equal(network(PICTURES), expected)
    before = weights_digest(network)
    for layer in network.modules():
        if isinstance(layer, FrozenBatchNorm):
            layer.train()
    assert torch.equal(network(PICTURES), expected)
    assert weights_digest(network) == before


def test_real_weights_survive_the_way_there_and_back():
    backbone = tk.load_backbone("packaged/tf_efficientnet_lite0", image_size=64)
    pictures = torch.randn(2, 3, 64, 64)
    expected, digest = backbone(pictures), weights_digest(backbone)
    tk.swap_norm(backbone, "frozen")
    assert torch.equal(backbone.train()(pictures), expected)
    tk.swap_norm(backbone, "group", groups=1)
    assert not torch.allclose(backbone(pictures), expected)
    assert {swap.kind_before for swap in tk.swapped_norms(backbone)} == {"BatchNormAct2d"}
    tk.restore_norm(backbone).eval()
    assert torch.equal(backbone(pictures), expected)
    assert weights_digest(backbone) == digest


def test_a_backbone_made_of_a_swapped_network_still_finds_its_stages():
    plain, swapped = Backbone(pyramid(), spec_of()), Backbone(swap_norm(pyramid(), "frozen"), spec_of())
    assert [stage.name for stage in swapped.stages] == [stage.name for stage in plain.stages]
    torch.testing.assert_close(swapped.source_moments(), plain.source_moments())
    assert len(swapped_norms(swapped)) == 3


def test_hooks_that_read_stages_stay():
    backbone = Backbone(pyramid(), spec_of())
    before = backbone.forward_stages(PICTURES)
    swap_norm(backbone, "frozen")
    with backbone.recording_moments() as moments:
        after = backbone.forward_stages(PICTURES)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(moments) == set(before)


def test_a_single_layer_gives_its_replacement():
    layer = nn.BatchNorm1d(6)
    made = swap_norm(layer, "group", groups=2)
    assert isinstance(made, GroupNorm)
    assert [swap.path for swap in swapped_norms(made)] == [""]
    assert restore_norm(made) is layer


def test_a_layer_that_stands_in_two_places_stays_one_layer():
    shared = nn.BatchNorm2d(3)
    network = nn.Sequential(shared, nn.ModuleList([nn.Conv2d(3, 3, 1), shared]), nn.ModuleDict({"last": shared}))
    swap_norm(network, "frozen")
    assert network[0] is network[1][1] is network[2]["last"]
    (swap,) = swapped_norms(network)
    assert (swap.path, swap.note) == ("0", "also at 1.1, 2.last")
    restore_norm(network)
    assert network[0] is network[1][1] is network[2]["last"] is shared


def test_it_is_said_what_was_changed():
    network = nn.Sequential(BatchNormAct2d(12), nn.Sequential(nn.BatchNorm2d(8)))
    swap_norm(network, "group", groups=5)
    first, second = swapped_norms(network)
    assert (first.path, first.kind_before, first.kind_after) == ("0", "BatchNormAct2d", "group")
    assert (first.channels, first.groups, first.note) == (12, 4, "4 groups: 5 do not divide 12 channels")
    assert (second.path, second.channels, second.groups) == ("1.0", 8, 4)
    swap_norm(network, "frozen")
    assert {(swap.kind_after, swap.groups, swap.note) for swap in swapped_norms(network)} == {("frozen", None, "")}
    swap_norm(network, "decorrelated", groups=8)
    assert [swap.groups for swap in swapped_norms(network)] == [6, 8]


def test_affine_maps_modes_and_what_asks_for_gradients_are_carried_over():
    network = pyramid()
    network.stem.eval()
    network.last[1].bias.requires_grad_(False)
    affine = {
        name: tensor.clone() for name, tensor in network.state_dict().items() if name.endswith(("weight", "bias"))
    }
    asks = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    swap_norm(network, "group")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in affine.items())
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == asks
    assert [network.stem[1].training, network.middle[1].training] == [False, True]


def test_hooks_see_the_replacement_and_their_handles_still_take_them_off():
    network = pyramid()
    seen = []
    handle = network.middle[1].register_forward_hook(
        lambda module, _inputs, _output: seen.append(type(module).__name__)
    )
    network.middle[1].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 0,))
    swap_norm(network, "frozen")
    made = network.middle[1](PICTURES.new_ones(2, 8, 4, 4))
    assert torch.equal(made, network.middle[1](PICTURES.new_zeros(2, 8, 4, 4)))
    assert seen == ["FrozenBatchNorm"] * 2
    handle.remove()
    network(PICTURES)
    restore_norm(network)(PICTURES)
    assert seen == ["FrozenBatchNorm"] * 2
    assert len(network.middle[1]._forward_pre_hooks) == 1


def test_hooks_hung_on_the_replacement_stay_after_the_way_back():
    network = swap_norm(pyramid(), "frozen")
    gradients = []
    network.last[1].register_full_backward_hook(lambda _module, _into, out: gradients.append(out[0].shape))
    restore_norm(network)(PICTURES).sum().backward()
    assert gradients == [(6, 16, 4, 4)]


def test_what_the_replacement_learns_does_not_reach_the_original():
    network = swap_norm(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.PReLU)), "group")
    before = copy.deepcopy(original_of(network[1]).state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(PICTURES).square().mean().backward()
    optimizer.step()
    restore_norm(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network[1].state_dict().items())
    assert "act.weight" in before


def test_the_original_follows_where_the_network_goes():
    network = swap_norm(pyramid(), "instance").to("meta", torch.float64)
    restored = restore_norm(network)
    assert {tensor.device.type for tensor in restored.state_dict().values()} == {"meta"}
    assert restored.stem[1].running_var.dtype == torch.float64
    bare = restore_norm(
        swap_norm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)), "layer").to("meta")
    )
    assert bare[1].running_mean.device.type == "meta"


def test_the_mode_of_the_day_is_kept_on_the_way_back():
    network = swap_norm(pyramid().train(), "frozen").eval()
    assert not restore_norm(network).stem[1].training


def test_nothing_swapped_nothing_restored():
    network = pyramid()
    assert restore_norm(network) is network
    assert swapped_norms(network) == ()


def test_recalibrated_statistics_can_then_be_frozen():
    network = pyramid().eval()
    original = network.stem[1]
    swap_norm(network, "recalibrated", calibrate=PICTURES + 5)
    measured = network.stem[1].running_mean.clone()
    assert not torch.allclose(measured, original.running_mean)
    swap_norm(network, "frozen")
    assert torch.equal(network.stem[1].running_mean, measured)
    assert restore_norm(network).stem[1] is original


def test_a_layer_without_statistics_is_swapped_again_from_its_original():
    network = pyramid().eval()
    expected = network(PICTURES)
    swap_norm(network, "group")
    swap_norm(network, "frozen")
    assert torch.equal(network(PICTURES), expected)
    swap_norm(network, "momentum")
    assert network.stem[1].track_running_stats
    assert len(swapped_norms(network)) == 3


def test_a_function_makes_layers_with_options_of_their_own():
    network = swap_norm(pyramid(), lambda layer: GhostBatchNorm(layer, size=3))
    assert network.stem[1].size == 3
    assert {swap.kind_after for swap in swapped_norms(network)} == {"GhostBatchNorm"}
    swap_norm(network, lambda layer: AlphaBatchNorm(layer, strength=9))
    assert {layer.strength for _, layer, _ in swapped_layers(network)} == {9}
    with pytest.raises(OptionError, match="A replacement must be a new layer, got the AlphaBatchNorm itself"):
        swap_norm(network, lambda layer: layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gruop"}, "Unknown kind of normalisation 'gruop'. Closest known: group."),
        (
            {"to": "frozen", "groups": 4},
            "groups=4 is for decorrelated, group and standardised_group only, not for 'frozen'",
        ),
        ({"to": "group", "groups": 0}, "groups must be >= 1, got 0"),
        ({"to": "recalibrated"}, "'recalibrated' measures statistics on images: pass calibrate"),
        (
            {"to": "layer", "calibrate": PICTURES},
            "'layer' does not use calibrate; kinds that do are recalibrated and standardised_group",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    network = pyramid()
    with pytest.raises(OptionError, match=message):
        swap_norm(network, **options)
    assert swapped_norms(network) == ()


def test_layers_made_by_hand_are_fitted_too_if_they_can_be():
    network, source = pyramid().eval(), pyramid().eval()
    swap_norm(network, partial(standardising, blend=0), calibrate=PICTURES)
    torch.testing.assert_close(network(PICTURES), source(PICTURES), rtol=1e-4, atol=1e-4)
    with pytest.raises(OptionError, match="a BatchRenorm cannot be fitted to images. Leave calibrate out"):
        swap_norm(source, BatchRenorm, calibrate=PICTURES)
    assert not swapped_norms(source)


def test_all_options_that_do_not_fit_are_named_at_once():
    with pytest.raises(OptionError, match=r"(?s)cannot be swapped:\n- groups=2 .*\n- 'frozen' does not use calibrate"):
        swap_norm(pyramid(), "frozen", groups=2, calibrate=PICTURES)


def test_a_network_without_batch_normalisation_is_refused():
    with pytest.raises(OptionError, match="Sequential has no batch normalisation to swap. Supported are BatchNorm1d"):
        swap_norm(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))


def test_layers_that_cannot_be_swapped_are_all_named_and_nothing_is_changed():
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.Sequential(nn.LazyBatchNorm2d())
    )
    with pytest.raises(OptionError, match=r"(?s)- 1: .* has no running statistics.*\n- 2.0: .* is lazy"):
        swap_norm(network, "frozen")
    assert swapped_norms(network) == ()


def test_statistics_are_those_of_the_images_given():
    network = pyramid().eval()
    swap_norm(network, "recalibrated", calibrate=PICTURES)
    inside = network.stem[0](PICTURES)
    torch.testing.assert_close(network.stem[1].running_mean, inside.mean((0, 2, 3)))
    torch.testing.assert_close(network.stem[1].running_var, inside.var((0, 2, 3)))
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_batches_count_as_one_tensor_does():
    networks = [pyramid(), pyramid()]
    swap_norm(networks[0], "recalibrated", calibrate=torch.cat([PICTURES] * 22))  # 132 images: three equal parts
    swap_norm(
        networks[1], "recalibrated", calibrate=(torch.cat([PICTURES] * 22)[i * 44 : (i + 1) * 44] for i in range(3))
    )
    assert same_state(*networks)


def test_precision_is_that_of_the_network():
    network = swap_norm(pyramid().double(), "recalibrated", calibrate=PICTURES)
    assert network.stem[1].running_mean.dtype == torch.float64


@pytest.mark.parametrize("kind", ["recalibrated", "group"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(0, 3, 8, 8), r"batch 0 must be images \(N, 3, S, S\), N >= 1, got shape \(0, 3, 8, 8\)"),
        (torch.zeros(()), r"got shape \(\)"),
        (torch.zeros(3, 8, 8), r"got shape \(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"got shape \(2, 8, 8, 3\)"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            "must be float, normalised for the checkpoint, got torch.uint8",
        ),
        (torch.full((2, 3, 8, 8), float("nan")), "batch 0 contains NaN or infinite values"),
        ([torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), float("inf"))], "batch 1 contains NaN or infinite values"),
        (
            [{"image": torch.zeros(2, 3, 8, 8)}],
            r"begin with one, got dict. For a loader of dicts, pass the images",
        ),
        (5, r"needs a tensor of images \(N, 3, S, S\), or batches of them, got 5"),
        ([], "Calibration needs images, got none"),
    ],
)
def test_images_that_cannot_be_used_are_refused_and_nothing_is_changed(kind, given, message):
    network = pyramid()
    twin = copy.deepcopy(network)
    with pytest.raises(DataError, match=message):
        swap_norm(network, kind, calibrate=given)
    assert swapped_norms(network) == ()
    assert same_state(network, twin)


def test_groups_are_fitted_by_the_conversion_on_all_images_in_one_tensor():
    network, by_hand = pyramid(), pyramid()
    by_hand.load_state_dict(network.state_dict())
    swap_norm(network, "group", calibrate=[PICTURES[:4], PICTURES[4:]])
    report = fit_group_norms(by_hand, PICTURES)
    assert [one.path for one in swapped_norms(network)] == [fit.path for fit in report.layers]
    assert {one.kind_after for one in swapped_norms(network)} == {"standardised_group"}
    assert same_state(network, by_hand)
    with pytest.raises(DataError, match=r"must have one size, got \(3, 16, 16\) and \(3, 32, 32\). Resize them first"):
        swap_norm(network, "group", calibrate=[PICTURES, PICTURES[..., :16, :16]])
    assert {swap.groups for swap in swapped_norms(network)} == {1}


@pytest.mark.parametrize("kind", ["recalibrated", "group"])
def test_loaders_of_images_and_labels_will_do(kind):
    networks = [pyramid(), pyramid()]
    swap_norm(networks[0], kind, calibrate=[PICTURES[:3], PICTURES[3:]])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(PICTURES, torch.arange(6)), batch_size=3)
    swap_norm(networks[1], kind, calibrate=loader)
    assert same_state(*networks)


@pytest.mark.parametrize("kind", ["recalibrated", "group"])
def test_what_the_network_makes_nothing_of_is_refused(kind):
    narrow = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4))
    with pytest.raises(BackboneError, match=r"The network cannot take .*Kernel size can't be greater"):
        swap_norm(narrow, kind, calibrate=torch.randn(4, 3, 2, 2))
    assert not swapped_norms(narrow)


def test_statistics_that_are_not_finite_are_refused():
    broken = pyramid()
    nn.init.constant_(broken.stem[0].weight, float("nan"))
    with pytest.raises(BackboneError, match="activations for these images are NaN or infinite. Check its weights"):
        swap_norm(broken, "recalibrated", calibrate=PICTURES)
    assert not swapped_norms(broken)


def test_images_have_as_many_channels_as_the_network_reads():
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    assert swapped_norms(swap_norm(grey, "group", calibrate=torch.randn(4, 1, 8, 8)))
    with pytest.raises(DataError, match=r"must be images \(N, 1, S, S\), N >= 1, got shape \(4, 3, 8, 8\)"):
        swap_norm(grey, "group", calibrate=torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=str)
def test_what_is_fitted_comes_near_the_layer_as_it_is_now_not_to_its_original(precision):
    network = swap_norm(pyramid(), "recalibrated", calibrate=PICTURES + 1).to(precision).eval()
    pictures = PICTURES.to(precision)
    expected = network(pictures)
    swap_norm(network, partial(standardising, blend=0), calibrate=pictures)
    torch.testing.assert_close(network(pictures), expected, rtol=1e-4, atol=1e-4)


def test_layers_without_an_affine_map_are_fitted_by_one_of_their_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    expected = network(PICTURES)
    swap_norm(network, partial(standardising, blend=0), calibrate=PICTURES)
    torch.testing.assert_close(network(PICTURES), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network[1].parameters())


def test_what_could_not_learn_for_a_while_learns_again():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).requires_grad_(False))
    swap_norm(network, "frozen_affine")
    swap_norm(network, "frozen")
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, False, False]


def test_hooks_on_saving_and_loading_are_kept():
    layer, heard = nn.BatchNorm2d(3), []
    layer.register_state_dict_post_hook(lambda *_: heard.append("saved"))
    layer.register_load_state_dict_pre_hook(lambda *_: heard.append("to load"))
    swapped = swap_norm(layer, "frozen")
    heard.clear()
    swapped.load_state_dict(swapped.state_dict())
    assert heard == ["saved", "to load"]


def test_networks_that_are_trained_in_parallel_already_are_refused():
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module):  # without processes
            nn.Module.__init__(self)
            self.module = module

    wrapped = Wrapped(pyramid())
    with pytest.raises(OptionError, match="has registered the parameters already.* Swap first, then wrap"):
        swap_norm(wrapped, "frozen")
    assert not swapped_norms(wrapped)


def test_a_failed_calibration_puts_back_what_stood_there(monkeypatch):
    def fail(module, pairs, images):
        raise RuntimeError("no memory")

    monkeypatch.setattr("transferkit.nn.norm.swap.fit_successors", fail)
    network = swap_norm(pyramid(), "frozen")
    frozen = network.stem[1]
    with pytest.raises(RuntimeError, match="no memory"):
        swap_norm(network, "group", calibrate=PICTURES)
    assert network.stem[1] is frozen


def test_layers_that_a_plan_keeps_in_evaluation_mode_are_not_passed_over_in_silence():
    network = pyramid()
    network.stem[1].register_forward_pre_hook(lambda module, _: setattr(module, "training", False))
    with pytest.raises(OptionError, match="1 of 3 layers are kept in evaluation mode by a hook"):
        swap_norm(network, "recalibrated", calibrate=PICTURES)
    assert swapped_norms(network) == ()


def test_one_image_in_training_is_an_error_with_a_way_out():
    network = swap_norm(pyramid(), "momentum").train()
    with pytest.raises(DataError, match="BatchNorm in training needs at least 2 values .* Use batches of at least 2"):
        network(torch.randn(1, 3, 8, 8))  # the last layer sees one position
    assert swap_norm(network, "group", groups=1)(torch.randn(1, 3, 8, 8)).isfinite().all()
