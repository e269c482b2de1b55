"""The layers whose statistics are compared, and what is read there, against plain hooks."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from tests.unit.nn.toy_networks import Isotropic, Pyramid, spec_of
from transferkit.nn import Backbone


def trained(network: nn.Module) -> nn.Module:
    """Statistics that are not the initial ones, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Deep(nn.Module):
    """Two normalisations in the second stage, none in the third, one over vectors behind the average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.bare = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.last(self.bare(self.middle(self.stem(x)))).mean((2, 3)))


def test_the_last_norm_of_each_stage_is_read_and_stages_without_one_are_left_out():
    backbone = Backbone(trained(Deep()), spec_of())
    assert [stage.name for stage in backbone.stages] == ["stem", "middle", "bare", "last", "top"]
    assert [(tap.stage, tap.path) for tap in backbone.moment_taps] == [
        ("stem", "stem.1"),
        ("middle", "middle.4"),
        ("top", "norm"),
    ]
    norm = backbone.trunk.get_submodule("middle.4")
    mean, variance = backbone.source_moments()["middle"]
    torch.testing.assert_close(torch.from_numpy(mean), norm.running_mean)
    torch.testing.assert_close(torch.from_numpy(variance), norm.running_var)
    assert backbone.moment_widths() == {"stem": 8, "middle": 16, "top": 32}


def test_moments_are_those_of_what_goes_into_the_norm():
    backbone = Backbone(trained(Deep()), spec_of())
    seen: dict[str, torch.Tensor] = {}
    for path in ("middle.4", "norm"):
        backbone.trunk.get_submodule(path).register_forward_pre_hook(
            lambda _m, inputs, path=path: seen.__setitem__(path, inputs[0].clone())
        )
    with torch.no_grad(), backbone.recording_moments() as moments:
        backbone(images().contiguous(memory_format=torch.channels_last))
    grid = seen["middle.4"]
    torch.testing.assert_close(moments["middle"], torch.cat([grid.mean((2, 3)), (grid**2).mean((2, 3))], dim=1))
    torch.testing.assert_close(moments["top"], torch.cat([seen["norm"], seen["norm"] ** 2], dim=1))
    assert {tensor.shape[0] for tensor in moments.values()} == {5}


def test_of_images_that_a_norm_was_trained_on_the_moments_are_its_running_statistics():
    network = Pyramid()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last batch alone
    network.train()
    with torch.no_grad():
        for _ in range(3):  # norms behind others see what those in front of them make of the batch
            network(images(64))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # tracing must not move them
    backbone = Backbone(network, spec_of())
    with torch.no_grad(), backbone.recording_moments() as moments:
        backbone(images(64))
    for stage, (mean, variance) in backbone.source_moments().items():
        found, square = moments[stage].mean(dim=0).chunk(2)
        torch.testing.assert_close(found, torch.from_numpy(mean), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(square - found**2, torch.from_numpy(variance), rtol=5e-2, atol=2e-2)


def test_without_trained_norms_the_stages_outputs_are_read_and_there_is_no_source():
    for network in (Pyramid(), Isotropic(4)):  # norms with their initial statistics remember nothing
        backbone = Backbone(network, spec_of())
        assert [tap.stage for tap in backbone.moment_taps] == [stage.name for stage in backbone.stages]
        assert backbone.source_moments() == {}
        with torch.no_grad(), backbone.recording_moments() as moments:
            stages = backbone.forward_stages(images())
        for name, output in stages.items():
            flat = output.reshape(*output.shape[:2], -1)
            expected = torch.cat([flat.mean(dim=2), (flat**2).mean(dim=2)], dim=1)
            torch.testing.assert_close(moments[name], expected)


def test_a_norm_that_runs_twice_does_not_count():
    class Shared(Pyramid):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem[1](self.stem(x))
            return self.last(self.middle(x)).mean((2, 3))

    backbone = Backbone(trained(Shared()), spec_of())
    assert "stem.1" not in {tap.path for tap in backbone.moment_taps}


def test_statistics_are_copies():
    backbone = Backbone(trained(Pyramid()), spec_of())
    before = {stage: mean.copy() for stage, (mean, _) in backbone.source_moments().items()}
    kept = backbone.source_moments()
    for mean, _ in kept.values():
        mean += 1
    assert all((backbone.source_moments()[stage][0] == before[stage]).all() for stage in before)


def test_nothing_is_recorded_outside_the_block_even_after_an_exception():
    backbone = Backbone(trained(Pyramid()), spec_of())
    with pytest.raises(KeyError), backbone.recording_moments() as moments:
        raise KeyError
    with torch.no_grad():
        backbone(images())
    assert moments == {}
    with backbone.recording_moments() as empty:
        pass
    assert empty == {}


def test_threads_do_not_mix_up_their_moments():
    backbone = Backbone(trained(Pyramid()), spec_of())
    wrong: list[int] = []

    def work(number: int) -> None:
        batch = torch.full((2, 3, 32, 32), float(number))
        for _ in range(10):
            with torch.no_grad(), backbone.recording_moments() as moments:
                backbone(batch)
            if not torch.equal(moments["top"], alone[number]):
                wrong.append(number)

    alone = {}
    for number in range(4):
        with torch.no_grad(), backbone.recording_moments() as moments:
            backbone(torch.full((2, 3, 32, 32), float(number)))
        alone[number] = moments["top"]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
