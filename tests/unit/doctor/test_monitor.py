"""What a monitor records, against the same numbers computed by hand."""

from __future__ import annotations

import copy
import csv
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.doctor.toys import images, sgd, toy
from transferkit.core.errors import OptionError
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.monitor_reading import record_monitor
from transferkit.doctor.step_measures import group_parameters


def train(model, optimizer, steps, monitor=None):
    pixels, labels = images()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels)
        if monitor is not None:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()


def test_updates_weights_and_gradients_are_those_of_the_step():
    model = toy(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        train(model, optimizer, 1, monitor)
    (step,) = monitor.steps
    head = step.groups["9"]
    names = ["9.weight", "9.bias"]
    after = dict(model.named_parameters())
    change = math.sqrt(sum(float((after[n].detach() - before[n]).pow(2).sum()) for n in names))
    assert head.update == pytest.approx(change, rel=1e-5)
    assert head.weight == pytest.approx(math.sqrt(sum(float(before[n].pow(2).sum()) for n in names)), rel=1e-5)
    assert head.update == pytest.approx(0.05 * head.gradient, rel=1e-4)
    assert head.ratio == pytest.approx(head.update / head.weight)
    assert head.lr == 0.05
    assert step.loss == pytest.approx(float(step.loss))
    assert sum(head.gradients.counts) == sum(after[n].numel() for n in names)


def test_only_every_nth_step_is_monitored():
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=4) as monitor:
        train(model, optimizer, 10, monitor)
    assert [one.step for one in monitor.steps] == [0, 4, 8]
    assert monitor.steps[0].groups["0"].noise is None
    assert monitor.steps[1].groups["0"].noise >= 0


def test_training_is_the_same_with_a_monitor():
    weights = []
    for watched in (False, True):
        model = toy()
        optimizer = sgd(model)
        torch.manual_seed(5)
        if watched:
            with TrainingMonitor(model, optimizer, every=2) as monitor:
                train(model, optimizer, 6, monitor)
        else:
            train(model, optimizer, 6)
        weights.append(model[-1].weight.detach())
    assert torch.equal(*weights)


def test_the_noise_of_equal_gradients_is_zero_and_of_independent_ones_is_one():
    model = nn.Linear(2000, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    for equal in (True, False):
        with TrainingMonitor(model, optimizer, every=2) as monitor:
            fixed = torch.randn(1, 2000, generator=generator)
            for _ in range(3):
                model.weight.grad = fixed.clone() if equal else torch.randn(1, 2000, generator=generator)
                optimizer.step()
        assert monitor.steps[1].groups["weight"].noise == pytest.approx(0 if equal else 1, abs=0.1)


def test_dead_and_saturated_units_are_seen():
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 4, 3), nn.ReLU6(), nn.Flatten(), nn.LazyLinear(4)
    )
    model(images()[0])
    with torch.no_grad():
        model[0].bias[:3] = -1e3
        model[2].bias.fill_(1e3)
    optimizer = sgd(model, lr=1e-3)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    layers = monitor.steps[0].layers
    assert layers["1"].dead == pytest.approx(0.3)
    assert layers["3"].saturated == 1.0
    assert set(layers) == {"0", "1", "2", "3", "5"}


def test_drift_of_running_statistics():
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        train(model, optimizer, 3)
    drifts = [one.drift["1"] for one in monitor.steps]
    assert drifts[0] > 0
    assert drifts == sorted(drifts)
    assert set(monitor.steps[0].drift) == {"1", "4"}


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = toy()
    optimizer = sgd(model)
    monitor = TrainingMonitor(model, optimizer, every=1)

    def broken():
        with monitor:
            train(model, optimizer, 1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        broken()
    assert not any(module._forward_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 2)
    assert len(monitor.steps) == 1


def test_frozen_parameters_are_no_group():
    model = toy()
    model[0].requires_grad_(False)
    assert "0" not in group_parameters(model)
    model = nn.Sequential(nn.Linear(2, 2))
    assert list(group_parameters(model)) == ["0"]


def test_groups_of_ones_own():
    model = toy()
    monitor = TrainingMonitor(model, sgd(model), groups={"first": ["0.weight"], "rest": ["9.weight", "9.bias"]})
    monitor.close()
    with pytest.raises(OptionError, match="No parameter is called '77.weight'"):
        TrainingMonitor(model, sgd(model), groups={"first": ["77.weight"]})
    with pytest.raises(OptionError, match="every must be >= 1, got 0"):
        TrainingMonitor(model, sgd(model), every=0)


def test_the_file_has_a_row_for_each_step_and_group(tmp_path):
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=2) as monitor:
        train(model, optimizer, 4, monitor)
    monitor.write_csv(tmp_path / "steps.csv")
    rows = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(group_parameters(model))
    assert float(rows[0]["ratio"]) == pytest.approx(float(rows[0]["update"]) / float(rows[0]["weight"]))


