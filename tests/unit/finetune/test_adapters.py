"""Adapters begin as nothing, learn, and vanish into the weights; what they were put into is as it was."""

from __future__ import annotations

import copy
import functools
import sys

import pytest
import torch
from torch import nn

from transferkit import zoo
from transferkit.core.errors import MissingDependencyError, OptionError
from transferkit.finetune.adapters import add_adapters, find_targets, is_adapter, merge_adapters
from transferkit.finetune.freeze import FreezePlan
from transferkit.nn import Backbone
from transferkit.records import Decision
from transferkit.strategies import STRATEGIES, Adapters

EIGHT = Adapters(rank=8, alpha=16)
SIDES = {"timm/tf_efficientnet_lite0": 64, "timm/test_vit": 160, "torchvision/resnet18": 64}


class Block(nn.Module):
    """One of everything that can and cannot have an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, stride=4)
        self.depthwise = nn.Conv2d(32, 32, 1, groups=32)
        self.strided = nn.Conv2d(32, 40, 1, stride=2)
        self.taken = nn.Linear(40, 40)
        self.linear = nn.Linear(40, 40)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(40, 40))
        self.narrow = nn.Linear(40, 9)
        self.twice = nn.Linear(40, 40)
        self.same = self.twice
        self.tied = nn.Linear(40, 40)
        self.tied_too = nn.Linear(40, 40)
        self.tied_too.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(40, 2, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = self.strided(self.depthwise(self.patch(images)))
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = self.linear(nn.functional.linear(tokens, self.taken.weight))
        tokens = self.tied_too(self.tied(self.same(self.twice(self.normed(tokens)))))
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return torch.cat([tokens.mean(1), self.narrow(tokens).mean(1)], 1)


@functools.cache
def template(name: str) -> Backbone:
    network, spec = zoo.load(name, pretrained=False)
    return Backbone(network, spec, size=SIDES[name]).without_head()


def load_backbone(name: str) -> Backbone:
    return copy.deepcopy(template(name))


def load_trunk(name: str) -> nn.Module:
    return load_backbone(name).trunk


def images_of(side: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def disturb(trunk: nn.Module, scale: float = 0.02) -> None:
    """As if the adapters had learned something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if is_adapter(name):
                parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(params=SIDES)
def named_trunk(request) -> tuple[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param, load_trunk(request.param).eval()


def test_merged_equals_unmerged_and_the_architecture_is_the_plain_one(named_trunk):
    name, trunk = named_trunk
    images = images_of(SIDES[name])
    plain = {key: value.clone() for key, value in trunk.state_dict().items()}
    before = trunk(images)
    paths = add_adapters(trunk, EIGHT, size=SIDES[name])
    torch.testing.assert_close(trunk(images), before, rtol=0, atol=0)
    disturb(trunk)
    adapted = trunk(images)
    assert (adapted - before).abs().max() > 1e-3
    assert merge_adapters(trunk) == paths
    torch.testing.assert_close(trunk(images), adapted, rtol=1e-5, atol=1e-5)
    merged = trunk.state_dict()
    assert list(merged) == list(plain)
    assert {key for key, value in merged.items() if not value.equal(plain[key])} == {f"{path}.weight" for path in paths}
    assert not hasattr(trunk, "peft_config")


def test_a_saved_model_is_complete(named_trunk):
    name, trunk = named_trunk
    fresh = load_trunk(name).eval()
    add_adapters(trunk, EIGHT, size=SIDES[name])
    disturb(trunk)
    merge_adapters(trunk)
    fresh.load_state_dict(trunk.state_dict(), strict=True)
    images = images_of(SIDES[name])
    torch.testing.assert_close(fresh(images), trunk(images), rtol=0, atol=0)


def test_a_step_on_the_adapters_alone_moves_each_of_them_and_nothing_else(named_trunk):
    name, trunk = named_trunk
    paths = add_adapters(trunk, EIGHT, size=SIDES[name])
    before = {key: value.clone() for key, value in trunk.named_parameters()}
    adapters = {key: value for key, value in trunk.named_parameters() if is_adapter(key)}
    assert len(adapters) == 2 * len(paths)
    optimizer = torch.optim.SGD(adapters.values(), lr=0.1)
    for _ in range(2):  # the second half of an update moves first, the first half only once the second is not zero
        optimizer.zero_grad()
        trunk(images_of(SIDES[name])).square().sum().backward()
        optimizer.step()
    moved = {key for key, value in trunk.named_parameters() if not value.equal(before[key])}
    assert moved == set(adapters)


def test_layers_that_cannot_have_one_are_left_alone():
    assert find_targets(Block(), rank=8, size=32) == ("strided", "linear")
    assert find_targets(Block(), rank=4, size=32) == ("strided", "linear", "narrow")


def test_a_layer_that_somebody_reads_is_left_alone():
    block = Block()
    block.linear.register_forward_hook(lambda _module, _inputs, _output: None)
    assert find_targets(block, rank=8, size=32) == ("strided",)


@pytest.mark.parametrize("name", ["timm/beit_base_patch16_224", "torchvision/swin_t", "timm/swinv2_cr_tiny_ns_224"])
@pytest.mark.slow
def test_every_adapter_has_a_gradient_whatever_attention_does_with_its_weights(name):
    network, spec = zoo.load(name, pretrained=False)
    trunk = Backbone(network, spec).trunk
    add_adapters(trunk, EIGHT, size=spec.preprocessing.size)
    disturb(trunk)
    trunk(images_of(spec.preprocessing.size, 1)).square().sum().backward()
    assert [key for key, value in trunk.named_parameters() if is_adapter(key) and value.grad is None] == []


def test_what_was_there_keeps_its_gradients_and_its_mode():
    block = Block().eval()
    block.linear.weight.requires_grad_(False)
    block.narrow.train()
    add_adapters(block, EIGHT, size=32)
    asking = {name: parameter.requires_grad for name, parameter in block.named_parameters()}
    assert [name for name, asks in asking.items() if not asks] == ["linear.base_layer.weight"]
    assert [path for path, module in block.named_modules() if module.training] == ["narrow"]


def test_targets_may_be_named_and_mean_exactly_these():
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.Sequential(nn.Identity(), nn.Linear(40, 40)))
    assert add_adapters(trunk, EIGHT, size=4, targets=["1"]) == ("1",)
    assert {name.partition(".lora_")[0] for name, _ in trunk.named_parameters() if is_adapter(name)} == {"1"}
    assert add_adapters(Block(), EIGHT, size=32, targets=["narrow"]) == ("narrow",)


