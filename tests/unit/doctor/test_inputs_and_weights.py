"""Inputs that are not as the backbone expects them, and weights that are not worth training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.unit.doctor.toys import CLASSES, images, sgd, toy
from transferkit.core.errors import DataError
from transferkit.doctor import check_pictures, examine
from transferkit.doctor.pixel_values import find_extent, find_misfit
from transferkit.records import Preprocessing

IMAGENET = Preprocessing(size=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear")
HALF = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


def causes(model, batch, checks, **options):
    return [one.cause for one in examine(model, batch, checks=checks, classes=CLASSES, **options).symptoms]


def bright(count=12):
    """(count, 3, 8, 8) in [0, 1], from black to white in each channel."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normalised(values, mean, std):
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("own", [IMAGENET, HALF])
def test_the_checkpoints_own_normalisation_is_no_misfit(own):
    assert find_misfit(normalised(bright(), own.mean, own.std), own) is None


@given(low=st.floats(0, 0.6), span=st.floats(0.05, 0.4))
def test_pictures_of_low_contrast_are_no_misfit(low, span):
    dim = low + span * bright()
    assert find_misfit(normalised(dim, IMAGENET.mean, IMAGENET.std), IMAGENET) is None


@pytest.mark.parametrize(
    ("mean", "std", "own", "cause"),
    [
        ((0.0,) * 3, (1.0,) * 3, IMAGENET, "mean_std"),
        ((0.0,) * 3, (1.0,) * 3, HALF, "mean_std"),
        ((0.5,) * 3, (0.5,) * 3, IMAGENET, "mean_std"),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), HALF, "mean_std"),
        ((0.0,) * 3, (1 / 255,) * 3, IMAGENET, "range"),
        ((0.485, 0.456, 0.406), (0.229 / 255, 0.224 / 255, 0.225 / 255), IMAGENET, "range"),
    ],
)
def test_another_normalisation_is_named(mean, std, own, cause):
    found = find_misfit(normalised(bright(), mean, std), own)
    assert found is not None
    assert found.cause == cause
    batch = (normalised(bright(), mean, std), torch.arange(12) % CLASSES)
    assert causes(toy(), batch, ["inputs"], preprocessing=own) == [cause]


def test_a_single_bright_pixel_does_not_widen_the_extent():
    values = bright()
    values[0, 0, 0, 0] = 40.0
    assert float(find_extent(values).high.max()) <= 1


def test_without_a_checkpoint_only_bytes_are_told():
    assert find_misfit(bright(), None) is None
    assert find_misfit(255 * bright(), None).cause == "range"


def test_inputs_that_are_nan_or_all_alike():
    pixels, labels = images()
    broken = pixels.clone()
    broken[0, 0, 0, 0] = float("nan")
    assert causes(toy(), (broken, labels), ["inputs"]) == ["inputs_not_finite"]
    assert causes(toy(), (pixels[:1].expand_as(pixels), labels), ["inputs"]) == ["same_inputs"]


def test_whole_numbers_are_left_to_the_model():
    found = examine(toy().double(), (torch.ones(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)), checks=["inputs"])
    assert "whole numbers" in found.skipped["inputs"]


def arrays(count=12):
    rng = np.random.default_rng(0)
    return [
        np.concatenate([rng.integers(0, 256 // (1 + channel), (8, 8, 1)) for channel in range(3)], axis=2).astype(
            np.uint8
        )
        for _ in range(count)
    ]


def as_tensor(pictures, own):
    plain = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return normalised(plain, own.mean, own.std)


def test_pictures_prepared_as_the_checkpoint_wants_pass_whatever_their_geometry():
    pictures = arrays()
    right = as_tensor(pictures, IMAGENET)
    assert check_pictures(pictures, right, IMAGENET) == ()
    assert check_pictures(pictures, right.flip(3), IMAGENET) == ()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x.flip(1), "channel_order"),
        (lambda x: 255 * x, "range"),
        (lambda x: x * 0.229 / 0.5, "mean_std"),
        (lambda x: x + 0.3, "mean_std"),
    ],
)
def test_pictures_prepared_otherwise_are_named(change, cause):
    pictures = arrays()
    assert cause in [one.cause for one in check_pictures(pictures, change(as_tensor(pictures, IMAGENET)), IMAGENET)]


def test_grey_pictures_have_no_channel_order():
    pictures = [one[..., :1].repeat(3, axis=2) for one in arrays()]
    assert check_pictures(pictures, as_tensor(pictures, HALF).flip(1), HALF) == ()


