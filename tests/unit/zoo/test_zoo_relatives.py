"""Relatives of an architecture among the published weights."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from transferkit.nn.norm import is_batch_norm
from transferkit.zoo import native_group_norm


@pytest.mark.parametrize(
    "name", ["timm/resnet50", "torchvision/resnet101", "timm/resnetv2_50.a1h_in1k", "timm/test_efficientnet"]
)
def test_a_relative_has_published_weights_and_no_batch_normalisation(name):
    relative = native_group_norm(name)
    assert relative is not None
    architecture = relative.removeprefix("timm/")
    assert architecture in timm.list_pretrained()
    network = timm.create_model(architecture, pretrained=False)
    assert not any(map(is_batch_norm, network.modules()))
    assert any(isinstance(module, nn.GroupNorm) for module in network.modules())


@pytest.mark.parametrize("name", ["timm/resnet18", "packaged/tf_efficientnet_lite0", "MyNetwork", "timm/resnet50_gn"])
def test_most_have_none(name):
    assert native_group_norm(name) is None
