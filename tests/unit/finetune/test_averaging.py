"""Averages of weights: against torch's AveragedModel and brute force; what is swapped in comes out bit for bit."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.unit.nn.toy_networks import copy_of, same, stir, two_norms
from transferkit.core.errors import CheckpointError, OptionError
from transferkit.finetune.averaging import WeightAverage, swa_start
from transferkit.nn.norm import recalibrate_statistics


def names_of(network: nn.Module) -> list[str]:
    return list(network.state_dict())


@pytest.mark.parametrize("kind", ["ema", "swa"])
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=30), decay=st.floats(0, 0.999))
def test_an_average_is_the_weighted_sum_that_its_rule_says(kind, values, decay):
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(["weight"], kind=kind, decay=decay)
    for value in values:
        model.weight.data.fill_(value)
        average.update(model)
    # how much each value is worth in the end: its own share, times what every later update keeps
    kept = [t / (t + 1) if kind == "swa" else min(decay, (1 + t) / (10 + t)) for t in range(len(values))]
    kept[0] = 0.0
    shares = [(1 - kept[t]) * np.prod(kept[t + 1 :]) for t in range(len(values))]
    assert sum(shares) == pytest.approx(1)
    with average.swapped(model):
        assert model.weight.item() == pytest.approx(np.dot(shares, values), abs=1e-9)


def test_an_equal_average_is_that_of_torchs_averaged_model():
    network = two_norms()
    ours, torchs_own = WeightAverage(names_of(network), kind="swa"), AveragedModel(network)
    for seed in range(7):
        stir(network, seed)
        ours.update(network)
        torchs_own.update_parameters(network)
    ours.write(network)
    for one, other in zip(network.parameters(), torchs_own.module.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_statistics_are_averaged_with_the_weights_and_counts_are_copied():
    network = two_norms()
    average = WeightAverage(names_of(network), kind="swa")
    means = []
    for seed in range(4):
        stir(network, seed)
        means.append(network[1].running_mean.clone())
        average.update(network)
    average.write(network)
    torch.testing.assert_close(network[1].running_mean, torch.stack(means).mean(dim=0))
    assert network[1].num_batches_tracked.item() == 4


def test_a_constant_stays_what_it_is():
    network = two_norms()
    before = copy_of(network)
    for kind in ("ema", "swa"):
        average = WeightAverage(names_of(network), kind=kind)
        for _ in range(5):
            average.update(network)
        average.write(network)
        assert same(before, copy_of(network))


def test_only_what_is_named_is_kept_and_written():
    network = two_norms()
    average = WeightAverage(["8.weight", "8.bias"])
    for seed in range(3):
        stir(network, seed)
        average.update(network)
    raw = copy_of(network)
    average.write(network)
    differ = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, raw[name])}
    assert differ == {"8.weight", "8.bias"} == set(average.state_dict()["averages"])


class StopError(Exception):
    """Raised by tests."""


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("fails", [False, True])
def test_swapped_weights_come_out_again_bit_for_bit(kind, fails):
    network = two_norms()
    average = WeightAverage(names_of(network), kind=kind)
    for seed in range(3):
        stir(network, seed)
        average.update(network)
    raw = copy_of(network)
    try:
        with average.swapped(network):
            assert not torch.equal(network[0].weight, raw["0.weight"])
            stir(network, 9)  # what is done to them meanwhile is undone as well
            if fails:
                raise StopError
    except StopError:
        pass
    assert same(raw, copy_of(network))


def test_training_does_not_notice_that_averages_were_swapped_in():
    def train(*, watch: bool) -> dict[str, torch.Tensor]:
        network = two_norms()
        average = WeightAverage(names_of(network))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
            if watch:
                average.update(network)
                with average.swapped(network), torch.no_grad():
                    network.eval()(images)
                network.train()
        return copy_of(network)

    assert same(train(watch=False), train(watch=True))


def test_before_the_first_update_the_average_is_the_model_itself():
    network = two_norms()
    raw = copy_of(network)
    average = WeightAverage(names_of(network))
    with average.swapped(network):
        assert same(raw, copy_of(network))
    average.write(network)
    assert same(raw, copy_of(network))


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_resumed_average_is_bit_for_bit_that_of_the_whole_run(kind, stop):
    network = two_norms()
    whole, halves = (WeightAverage(names_of(network), kind=kind) for _ in range(2))
    for seed in range(8):
        if seed == stop:
            state = copy.deepcopy(halves.state_dict())
            halves = WeightAverage(names_of(network), kind=kind)
            halves.load_state_dict(state)
        stir(network, seed)
        whole.update(network)
        halves.update(network)
    assert whole.count == halves.count == 8
    assert same(whole.state_dict()["averages"], halves.state_dict()["averages"])


def test_a_state_is_a_copy_that_later_updates_leave_alone():
    network = two_norms()
    average = WeightAverage(names_of(network))
    average.update(network)
    state = average.state_dict()
    stir(network, 0)
    average.update(network)
    assert same(state["averages"], copy_of(two_norms()))
    average.load_state_dict(state)
    stir(network, 1)
    average.update(network)
    assert same(state["averages"], copy_of(two_norms()))


def test_an_average_that_begins_in_inference_mode_can_go_on_outside_of_it():
    network = two_norms()
    average = WeightAverage(names_of(network))
    with torch.inference_mode():
        average.update(network)
        with average.swapped(network):
            pass
    stir(network, 0)
    average.update(network)
    average.write(network)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert network[0].weight.grad is not None


def test_half_precision_weights_are_averaged_in_full():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = WeightAverage(["weight"], decay=0.999)
    model.weight.data.fill_(1.0)
    average.update(model)
    average.count = 10_000  # the decay's warm-up is over
    model.weight.data.fill_(1.0078125)  # the next number up
    for _ in range(10_000):
        average.update(model)
    kept = average.state_dict()["averages"]["weight"]
    assert kept.dtype == torch.float32
    assert kept.item() == pytest.approx(1.0078125, abs=1e-4)
    average.write(model)
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["weight"], {"kind": "emma"}, "Unknown average of weights 'emma'. Closest known: ema."),
        (["weight"], {"decay": 1.0}, "must be in [0, 1), got 1.0"),
        ([], {}, "nothing to average"),
    ],
)
def test_an_average_that_cannot_be_is_refused(names, options, message):
    with pytest.raises(OptionError) as caught:
        WeightAverage(names, **options)
    assert message in str(caught.value)


def test_tensors_that_a_model_lacks_are_named():
    with pytest.raises(OptionError, match="Unknown tensor 'wieght'. Closest known: weight"):
        WeightAverage(["wieght", "bias"]).update(nn.Linear(1, 1))


def test_a_state_of_other_tensors_is_refused():
    average = WeightAverage(["weight"])
    average.update(nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="1 differ, such as 'bias'"):
        WeightAverage(["weight", "bias"]).load_state_dict(average.state_dict())


@given(st.integers(1, 500), st.floats(0.001, 1.0))
def test_swa_averages_its_share_of_the_epochs_and_at_least_one(epochs, share):
    averaged = epochs - swa_start(epochs, share=share)
    assert 1 <= averaged <= epochs
    assert averaged <= max(1, share * epochs)
    assert averaged > share * epochs - 1


def test_a_share_of_no_epochs_is_refused():
    with pytest.raises(OptionError, match="in \\(0, 1\\], got 0"):
        swa_start(10, share=0)


def batches(count: int = 3, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 8, 8, generator=generator) * (1 + i) + i for i in range(count)]


def test_recalibrated_averages_come_out_again_with_the_raw_statistics():
    network = two_norms()
    average = WeightAverage(names_of(network), kind="swa")
    for seed in range(3):
        stir(network, seed)
        average.update(network)
    raw = copy_of(network)
    with average.swapped(network):
        averaged = network[1].running_mean.clone()
        recalibrate_statistics(network, itertools.islice(batches(), 2))
        assert not torch.equal(averaged, network[1].running_mean)
    assert same(raw, copy_of(network))
