"""Batch normalisation turned into group normalisation: layers whose answer is known, and other routes to the same."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from transferkit.core.errors import BackboneError, DataError, OptionError
from transferkit.nn.norm.conversion import _balance, _least_squares, _steady, find_batch_norms, fit_group_norms
from transferkit.nn.norm.standardised import StandardisedGroupNorm, fold, standardising


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def images_of(count: int = 12, side: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Fused(nn.BatchNorm2d):
    """As timm's: the activation comes along, and computes in place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU6(inplace=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def make_network(norm: type[nn.BatchNorm2d] = nn.BatchNorm2d, *, widths=(16, 24), classes: int = 5) -> nn.Sequential:
    """Two convolutions with statistics that fit its random weights; in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, bias=False),
            norm(widths[0]),
            nn.ReLU(),
            nn.Conv2d(widths[0], widths[1], 3),
            norm(widths[1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[1], classes),
        )
        for part in find_batch_norms(network).values():
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            part.momentum = None
        network.train()
        for seed in range(5):
            network(images_of(64, seed=100 + seed))
        return network.eval()


class Opposed(nn.Module):
    """Its channels come in pairs of opposite sign and of constant size: each image's statistics are those of all."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.pairs = channels // 2
        self.norm = nn.BatchNorm2d(channels)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 2.0, channels))
            self.norm.bias.copy_(torch.linspace(-1.0, 1.0, channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        signs = images[:, :1].sign().expand(-1, self.pairs, -1, -1)
        return self.norm(torch.cat([signs, -signs], dim=1)).mean((2, 3))


def test_where_every_image_has_the_statistics_of_the_source_the_conversion_is_exact():
    network = Opposed()
    images = images_of(8)
    expected = network.eval()(images)
    report = fit_group_norms(network, images)
    torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-4)
    fresh = images_of(5, seed=9)
    torch.testing.assert_close(network(fresh), Opposed().eval()(fresh), atol=1e-4, rtol=1e-4)
    assert report.agreement == 1
    assert report.layers[0].after < 1e-8


def test_without_the_images_own_statistics_the_network_is_as_it_was():
    for norm in (nn.BatchNorm2d, Fused):
        network = make_network(norm)
        expected = network(images_of(seed=5))
        report = fit_group_norms(network, images_of(), blend=0.0)
        torch.testing.assert_close(network(images_of(seed=5)), expected, atol=1e-3, rtol=1e-3)
        assert report.agreement == 1
        assert max(layer.after for layer in report.layers) < 1e-5


def test_the_fitted_network_is_nearer_than_one_that_takes_over_the_weights():
    network = make_network(Fused)
    report = fit_group_norms(network, images_of(64))
    assert [layer.path for layer in report.layers] == ["1", "4"]
    assert [layer.channels for layer in report.layers] == [16, 24]
    assert all(layer.after < layer.before for layer in report.layers)
    assert report.images == 64
    assert report.blend == 1


def test_a_smaller_blend_is_nearer():
    errors = []
    for blend in (1.0, 0.5, 0.1):
        report = fit_group_norms(make_network(), images_of(64), blend=blend)
        errors.append(report.layers[-1].after)
    assert errors == sorted(errors, reverse=True)


def test_slope_and_offset_are_those_of_numpy(generator):
    given, wanted = (torch.randn(6, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    counting = torch.rand(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    slope, offset = _least_squares(given, wanted, counting)
    for channel in range(3):
        roots = counting[:, channel].sqrt().flatten().numpy()
        columns = np.stack([given[:, channel].flatten().numpy(), np.ones(120)], axis=1) * roots[:, None]
        answer, *_ = np.linalg.lstsq(columns, wanted[:, channel].flatten().numpy() * roots, rcond=None)
        assert (float(slope[channel]), float(offset[channel])) == pytest.approx(tuple(answer), abs=1e-12)


def test_a_single_layer_gets_the_weight_of_least_squares_against_its_source():
    network = make_network()[:2]
    source = copy.deepcopy(network[1])
    images = images_of(20)
    fit_group_norms(network, images)
    with torch.no_grad():
        values = network[0](images)
        given, wanted = network[1].normalised(values), source(values)
    for channel in range(16):
        columns = np.stack([given[:, channel].flatten().numpy(), np.ones(given[:, channel].numel())], axis=1)
        answer, *_ = np.linalg.lstsq(columns, wanted[:, channel].flatten().numpy(), rcond=None)
        fitted = (network[1].weight[channel].item(), network[1].bias[channel].item())
        assert fitted == pytest.approx(tuple(answer), abs=1e-3)


@pytest.mark.parametrize("groups", [1, 2])
def test_behind_the_activation_every_channel_has_the_mean_of_the_source(groups):
    network, whole = make_network(Fused)[:5], make_network(Fused)[:5]
    fit_group_norms(network, images_of(40), groups=groups)
    expected = whole(images_of(40)).mean((0, 2, 3))
    torch.testing.assert_close(network(images_of(40)).mean((0, 2, 3)), expected, atol=2e-2, rtol=0)


def test_weights_of_channels_are_the_portfolio_of_least_variance(generator):
    squares = torch.rand(9, 5, generator=generator, dtype=torch.float64) * 0.2 + 1.0
    means = torch.zeros_like(squares)
    weights = _steady(means, squares).square()
    varying = squares - squares.mean(0)
    covariance = varying.T @ varying / 9
    ridge = covariance.trace() / 5
    # The other route: over channels instead of over images, (S + r) w = r 1.
    other = torch.linalg.solve(covariance + ridge * torch.eye(5, dtype=torch.float64), ridge * torch.ones(5).double())
    torch.testing.assert_close(weights / weights.sum(), other / other.sum())
    assert float((squares * weights).mean(1).var()) < float(squares.mean(1).var())
    assert float((squares * weights).mean(1).mean()) == pytest.approx(1)


def test_signs_are_as_good_as_any_single_flip_away(generator):
    means = torch.randn(30, 9, generator=generator, dtype=torch.float64) + 1
    signs = _balance(means)
    assert set(signs.tolist()) <= {-1.0, 1.0}
    best = float((means @ signs).square().sum())
    for channel in range(9):
        flipped = signs.clone()
        flipped[channel] *= -1
        assert float((means @ flipped).square().sum()) >= best - 1e-9
    assert best < float(means.sum(1).square().sum())


def test_folded_into_the_convolution_it_is_group_normalisation_and_no_more():
    network = make_network()
    fit_group_norms(network, images_of())
    for at in (0, 3):
        values = torch.randn(4, network[at].in_channels, 9, 9)
        conv, norm = fold(network[at], network[at + 1])
        assert type(norm) is nn.GroupNorm
        expected = network[at + 1](network[at](values))
        torch.testing.assert_close(norm(conv(values)), expected, atol=1e-4, rtol=1e-4)
    assert network[0].bias is None


def test_what_cannot_be_folded_is_said():
    with pytest.raises(OptionError, match="Only blend=1 is group normalisation, but this layer has 0.5"):
        fold(nn.Conv2d(3, 8, 1), StandardisedGroupNorm(1, 8, blend=0.5))
    with pytest.raises(OptionError, match="has 4 output channels, but the norm takes 8"):
        fold(nn.Conv2d(3, 4, 1), StandardisedGroupNorm(1, 8))


@pytest.mark.parametrize("blend", [1.0, 0.4])
@pytest.mark.parametrize("groups", [1, 4])
def test_an_image_is_treated_alike_whatever_comes_with_it(blend, groups):
    network = make_network(Fused)
    fit_group_norms(network, images_of(), groups=groups, blend=blend)
    network.train()
    images = images_of(6, seed=3)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_blend_is_continuous_at_group_normalisation(groups):
    images = torch.randn(3, 8, 5, 5) * 3 + 1
    near = StandardisedGroupNorm(groups, 8, blend=1 - 1e-6)
    torch.testing.assert_close(near(images), nn.GroupNorm(groups, 8)(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(StandardisedGroupNorm(groups, 8, blend=0)(images), images, atol=1e-4, rtol=1e-4)


def test_another_memory_layout_changes_nothing():
    plain, other = make_network(Fused), make_network(Fused).to(memory_format=torch.channels_last)
    images = images_of()
    first = fit_group_norms(plain, images)
    second = fit_group_norms(other, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other(images), plain(images), atol=1e-3, rtol=1e-3)
    assert first.layers[-1].after == pytest.approx(second.layers[-1].after, rel=1e-2)


def test_fine_grids_are_thinned_and_end_near():
    network, images = make_network()[:2], images_of(20, side=96)
    report = fit_group_norms(network, images)
    assert 0 < report.layers[0].after < report.layers[0].before


def test_only_normalisation_changes_and_modes_stay():
    network = make_network(Fused).train()
    network[3].eval()
    network[4].weight.requires_grad_(False)
    network[4].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit_group_norms(network, images_of())
    after = network.state_dict()
    for name, value in before.items():
        if name.split(".")[0] not in ("1", "4"):
            assert torch.equal(after[name], value)
    assert network.training
    assert not network[3].training
    assert network[1].weight.requires_grad
    assert not network[4].weight.requires_grad
    assert isinstance(network[4].act, nn.ReLU6)


def test_only_the_layers_named_are_replaced():
    network = make_network()
    report = fit_group_norms(network, images_of(), paths=["4"])
    assert type(network[1]) is nn.BatchNorm2d
    assert type(network[4]) is StandardisedGroupNorm
    assert [layer.path for layer in report.layers] == ["4"]


def test_the_same_twice():
    first, second = make_network(Fused), make_network(Fused)
    assert fit_group_norms(first, images_of()) == fit_group_norms(second, images_of())
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_channel_that_is_silent_keeps_the_scale_of_its_source():
    network = make_network()
    with torch.no_grad():
        network[3].weight[7] = 0
        network[3].bias[7] = 0.25
    expected = network[4](network[3](torch.zeros(1, 16, 5, 5)))[0, 7]
    source = copy.deepcopy(network[4])
    fit_group_norms(network, images_of())
    norm = network[4]
    kept = (norm.weight[7] * norm.scale[7]).detach()
    assert float(kept) == pytest.approx(float(source.weight[7].detach() / (source.running_var[7] + source.eps).sqrt()))
    seen = norm(network[3](network[2](network[1](network[0](images_of())))))[:, 7]
    assert seen.mean().item() == pytest.approx(expected.mean().item(), abs=1e-3)


def test_a_residual_network_of_torchvision_can_be_converted():
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet18(weights=None).eval()
    report = fit_group_norms(network, images_of(4, side=32))
    assert len(report.layers) == 20
    assert not find_batch_norms(network)
    assert bool(network(images_of(2, side=32)).isfinite().all())


class Refusing(nn.Module):
    """Has a layer that it never calls, or fails behind one."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.used, self.idle, self.fails = nn.BatchNorm2d(3), nn.BatchNorm2d(3), fails

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.used(images)
        if self.fails:
            raise ValueError("no further")
        return output


@pytest.mark.parametrize(
    ("fails", "match"), [(True, "no further"), (False, "such as 'idle', so they cannot be fitted")]
)
def test_what_cannot_be_converted_stays_as_it_was(fails, match):
    network = Refusing(fails=fails)
    used, idle = network.used, network.idle
    with pytest.raises(BackboneError, match=match):
        fit_group_norms(network, images_of())
    assert network.used is used
    assert network.idle is idle
    assert network.training


def test_images_must_be_there_and_finite():
    network = make_network()
    with pytest.raises(DataError, match=r"must be \(N, ...\) float, N >= 1, got \(0, 3, 8, 8\)"):
        fit_group_norms(network, torch.zeros(0, 3, 8, 8))
    with pytest.raises(DataError, match="got .* torch.uint8"):
        fit_group_norms(network, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    broken = images_of()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite; leave those images out"):
        fit_group_norms(network, broken)
    with pytest.raises(BackboneError, match="cannot take images of shape"):
        fit_group_norms(network, torch.zeros(2, 4, 16, 16))
    assert list(find_batch_norms(network)) == ["1", "4"]


def test_options_out_of_range_are_errors():
    network = make_network()
    with pytest.raises(OptionError, match=r"blend must be in \[0, 1\], got 1.5"):
        fit_group_norms(network, images_of(), blend=1.5)
    with pytest.raises(OptionError, match="Groups must be >= 1, got 0"):
        fit_group_norms(network, images_of(), groups=0)
    with pytest.raises(OptionError, match="8 channels cannot be divided into 3 equal groups"):
        StandardisedGroupNorm(3, 8)
    with pytest.raises(OptionError, match="Unknown batch normalisation '5'"):
        fit_group_norms(network, images_of(), paths=["5"])
    with pytest.raises(BackboneError, match="no BatchNorm2d with running statistics"):
        fit_group_norms(nn.Sequential(nn.Conv2d(3, 4, 1)), images_of())
    assert list(find_batch_norms(network)) == ["1", "4"]


def test_groups_that_do_not_divide_give_way_to_the_nearest_number_that_does():
    network = make_network(widths=(16, 20))
    fit_group_norms(network, images_of(), groups=8)
    assert [network[at].num_groups for at in (1, 4)] == [8, 10]


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3)], ids=len)
def test_a_blend_is_for_any_number_of_axes(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = standardising(nn.BatchNorm1d(8), groups=2, blend=0.5)
    grouped = (values / math.sqrt(1 + 1e-5)).reshape(5, 2, -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    expected = ((grouped - 0.5 * mean) / (0.5 + 0.5 * variance + layer.eps).sqrt()).view(shape)
    torch.testing.assert_close(layer(values), expected)