def test_a_step_with_a_closure_is_recorded():
    model = toy(dropout=0.0)
    optimizer = sgd(model)
    pixels, labels = images()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels)
        loss.backward()
        return loss

    with TrainingMonitor(model, optimizer, every=1) as monitor:
        for _ in range(2):
            optimizer.step(closure)
    assert len(monitor.steps) == 2
    assert monitor.steps[0].groups["9"].update > 0


def test_copies_and_sparse_gradients_do_not_disturb():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        F.cross_entropy(model(torch.tensor([[1, 2], [3, 4]])), torch.tensor([0, 1])).backward()
        copy.deepcopy(model)(torch.tensor([[5, 6]]))
        optimizer.step()
    assert monitor.steps[0].groups["0"].update > 0


def test_copies_and_files_of_a_monitored_model_have_no_hooks():
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1, monitor)
        copied, stream = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        for other in (copied, torch.load(stream, weights_only=False), pickle.loads(pickle.dumps(model))):
            assert not any(one._forward_hooks or one._forward_pre_hooks for one in other.modules())
            other.train()(images()[0])
        assert not monitor._layers
        pickle.loads(pickle.dumps(optimizer))


def test_only_monitored_steps_have_a_hook_of_torch():
    hooks = nn.modules.module._global_forward_hooks
    model = toy()
    optimizer, before = sgd(model), len(hooks)
    with TrainingMonitor(model, optimizer, every=3) as monitor:
        counts = []
        for _ in range(4):
            counts.append(len(hooks) - before)
            train(model, optimizer, 1, monitor)
    assert counts == [1, 0, 0, 1]
    assert len(hooks) == before


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches():
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=2) as monitor:
        for step in range(3):
            for loss in (1.0, 2.0, 6.0):
                monitor.observe(loss + step)
            optimizer.step()
    assert [one.loss for one in monitor.steps] == [3.0, 5.0]


def test_gradients_that_are_not_finite_are_counted_apart():
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        model.weight.grad = torch.tensor([[math.nan, math.inf, 0.0, 2e-3]])
        optimizer.step()
    found = monitor.steps[0].groups["weight"].gradients
    assert found.not_finite == 2
    assert found.counts[0] == 1
    (at,) = [n for n, count in enumerate(found.counts) if count and n]
    assert found.edges[at] <= 2e-3 < found.edges[at + 1]


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_batch_or_one_image_is_no_error(count):
    model = toy(norm=False)
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        model.train()(images()[0][:count]).sum().backward()
        optimizer.step()
    assert monitor.steps[0].layers.keys() == ({"0", "1", "2", "3", "7"} if count else set())
    assert all(one.dead is None for one in monitor.steps[0].layers.values())


def test_features_move_only_where_weights_do():
    model = toy(dropout=0.0)
    model[0].requires_grad_(False)
    optimizer = sgd(model, lr=0.5)
    stages = {"first": "0", "second": "3", "head": "9"}
    with TrainingMonitor(model, optimizer, every=2, stages=stages) as monitor:
        train(model, optimizer, 4, monitor)
    assert list(monitor.similarities) == [4]
    found = monitor.similarities[4]
    assert found["first"] == pytest.approx(1.0)
    assert found["second"] < 0.999
    assert monitor.compared_images == 16


def test_a_monitor_that_goes_on_records_what_an_uninterrupted_one_does():
    def run(model, optimizer, monitor, steps):
        for _ in range(steps):
            train(model, optimizer, 1, monitor)
        monitor.forget_gradients()

    model = toy(dropout=0.0)
    optimizer = sgd(model)
    whole = TrainingMonitor(model, optimizer, every=3)
    run(model, optimizer, whole, 5)
    run(model, optimizer, whole, 5)
    whole.compare_features()
    whole.close()
    model = toy(dropout=0.0)
    optimizer = sgd(model)
    first = TrainingMonitor(model, optimizer, every=3)
    run(model, optimizer, first, 5)
    first.close()
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    second = TrainingMonitor(model, optimizer, every=3)
    second.load_state_dict(torch.load(stream, weights_only=True))
    run(model, optimizer, second, 5)
    second.compare_features()
    second.close()
    assert second.similarities == whole.similarities
    assert record_monitor(second, {"0": "0"}) == record_monitor(whole, {"0": "0"})
    assert second.steps[-1] == whole.steps[-1]


def test_a_network_of_one_large_part_is_divided_further():
    inner = nn.Sequential(*(nn.Linear(30, 30) for _ in range(3)))
    model = nn.Sequential(nn.Linear(3, 30), inner, nn.Linear(30, 2))
    assert list(group_parameters(model)) == ["0", "1.0", "1.1", "1.2", "2"]


def test_of_a_compiled_network_only_parameters_are_measured():
    model = toy()
    model.compile()
    monitor = TrainingMonitor(model, sgd(model), every=1)
    monitor.close()
    assert monitor.missing == ("The network is compiled: outputs of its layers and features are not measured.",)
