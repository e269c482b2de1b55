"""What every registered kind of normalisation must keep to, whatever layer it takes the place of."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import (
    BY_BATCH,
    KEEPS_OUTPUTS,
    NEEDS_SEVERAL,
    NORM_KINDS,
    follows_batches,
    original_of,
    restore_norm,
    swap_norm,
    swapped_norms,
)

CHANNELS = 8
BY_IMAGE = {"group", "standardised_group", "layer", "channel_layer", "instance"}
"""Kinds that look at one image at a time."""

FIXED = {"frozen", "alpha"}
"""Kinds whose running statistics never move."""


def images(n=6, *, seed=0, dtype=torch.float32):
    values = torch.randn(n, CHANNELS, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return values.to(dtype)


def fill(layer, seed=0):
    """No fresh affine map, no fresh statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer, name).copy_(0.5 + torch.rand(CHANNELS, generator=generator))
    return layer


def plain(seed=0):
    return fill(nn.BatchNorm2d(CHANNELS), seed)


def fused(seed=0, *, act_layer=nn.SiLU, drop_layer=None):
    return fill(BatchNormAct2d(CHANNELS, act_layer=act_layer, drop_layer=drop_layer), seed)


def frozen(seed=0):
    return fill(FrozenBatchNorm2d(CHANNELS), seed)


def make(kind, layer):
    return NORM_KINDS[kind](layer, None)


every_kind = pytest.mark.parametrize("kind", NORM_KINDS)
every_source = pytest.mark.parametrize("source", [plain, fused, frozen], ids=lambda source: source.__name__)


def test_the_table_is_complete():
    assert set(NORM_KINDS) == {
        *("frozen", "frozen_affine", "momentum", "recalibrated", "sync", "renorm", "ghost", "accumulated", "alpha"),
        *("decorrelated", "group", "standardised_group", "layer", "channel_layer", "instance"),
    }


def test_an_unknown_kind_offers_the_closest():
    with pytest.raises(OptionError, match="Unknown kind of normalisation 'groups'. Closest known: group."):
        NORM_KINDS["groups"]


@every_kind
@every_source
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_and_precision_are_kept(kind, source, dtype):
    layer = make(kind, source().to(dtype))
    for training in (True, False):
        made = layer.train(training)(images(dtype=dtype))
        assert made.shape == images().shape
        assert made.dtype == dtype
        assert made.isfinite().all()


@every_kind
def test_mixed_precision_keeps_its_type_and_is_about_right(kind):
    exact = make(kind, plain())(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = make(kind, plain())(images(dtype=torch.bfloat16))
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), exact, atol=0.1, rtol=0.05)


@every_kind
@every_source
def test_the_device_is_kept(kind, source):
    made = make(kind, source().to("meta"))
    assert {tensor.device.type for tensor in made.state_dict().values()} == {"meta"}


@every_kind
@every_source
def test_gradients_flow_to_what_asked_for_them_in_both_modes(kind, source):
    layer = source()
    if isinstance(layer.weight, nn.Parameter):
        layer.weight.requires_grad_(False)
    for training in (True, False):
        made, values = make(kind, layer).train(training), images().requires_grad_()
        (made(values) * images(seed=1)).sum().backward()
        assert values.grad.abs().sum() > 0
        learns = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
        assert learns == (set() if kind == "frozen_affine" or source is frozen else {"bias"})


@every_kind
@every_source
def test_evaluation_is_deterministic_and_leaves_no_trace(kind, source):
    layer = make(kind, source()).eval()
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer(images()), layer(images()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@every_kind
@every_source
def test_until_it_trains_evaluation_is_what_it_was_where_statistics_are_kept(kind, source):
    layer = source().eval()
    same = torch.allclose(make(kind, layer)(images()), layer(images()), atol=1e-5)
    assert same is (kind not in BY_IMAGE | BY_BATCH)


@every_kind
def test_what_gives_the_same_in_evaluation_is_listed(kind):
    layer = plain().eval()
    assert torch.allclose(make(kind, layer)(images()), layer(images()), atol=1e-5) is (
        kind in KEEPS_OUTPUTS | {"recalibrated"}  # until its statistics are measured anew
    )


@every_kind
def test_what_needs_several_images_trains_on_them_as_they_are(kind):
    layer = make(kind, plain()).train()
    alone = torch.cat([make(kind, plain()).train()(image[None]) for image in images()])
    by_batch = not torch.allclose(layer(images()), alone, atol=1e-5)
    assert by_batch is (kind in NEEDS_SEVERAL | BY_BATCH | {"renorm", "sync"})


@every_kind
def test_no_images_are_no_images(kind):
    assert make(kind, plain()).eval()(images()[:0]).shape == (0, *images().shape[1:])


@every_kind
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_far_from_zero_and_without_any_spread_values_stay_in_range(kind, training, dtype):
    values = images()
    values[:, 0] = 7.3
    values[:, 1] += 500.0
    values = values.to(dtype).requires_grad_()
    made = make(kind, plain()).train(training)(values)
    made.float().square().mean().backward()
    assert made.isfinite().all()
    assert values.grad.isfinite().all()


@every_kind
def test_images_are_independent_in_evaluation_unless_said_otherwise(kind):
    layer = make(kind, plain()).eval()
    alone = torch.cat([layer(image[None]) for image in images()])
    assert torch.allclose(layer(images()), alone, atol=1e-5) is (kind not in BY_BATCH)


@every_kind
def test_activation_comes_after_the_normalisation(kind):
    for training in (True, False):
        bare, whole = (make(kind, source()).train(training) for source in (plain, fused))
        torch.testing.assert_close(whole(images()), nn.functional.silu(bare(images())))


@every_kind
def test_dropout_acts_between_the_two_and_in_training_only(kind):
    layer = make(kind, fused(act_layer=nn.Identity, drop_layer=nn.Dropout))
    torch.testing.assert_close(layer.eval()(images()), make(kind, plain()).eval()(images()))
    dropped = float((layer.train()(images()) == 0).float().mean())
    assert 0.4 < dropped < 0.6


@every_kind
@every_source
def test_the_state_goes_round_and_keeps_its_names(kind, source):
    first, second = make(kind, source(seed=0)), make(kind, source(seed=1))
    first.train()(images())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images()), second.eval()(images()))
    names = {"weight", "bias"} if kind in BY_IMAGE else {"weight", "bias", "running_mean", "running_var"}
    assert names <= set(first.state_dict())
    mismatch = first.load_state_dict(plain(seed=2).state_dict(), strict=False)
    assert not {"weight", "bias"} & set(mismatch.missing_keys)
    assert bool(mismatch.unexpected_keys) is (kind in BY_IMAGE)