def test_all_unfit_targets_are_told_at_once():
    with pytest.raises(OptionError) as caught:
        add_adapters(Block(), EIGHT, size=32, targets=["linear", "liner", "depthwise", "taken"])
    message = str(caught.value)
    assert "- Unknown module 'liner'. Closest known: linear" in message
    assert "- 'depthwise' is not a linear layer or dense 1x1 convolution that is called" in message
    assert "- 'taken' is no" in message
    assert "'linear' is" not in message


def test_nothing_to_adapt_and_adapting_twice_are_errors():
    with pytest.raises(
        OptionError, match="no linear layer or 1x1 convolution larger than a low-rank update of rank 40"
    ):
        add_adapters(Block(), Adapters(rank=40, alpha=16), size=32)
    block = Block()
    add_adapters(block, EIGHT, size=32)
    with pytest.raises(OptionError, match="has adapters already. Merge them with merge_adapters first."):
        add_adapters(block, EIGHT, size=32)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    def weights(seed: int) -> list[torch.Tensor]:
        block = copy.deepcopy(plain)
        add_adapters(block, EIGHT, size=32, seed=seed)
        return [parameter.detach() for name, parameter in block.named_parameters() if "lora_A" in name]

    plain = Block()
    state = torch.get_rng_state()
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not any(a.equal(b) for a, b in zip(first, other, strict=True))


def test_a_copy_can_be_merged_while_the_original_goes_on():
    block = Block().eval()
    add_adapters(block, EIGHT, size=32)
    disturb(block)
    images = images_of(32)
    expected = block(images)
    twin = copy.deepcopy(block)
    merge_adapters(twin)
    torch.testing.assert_close(twin(images), expected, rtol=1e-5, atol=1e-5)
    assert any(is_adapter(name) for name, _ in block.named_parameters())
    assert not any(is_adapter(name) for name, _ in twin.named_parameters())


def test_merging_a_plain_network_does_nothing():
    assert merge_adapters(Block()) == ()


def test_without_peft_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'transferkit\[lora\]'"):
        add_adapters(Block(), EIGHT, size=32)


def test_gradients_flow_through_a_distributed_wrapper(single_process_group):
    trunk = load_trunk("timm/test_vit")
    add_adapters(trunk, EIGHT, size=160)
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    wrapped = nn.parallel.DistributedDataParallel(trunk)
    for _ in range(2):  # a parameter without a gradient would be an error in the second pass
        wrapped(images_of(160, 2)).square().sum().backward()
    assert all(value.grad is not None for name, value in trunk.named_parameters() if is_adapter(name))


@pytest.fixture
def single_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", SIDES)
def test_the_freeze_plan_of_lora_trains_adapters_and_head_alone(name):
    backbone = load_backbone(name)
    add_adapters(backbone.trunk, EIGHT, size=SIDES[name])
    decision = Decision(
        strategy="lora", stage="top", lr=1e-3, lr_scale=0.1, norm="frozen", mode="given", reasons=("asked for",)
    )
    plan = STRATEGIES["lora"](decision, [stage.name for stage in backbone.stages])
    network = nn.Sequential(backbone, nn.Linear(4, 2))
    freeze = FreezePlan(network, plan.phases, norm=plan.norm)
    freeze.start(0)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    adapters = {name for name, _ in network.named_parameters() if is_adapter(name)}
    assert learning == adapters | {"1.weight", "1.bias"}
