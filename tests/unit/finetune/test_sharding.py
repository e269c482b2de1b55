"""Sharing weights out among processes: what one process can tell of it; test_distributed.py has the rest."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.unit.finetune.training_toys import CLASSES, fit, make_backbone, make_module, make_trainer
from transferkit.core.errors import OptionError
from transferkit.finetune import TransferModule
from transferkit.finetune.recipe import make_optimizer
from transferkit.finetune.sharding import (
    Shards,
    blocks_of,
    fill_state,
    full_tensor,
    is_sharded,
    local,
    placed,
    sum_over_processes,
)
from transferkit.nn import TransferModel
from transferkit.options import Recipe
from transferkit.records import Preprocessing
from transferkit.workflow.session import load_backbone


@pytest.fixture
def mesh(tmp_path):
    """Of one process."""
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def test_what_is_gathered_is_the_model_that_was_shared_out_with_the_weights_of_now(mesh):
    model = make_module().model.eval().to(memory_format=torch.channels_last)
    before, trunk = copy.deepcopy(model), model.backbone.trunk
    shards = Shards(model, model.forward, mesh=mesh)
    assert all(map(is_sharded, model.parameters()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(shards(images), before(images))
    with torch.no_grad():
        model.classifier.linear.weight.add_(1)
        before.classifier.linear.weight.add_(1)
    shards.gather()
    assert not any(map(is_sharded, model.parameters()))
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [weight.stride() for weight in model.parameters()] == [weight.stride() for weight in before.parameters()]
    assert model.backbone.trunk is trunk
    assert model.backbone.pooled_stages(images, pooling="avg").keys() == {"stem", "middle", "top"}
    torch.testing.assert_close(model(images), before(images))
    copy.deepcopy(model).load_state_dict(before.state_dict())  # torch forbids the one, and fails in the other


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("timm/vit_tiny_patch16_224", ["patch_embed", *(f"blocks.{number}" for number in range(12)), "norm"]),
        (
            "torchvision/alexnet",
            ["features.0", "features.3", "features.6", "features.8", "features.10", "classifier.1"],
        ),
    ],
)
def test_blocks_are_what_is_called_and_small_where_that_can_be(name, paths):
    backbone = load_backbone(name, pretrained=False, image_size=64)
    found = blocks_of(backbone)
    assert found[: len(paths)] == paths
    whole_of_it = sum(parameter.numel() for parameter in backbone.trunk.parameters())
    inside = sum(parameter.numel() for path in found for parameter in backbone.trunk.get_submodule(path).parameters())
    assert 0.98 * whole_of_it < inside <= whole_of_it


class Twice(nn.Module):
    """Runs one layer twice, and ties the weights of two others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.ReLU())

    def forward(self, images):
        images = self.twice(self.twice(self.stem(images)))
        return self.last(self.other(self.one(images))).mean(dim=(2, 3))


def test_what_is_called_twice_or_shared_is_no_block(mesh):
    plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    backbone = load_backbone(Twice(), preprocessing=plain)
    assert blocks_of(backbone) == ["stem.0", "last.0"]
    model = TransferModel(backbone, stages=("top",), pooling="avg", classes=["a", "b"])
    expected = copy.deepcopy(model)
    images = torch.randn(2, 3, 32, 32)
    shards = Shards(model, model.forward, mesh=mesh)
    shards(images).sum().backward()
    expected(images).sum().backward()
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(mine.grad), theirs.grad)
    shards.gather()
    assert model.backbone.trunk.one.weight is model.backbone.trunk.other.weight


def test_single_numbers_are_refused_before_anything_is_changed(mesh):
    model = make_module().model
    model.backbone.trunk.register_parameter("gain", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(
        OptionError, match="trunk.gain is a scalar parameter, which cannot be sharded. Use trainer.stra"
    ):
        Shards(model, model.forward, mesh=mesh)
    assert not any(map(is_sharded, model.parameters()))


def test_a_pass_in_inference_mode_does_not_spoil_training(mesh):
    model = make_module().model
    shards = Shards(model, model.forward, mesh=mesh)
    with torch.inference_mode():
        shards(torch.randn(2, 3, 32, 32))
    shards(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(is_sharded(weight.grad) for weight in model.classifier.parameters())


def test_a_tensor_goes_where_another_is_and_comes_back(mesh):
    layer = fully_shard(nn.Linear(3, 2), mesh=mesh)
    moved = placed(torch.ones(2, 3), layer.weight)
    assert is_sharded(moved)
    assert is_sharded(placed(moved, layer.weight))
    torch.testing.assert_close(full_tensor(moved), torch.ones(2, 3))
    local(moved).zero_()
    torch.testing.assert_close(full_tensor(moved), torch.zeros(2, 3))


def test_what_each_process_computed_is_added_up_and_differentiated_by_its_own(mesh):
    part = torch.tensor(2.0, requires_grad=True)
    total = sum_over_processes(part * 3)
    total.backward()
    assert (total.item(), part.grad.item()) == (6, 3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_filled_state_is_the_one_that_an_optimizer_begins_with(name):
    """Though one parameter waits for its turn, and weights decay."""
    ends = []
    for filled in (False, True):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(3)) for _ in range(2)]
        groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.3} for weight in weights]
        optimizer = make_optimizer(Recipe(optimizer=name), groups)
        if filled:
            fill_state(optimizer)
            assert optimizer.state.keys() == set(weights)
        for step in range(4):
            for weight in weights[: 1 if step < 2 else 2]:
                weight.grad = torch.randn(3)
            optimizer.step()
            optimizer.zero_grad()
        ends.append([weight.detach() for weight in weights])
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_what_broke_off_in_shards_is_not_trained_on():
    module = make_module()
    module._shards = "of a fit that was interrupted"
    with pytest.raises(OptionError, match="The weights are still sharded.* Make a new TransferModule"):
        make_trainer(2).fit(module, [], [])
    with pytest.raises(OptionError, match="The weights are still sharded"):
        module.finish()


def test_an_old_torch_is_told_so(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    with pytest.raises(OptionError, match=r"needs torch 2.7 or newer, this is 2.6.1\+cpu. Use trainer.strategy=ddp"):
        Shards(make_module().model, lambda: None, mesh=None)


def test_layers_are_not_split(monkeypatch):
    module = make_module()
    module.trainer = make_trainer(1)
    strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    monkeypatch.setattr(pl.Trainer, "strategy", strategy)
    module._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    with pytest.raises(
        OptionError, match="Tensor parallelism is not supported: expected tensor_parallel_size=1, got 2"
    ):
        module.configure_model()


def test_a_checkpoint_is_loaded_without_a_trainer(tmp_path):
    module = make_module()
    fit(module, 2, [])
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = TransferModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=make_backbone(), strategy=module.plan, classes=CLASSES
    )
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
