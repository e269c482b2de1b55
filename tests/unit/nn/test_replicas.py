"""Copies that share a model's tensors, one to a thread; made again when the model has changed, and only then."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from transferkit.nn import Replicas

CPU = torch.device("cpu")


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def test_copies_share_tensors_and_nothing_else() -> None:
    model = make_model()
    replicas = Replicas(model)
    with replicas.on(CPU) as first, replicas.on(CPU) as second:
        objects = [{id(module) for module in one.modules()} for one in (model, first, second)]
        assert len(set.union(*objects)) == 3 * len(objects[0])
        for name, tensor in model.state_dict().items():
            for replica in (first, second):
                assert replica.state_dict()[name].data_ptr() == tensor.data_ptr()
        assert not any(module.training for module in (*first.modules(), *second.modules()))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_copy_is_used_again_but_never_by_two_at_once() -> None:
    replicas = Replicas(make_model())
    with replicas.on(CPU) as first:
        with replicas.on(CPU) as second:
            assert second is not first
        with replicas.on(CPU) as third:
            assert third is second


def test_a_copy_that_was_interrupted_is_not_used_again() -> None:
    replicas, used = Replicas(make_model()), []

    def interrupted() -> None:
        with replicas.on(CPU) as replica:
            used.append(replica)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with replicas.on(CPU) as replica:
        assert replica is not used[0]


def test_each_device_has_copies_of_its_own_and_moving_the_model_moves_none_of_them() -> None:
    model = make_model()
    replicas = Replicas(model)
    with replicas.on(CPU) as here, replicas.on(torch.device("meta")) as there:
        model.to("meta")
        assert {tensor.device.type for tensor in here.state_dict().values()} == {"cpu"}
        assert {tensor.device.type for tensor in there.state_dict().values()} == {"meta"}


def test_kernels_of_convolutions_lie_in_channels_last_and_the_models_own_stay() -> None:
    model = nn.Conv2d(3, 4, 3)
    with Replicas(model).on(CPU) as replica:
        assert replica.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(replica.weight, model.weight)
    assert model.weight.is_contiguous()


def test_modules_in_plain_lists_are_copied_with_the_others() -> None:
    model = make_model()
    model.listed = [model[0]]
    with Replicas(model).on(CPU) as replica:
        assert replica.listed[0] is replica[0]
        assert replica[0] is not model[0]


def add_a_hook(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda _module, _inputs, output: output + 1)


def replace_a_layer(model: nn.Sequential) -> None:
    model[3] = None
    model[3] = nn.Linear(3, 2)


def load(model: nn.Sequential) -> None:
    model.load_state_dict(make_model().state_dict())


def step(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight.mul_(2)


def set_data(model: nn.Sequential) -> None:
    model[0].weight.data = torch.zeros(3, 4)


def change_a_number(model: nn.Sequential) -> None:
    model[1].eps = 0.5


@pytest.mark.parametrize("edit", [add_a_hook, replace_a_layer, load, step, set_data, change_a_number])
def test_a_change_of_the_model_is_seen(edit: Callable[[nn.Sequential], None]) -> None:
    model, row = make_model(), torch.ones(1, 4)
    replicas = Replicas(model)

    def run() -> torch.Tensor:
        with replicas.on(CPU) as replica, torch.no_grad():
            found: torch.Tensor = replica(row)
            return found

    before = run()
    edit(model)
    after = run()
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(model).eval()(row))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda replicas: pickle.loads(pickle.dumps(replicas))])
def test_replicas_are_copied_with_their_model(copied: Callable[[Replicas], Replicas]) -> None:
    replicas = Replicas(make_model())
    with replicas.on(CPU):
        other = copied(replicas)
    assert other.model is not replicas.model
    with other.on(CPU) as replica:
        assert torch.equal(replica[0].weight, replicas.model[0].weight)