@every_kind
@every_source
@pytest.mark.parametrize("training", [True, False])
def test_memory_layout_does_not_matter(kind, source, training):
    rows, last = (make(kind, source()).train(training) for _ in range(2))
    made = last(images().to(memory_format=torch.channels_last))
    torch.testing.assert_close(made, rows(images()), atol=1e-4, rtol=1e-4)
    assert rows(images()).flatten(1).shape == rows(images()).view(len(images()), -1).shape  # in rows, as they came


@every_kind
@pytest.mark.parametrize("shape", [(6, CHANNELS), (6, CHANNELS, 4), (3, CHANNELS, 2, 2, 2)], ids=len)
def test_any_number_of_axes_will_do(kind, shape):
    made = NORM_KINDS[kind](nn.BatchNorm1d(CHANNELS), 2)
    if kind == "instance" and len(shape) == 2:  # there is no position to normalise over
        with pytest.raises(DataError, match="got 1"):
            made(torch.randn(shape))
    else:
        assert made(torch.randn(shape)).shape == shape


@every_kind
@every_source
def test_the_layer_stays_as_it_is(kind, source):
    layer, twin = source(), source()
    make(kind, layer).train()(images().requires_grad_()).sum().backward()
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(kind, training):
    assert make(kind, plain().train(training)).training is training


@every_kind
def test_a_layer_without_an_affine_map_has_none_and_may_be_changed_in_place(kind):
    bare = BatchNormAct2d(CHANNELS, affine=False, act_layer=nn.ReLU, inplace=True)
    for training in (True, False):
        made, values = make(kind, bare).train(training), images().requires_grad_()
        made(values).square().sum().backward()
        assert list(made.parameters()) == []
        assert values.grad.abs().sum() > 0


@every_kind
def test_freeze_plans_know_it_for_a_normalisation_and_know_what_moves(kind):
    layer = make(kind, plain()).train()
    assert "norm" in type(layer).__name__.lower()
    assert all(parameter.ndim == 1 for parameter in layer.parameters())
    assert follows_batches(layer) is (kind not in BY_IMAGE | FIXED)
    before = copy.deepcopy(layer.state_dict())
    for _ in range(4):  # as many batches as are added up before a step
        layer(images())
    moved = {name for name, tensor in layer.state_dict().items() if not torch.equal(tensor, before[name])}
    assert ({"running_mean", "running_var"} <= moved) is follows_batches(layer)
    assert follows_batches(layer) or not moved


@every_kind
@every_source
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_swapped_network_can_be_copied_and_restored_from_the_copy(kind, source, clone):
    network = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), source())
    pictures = torch.randn(4, 3, 8, 8)
    expected, before = network.eval()(pictures), copy.deepcopy(network.state_dict())
    kept = network[1]
    swap_norm(network, kind, calibrate=pictures if kind == "recalibrated" else None)
    other = clone(network)
    assert torch.equal(other(pictures), network(pictures))
    assert original_of(other[1]) is not kept
    other.train()(pictures)
    assert swapped_norms(other) == swapped_norms(network)
    for swapped in (network, other):
        restored = restore_norm(swapped).eval()
        assert restored.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in restored.state_dict().items())
        assert torch.equal(restored(pictures), expected)
    assert network[1] is kept


@every_kind
def test_what_it_remembers_is_no_part_of_the_network(kind):
    network = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), plain())
    swap_norm(network, kind, calibrate=torch.randn(4, 3, 8, 8) if kind == "recalibrated" else None)
    original = original_of(network[1])
    assert original not in set(network.modules())
    assert not {id(parameter) for parameter in original.parameters()} & {id(p) for p in network.parameters()}
    assert not any("original" in name or "swapped" in name for name in network.state_dict())
