"""Which stage a module belongs to, for networks whose stages are known by reading them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.nn.toy_networks import Classifier, Isotropic, Pyramid, SharedRelu, Wrapper, spec_of
from transferkit import zoo
from transferkit.core.errors import BackboneError
from transferkit.nn import Backbone
from transferkit.nn.anatomy import calls_in_order, find_stage


def owners(network: nn.Module) -> dict[str, str]:
    """Parameter path inside the trunk -> stage."""
    backbone = Backbone(network, spec_of())
    return {name: backbone.stage_of(name.rpartition(".")[0]) for name, _ in backbone.trunk.named_parameters()}


def test_a_pyramid_belongs_to_its_named_parts():
    found = owners(Pyramid())
    assert set(found.values()) == {"stem", "middle", "top"}
    assert all(
        {"stem": "stem", "middle": "middle", "last": "top"}[name.split(".")[0]] == stage
        for name, stage in found.items()
    )


@pytest.mark.parametrize("wrap", [Wrapper, lambda network: Classifier(network, 16, 5)])
def test_a_wrapper_and_a_classifier_change_nothing(wrap):
    found = {name.partition(".")[2]: stage for name, stage in owners(wrap(Pyramid())).items()}
    plain = owners(Pyramid())
    last = [stage.split(".")[-1] for stage in found.values()]
    assert dict(zip(found, last, strict=True)) == plain


def test_tokens_and_positions_go_with_the_first_stage_and_the_last_norm_with_the_top():
    found = owners(Isotropic(3))
    assert found["token"] == found["patch.weight"] == found["blocks.0.mlp.weight"] == "blocks.0"
    assert found["blocks.1.norm.weight"] == "blocks.1"
    assert found["norm.weight"] == "top"


def test_a_module_that_runs_many_times_goes_where_it_runs_first():
    backbone = Backbone(SharedRelu(), spec_of())
    assert [stage.name for stage in backbone.stages] == ["conv1", "conv2", "top"]
    assert backbone.stage_of("relu") == "conv2"  # behind conv1, where that stage is read
    assert owners(SharedRelu())["conv3.weight"] == "top"


class Uncalled(nn.Module):
    """Reads the parameters of a module that it never calls, as attention layers do; and has one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        self.middle = Reader()
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.ReLU())
        self.unused = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.stem(images))).mean((2, 3))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, 2)
        self.inner = nn.ModuleDict({"scale": nn.Conv2d(8, 8, 1)})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.conv(images), self.inner["scale"].weight)


def test_modules_that_are_never_called_go_with_their_owner():
    found = owners(Uncalled())
    assert found["middle.inner.scale.weight"] == found["middle.conv.weight"] == "middle"
    assert found["unused.weight"] == "stem"  # with the network itself, which is entered first


def test_what_is_put_in_later_goes_with_its_owner_and_the_rest_stays():
    backbone = Backbone(Pyramid(), spec_of())
    before = dict(backbone.anatomy)
    backbone.trunk.middle.added = nn.Sequential(nn.Linear(2, 2))
    assert backbone.stage_of("middle.added.0") == "middle"
    assert backbone.anatomy == before
    assert find_stage({"": "stem", "a": "x"}, "a.b.c") == "x"
    assert find_stage({"": "stem", "a": "x"}, "ab") == "stem"


def test_looking_leaves_modes_hooks_and_statistics_as_they_were():
    backbone = Backbone(Pyramid(), spec_of())
    backbone.trunk.train()
    backbone.trunk.stem.eval()
    modes = [module.training for module in backbone.trunk.modules()]
    kept = {name: tensor.clone() for name, tensor in backbone.trunk.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in backbone.trunk.modules())
    assert backbone.anatomy
    assert [module.training for module in backbone.trunk.modules()] == modes
    assert all(torch.equal(tensor, kept[name]) for name, tensor in backbone.trunk.state_dict().items())
    assert sum(len(module._forward_hooks) for module in backbone.trunk.modules()) == hooks


def test_calls_are_told_in_the_order_in_which_they_end():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.Identity()))
    assert calls_in_order(network, ["", "0", "1", "1.0", "1.1"], size=8) == ["0", "1.0", "1.1", "1", ""]
    assert calls_in_order(SharedRelu(), ["relu"], size=32) == ["relu"] * 3
    with pytest.raises(BackboneError, match="cannot take images"):
        calls_in_order(nn.Linear(3, 3), [""], size=8)


EXPECTED = {
    "torchvision/resnet18": {
        "conv1.weight": 0,
        "bn1.weight": 0,
        "layer1.0.conv1.weight": 1,
        "layer2.0.downsample.0.weight": 2,
        "layer3.1.bn2.bias": 3,
        "layer4.0.conv1.weight": 4,
        "layer4.1.bn2.weight": 4,
    },
    "timm/test_vit": {
        "cls_token": 0,
        "pos_embed": 0,
        "patch_embed.proj.weight": 0,
        "blocks.0.attn.qkv.weight": 0,
        "blocks.1.mlp.fc1.weight": 1,
        "norm.weight": -1,
    },
}
"""Network -> parameter -> number of its stage."""


@pytest.mark.parametrize("name", [*EXPECTED, "timm/test_resnet"])
def test_stages_of_real_networks_are_in_the_order_of_their_parameters(name):
    network, spec = zoo.load(name, pretrained=False)
    backbone = Backbone(network, spec)
    names = [stage.name for stage in backbone.stages]
    found = {key: backbone.stage_of(key.rpartition(".")[0]) for key, _ in backbone.trunk.named_parameters()}
    for key, place in EXPECTED.get(name, {}).items():
        assert found[key] == names[place], key
    order = [names.index(stage) for stage in found.values()]
    assert order == sorted(order)
    assert backbone.stage_of("") == names[0]
