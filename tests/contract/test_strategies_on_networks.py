"""What every registered strategy makes learn in real networks, told from the types of their layers."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from transferkit import zoo
from transferkit.finetune.adapters import add_adapters, is_adapter
from transferkit.finetune.freeze import FreezePlan
from transferkit.nn import Backbone
from transferkit.records import Decision
from transferkit.strategies import STRATEGIES, Plan

CONVOLUTIONAL, TRANSFORMER = "timm/test_efficientnet", "timm/test_vit"
SIDE = 160


@functools.cache
def load(name: str) -> Backbone:
    network, spec = zoo.load(name, pretrained=False)
    return Backbone(network, spec).without_head()


def lay(strategy: str, name: str, stage: str) -> tuple[Plan, nn.Module, FreezePlan]:
    backbone = copy.deepcopy(load(name))
    decision = Decision(
        strategy=strategy, stage=stage, lr=1e-3, lr_scale=0.1, norm="keep", mode="given", reasons=("asked for",)
    )
    plan = STRATEGIES[strategy](decision, [known.name for known in backbone.stages])
    if plan.adapters is not None:
        add_adapters(backbone.trunk, plan.adapters, size=SIDE)
    network = nn.Sequential(backbone, nn.Linear(3, 2))
    return plan, network, FreezePlan(network, plan.phases, norm=plan.norm)


def learned(strategy: str, name: str, stage: str = "joined") -> set[str]:
    """Names of the trunk's parameters that learn in the last phase."""
    plan, network, freeze = lay(strategy, name, stage)
    freeze.start(len(plan.phases) - 1)
    asking = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert {"1.weight", "1.bias"} <= asking
    return {key.removeprefix("0.trunk.") for key in asking if key.startswith("0.")}


def owned_by(name: str, kinds: tuple[type[nn.Module], ...], leaf: str = "") -> set[str]:
    modules = load(name).trunk.named_modules()
    return {
        f"{path}.{key}"
        for path, module in modules
        if isinstance(module, kinds)
        for key, _ in module.named_parameters(recurse=False)
        if key.endswith(leaf)
    }


@pytest.mark.parametrize("stage", ["joined", "top", "blocks.1"])
@pytest.mark.parametrize(
    ("strategy", "name"),
    [(strategy, name) for strategy in sorted(STRATEGIES) for name in (CONVOLUTIONAL, TRANSFORMER)],
)
def test_the_rules_fit_and_all_that_learns_is_reached_by_gradients(strategy, name, stage):
    plan, network, freeze = lay(strategy, name, stage)
    backbone = network[0]
    for phase in range(len(plan.phases)):
        freeze.start(phase)
        network.zero_grad()
        read = backbone.pooled_stages(torch.rand(2, 3, SIDE, SIDE), pooling="avg", names=plan.stages)
        total = sum(vectors.square().sum() for vectors in read.values())
        if total.requires_grad:
            total.backward()
        asking = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
        assert asking == {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_norms_alone_are_all_norms(name):
    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    assert learned("norm_only", name) == owned_by(name, norms)


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_biases_alone_are_all_biases_those_of_norms_among_them(name):
    assert learned("bias_only", name) == {key for key, _ in load(name).trunk.named_parameters() if key.endswith("bias")}


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_lora_learns_adapters_alone(name):
    found = learned("lora", name)
    assert found
    assert all(is_adapter(key) for key in found)


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_strategies_are_ordered_by_how_much_learns(name):
    everything = {key for key, _ in load(name).trunk.named_parameters()}
    few, most, many = (learned(strategy, name) for strategy in ("few_layers", "lp_ft", "many_layers"))
    assert learned("linear_probe", name) == set()
    assert set() < few < most < many < everything
