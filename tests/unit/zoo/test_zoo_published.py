"""Published accuracies belong to weights, never to an architecture alone."""

from __future__ import annotations

import pytest
from torchvision import models

from transferkit import zoo
from transferkit.zoo import _published
from transferkit.zoo._load import describe


def test_torchvision_states_its_own():
    weights = models.get_model_weights("resnet18").IMAGENET1K_V1
    found = describe("torchvision/resnet18").published
    assert found.accuracy == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
    assert "resnet18:IMAGENET1K_V1" in found.source
    assert describe("torchvision/vgg16:IMAGENET1K_FEATURES").published == _published.UNKNOWN


def test_a_tag_has_its_own_figure_and_others_have_none():
    assert describe("timm/tf_efficientnet_lite0.in1k").published.accuracy == pytest.approx(0.7483)
    assert describe("timm/tf_efficientnet_lite0").published.accuracy == pytest.approx(0.7483)
    assert describe("timm/resnet18.a1_in1k").published == _published.UNKNOWN


def test_the_spec_carries_it_for_published_weights_only(tmp_path):
    _, published = zoo.load("packaged/tf_efficientnet_lite0")
    assert (published.published_accuracy, published.published_by) == (0.751, _published.AUTHORS)
    _, random = zoo.load("packaged/tf_efficientnet_lite0", pretrained=False)
    assert (random.published_accuracy, random.published_by) == (None, "")


@pytest.mark.parametrize("table", [_published.TIMM, _published.PACKAGED])
def test_figures_are_shares_and_grow_with_the_network(table):
    figures = [table[name] for name in sorted(table)]
    assert all(0 < figure < 1 for figure in figures)
    assert figures == sorted(figures)