def test_pictures_and_images_must_match():
    with pytest.raises(DataError, match="Expected 4 pictures or more, and as many"):
        check_pictures(arrays(3), torch.zeros(3, 3, 8, 8), HALF)


def framed(count=8):
    """Pictures with a dark frame, so that a closer crop is brighter."""
    rng = np.random.default_rng(4)
    tiles = rng.integers(90, 256, (count, 8, 8, 3), dtype=np.uint8) // np.array([1, 1, 2], dtype=np.uint8)
    pixels = tiles.repeat(12, axis=1).repeat(12, axis=2)
    pixels[:, :7] = pixels[:, -7:] = pixels[:, :, :7] = pixels[:, :, -7:] = 10
    return list(pixels)


@pytest.mark.parametrize("keep", [96, 84, 72])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: normalised(x, IMAGENET.mean, IMAGENET.std), None),
        (lambda x: normalised(x.flip(1), IMAGENET.mean, IMAGENET.std), "channel_order"),
        (lambda x: normalised(x, IMAGENET.mean, IMAGENET.std).flip(1), "channel_order"),
        (lambda x: normalised(x / 255, IMAGENET.mean, IMAGENET.std), "range"),
        (lambda x: normalised(x, HALF.mean, HALF.std), "mean_std"),
    ],
)
def test_a_closer_crop_is_no_other_normalisation(keep, change, cause):
    pictures, edge = framed(), (96 - keep) // 2
    plain = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    cropped = plain[:, :, edge : edge + keep, edge : edge + keep]
    found = check_pictures(pictures, change(cropped), replace(IMAGENET, size=96))
    assert [one.cause for one in found] == ([] if cause is None else [cause])


@pytest.mark.parametrize("wrong", [lambda x: x / 255.0, lambda x: np.moveaxis(x, 2, 0)])
def test_what_is_no_picture_is_refused(wrong):
    pictures = arrays(4)
    right = as_tensor(pictures, IMAGENET)
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8 arrays, got"):
        check_pictures([wrong(one) for one in pictures], right, IMAGENET)
    with pytest.raises(DataError, match="NaN"):
        check_pictures(pictures, right * float("nan"), IMAGENET)
    with pytest.raises(DataError, match="as many"):
        check_pictures(pictures, right[:, :, 0], IMAGENET)


def deep():
    """Six convolutions that do not look fresh."""
    torch.manual_seed(0)
    layers = []
    for number in range(6):
        layers += [nn.Conv2d(3 if number == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def weights(net):
    return causes(net, images(), ["weights"], preprocessing=HALF)


def test_trained_and_freshly_made_networks_pass():
    assert weights(deep()) == []
    assert weights(toy()) == []
    torch.manual_seed(0)
    assert (
        weights(nn.Sequential(*[nn.Conv2d(3, 3, 9, padding=4) for _ in range(5)], nn.Flatten(), nn.Linear(192, 4)))
        == []
    )


@pytest.mark.parametrize(
    ("plant", "cause"),
    [
        (lambda net: net[6].weight.zero_(), "zero_weights"),
        (lambda net: net[6].weight.fill_(0.01), "equal_units"),
        (lambda net: net[6].weight.mul_(1e9), "uninitialised"),
        (lambda net: net[6].weight.mul_(1e-9), "uninitialised"),
        (lambda net: net[6].weight.view(-1)[3].fill_(float("nan")), "weights_not_finite"),
        (lambda net: net[6].reset_parameters(), "not_loaded"),
        (lambda net: net[7].reset_running_stats(), "not_loaded"),
    ],
)
def test_a_layer_that_is_not_worth_training(plant, cause):
    net = deep()
    with torch.no_grad():
        plant(net)
    assert weights(net) == [cause]


def test_new_layers_at_the_end_are_a_head():
    net = deep()
    net = nn.Sequential(*net[:-1], nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    assert weights(net) == []


def test_zero_heads_and_adapters_are_made_so():
    net = deep()
    nn.init.zeros_(net[-1].weight)
    net.add_module("lora_up", nn.Linear(4, 4))
    nn.init.zeros_(net.lora_up.weight)
    net = nn.Sequential(net[:-1], nn.Linear(4, 4))
    assert "zero_weights" not in weights(nn.Sequential(deep()[:-1], nn.Linear(8, 4)))


def test_dead_rectifiers_and_equal_features():
    net = deep()
    with torch.no_grad():
        net[7].bias.fill_(-100.0)
        assert causes(net, images(), ["signal"]) == ["dead_units"]
        flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        flat[1].weight.zero_()
        flat[1].bias.fill_(1.0)
        assert causes(flat, images(), ["signal"]) == ["same_features"]


def test_a_signal_that_explodes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, CLASSES))
    with torch.no_grad():
        net[1].weight.mul_(1e6)
    assert causes(net, images(), ["signal"]) == ["signal_explodes"]


def test_rates_a_hundred_times_too_high_or_too_low():
    assert causes(toy(), images(32), ["rate"], optimizer=sgd(toy())) == []
    for lr, cause in [(1e3, "lr_too_high"), (3e-4, "lr_too_low")]:
        net = toy(norm=False)
        assert causes(net, images(32), ["rate"], optimizer=sgd(net, lr)) == [cause]


def fresh():
    net = deep()
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


def test_a_checkpoint_of_which_nothing_was_loaded():
    assert weights(fresh()) == ["not_loaded"]
    assert causes(fresh(), images(), ["weights"]) == []


def test_a_new_head_that_is_frozen():
    net = nn.Sequential(deep()[:-1], nn.Linear(8, 100))
    net[-1].requires_grad_(False)
    assert causes(net, images(), ["weights"]) == ["frozen_head"]
    net.requires_grad_(False)
    assert causes(net, images(), ["weights"]) == []


@pytest.mark.parametrize(("share", "found"), [(0.5, []), (0.8, ["note"]), (0.95, ["alarm"])])
def test_dropout_of_the_share_that_should_be_kept(share, found):
    net = toy(dropout=share)
    symptoms = examine(net, images(), checks=["weights"]).symptoms
    assert [one.severity for one in symptoms] == found
    assert all(one.cause == "dropout_too_strong" for one in symptoms)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda these: torch.optim.AdamW(these, lr=1e-3, weight_decay=10.0), True),
        (lambda these: torch.optim.SGD(these, lr=0.01, weight_decay=10.0), True),
        (lambda these: torch.optim.Adam(these, lr=1e-4, weight_decay=2.0), True),
        (lambda these: torch.optim.AdamW(these, lr=1e-3, weight_decay=0.3), False),
        (lambda these: torch.optim.SGD(these, lr=0.5, weight_decay=1e-3), False),
        (lambda these: torch.optim.SGD(these, lr=10.0, weight_decay=0.01), False),  # the rate is to blame
    ],
)
def test_weight_decay_that_wins_over_learning(make, found):
    net = toy()
    alarms = [
        one.cause for one in examine(net, images(), optimizer=make(net.parameters()), checks=["optimizer"]).alarms
    ]
    assert alarms == ["decay_too_strong"] * found


@pytest.mark.parametrize("own", [IMAGENET, HALF, None])
def test_bytes_divided_twice(own):
    pale = bright() / 255
    assert find_misfit(pale, own).cause == "range"
    if own is not None:
        assert find_misfit(normalised(pale, own.mean, own.std), own).cause == "range"


def test_a_model_that_scales_bytes_itself():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()

        def forward(self, pixels):
            return self.toy(pixels / 127.5 - 1)

    batch = (255 * bright(), torch.arange(12) % CLASSES)
    assert causes(Scaled(), batch, ["inputs"]) == []
    assert causes(toy(), batch, ["inputs"]) == ["range"]


def test_grey_copies_of_colour_pictures_are_meant():
    grey = [np.asarray(Image.fromarray(one).convert("L").convert("RGB")) for one in arrays()]
    assert check_pictures(arrays(), as_tensor(grey, IMAGENET), IMAGENET) == ()
    assert [one.cause for one in check_pictures(arrays(), 255 * as_tensor(grey, HALF), HALF)] == ["range"]


def test_statistics_that_lag_behind_the_weights_are_worth_a_note():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        net[2].running_mean.fill_(1e4)
        net[2].running_var.fill_(1e-2)
    (one,) = examine(net, images(), checks=["signal"]).symptoms
    assert (one.cause, one.severity) == ("same_features", "note")


@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda pixels: torch.ones(pixels.shape)])
def test_a_network_that_does_not_read_its_inputs(wrong):
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()

        def forward(self, pixels):
            return self.toy(wrong(pixels))

    assert causes(Blind(), images(), ["signal"]) == ["ignores_inputs"]


def test_a_head_of_zeros_behind_features_without_gradient_reads_its_inputs():
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()
            nn.init.zeros_(self.toy[-1].weight)

        def forward(self, pixels):
            with torch.no_grad():
                features = self.toy[:-1](pixels)
            return self.toy[-1](features)

    assert causes(Probe(), images(), ["signal"]) == []
