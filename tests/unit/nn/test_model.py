from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional

from tests.unit.nn.toy_networks import Classifier, Pyramid, spec_of
from transferkit.nn import Backbone, Blend, TransferModel, logits_of
from transferkit.nn.model import normalise
from transferkit.records import Preprocessing


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(Classifier(Pyramid(), 16, 7), spec_of())


@pytest.mark.parametrize("pooling", ["avg", "avg+max"])
@pytest.mark.parametrize("stages", [("top",), ("trunk.stem", "top"), ("top", "trunk.stem")])
def test_logits_are_the_joined_stages_times_the_weights(backbone, stages, pooling):
    model = TransferModel(backbone, stages=stages, pooling=pooling, classes=("a", "b", "c")).eval()
    images = torch.randn(2, 3, 32, 32)
    trunk = backbone.trunk.trunk
    grids = {"trunk.stem": trunk.stem(images)}
    grids["top"] = trunk.last(trunk.middle(grids["trunk.stem"]))
    columns = []
    for stage in stages:
        columns.append(grids[stage].mean((2, 3)))
        if pooling == "avg+max":
            columns.append(grids[stage].amax((2, 3)))
    features = torch.cat(columns, dim=1)
    torch.testing.assert_close(model.features(images), features)
    expected = features @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (2, 3)


def test_model_leaves_the_original_classifier_behind(backbone):
    model = TransferModel(backbone, stages=("top",), pooling="avg", classes=("a", "b"))
    assert model.backbone.head is None
    assert backbone.head is not None
    assert model.classes == ("a", "b")
    assert model.preprocessing == backbone.spec.preprocessing


@settings(deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 2**16),
)
def test_normalise_is_torchvisions_on_the_unit_range(mean, std, seed):
    preprocessing = Preprocessing(size=8, mean=mean, std=std, interpolation="bilinear")
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator)
    before = pixels.clone()
    expected = functional.normalize(pixels.float() / 255, mean, std)
    torch.testing.assert_close(normalise(pixels, preprocessing), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(pixels, before)


def test_floats_are_taken_as_normalised_already(backbone):
    model = TransferModel(backbone, stages=("top",), pooling="avg", classes=("a", "b"))
    images = torch.randn(1, 3, 32, 32)
    assert model.normalise(images) is images
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert model.normalise(pixels).unique().tolist() == [1.0]  # mean and std are 0.5


@pytest.fixture
def model(backbone) -> TransferModel:
    torch.manual_seed(0)
    return TransferModel(backbone, stages=("trunk.stem", "top"), pooling="avg+max", classes=("a", "b", "c")).eval()


def test_logits_of_several_views_are_the_mean_of_those_of_each(model):
    views = torch.randn(4, 3, 3, 32, 32)
    each = torch.stack([model(views[:, number]) for number in range(3)])
    torch.testing.assert_close(model(views), each.mean(dim=0))
    assert model(views).shape == (4, 3)


def test_a_blend_averages_over_views_as_well(model, backbone):
    other = TransferModel(backbone, stages=("top",), pooling="avg", classes=("a", "b", "c")).eval()
    blend, views = Blend([model, other]).eval(), torch.randn(2, 5, 3, 32, 32)
    each = torch.stack([model(views[:, number]) + other(views[:, number]) for number in range(5)])
    torch.testing.assert_close(blend(views), each.mean(dim=0))


@pytest.mark.parametrize(("views", "stacks"), [(0, [32, 8]), (3, [10, 10, 10, 10]), (40, [1] * 40)])
def test_views_of_an_image_run_together_and_memory_does_not_grow_with_them(model, monkeypatch, views, stacks):
    side, seen = (views,) if views else (), []
    pictures = np.random.default_rng(0).integers(0, 256, (40, *side, 3, 8, 8), dtype=np.uint8)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda images: seen.append(len(images)) or forward(images))
    logits = logits_of(model, iter(pictures), device=torch.device("cpu"))
    assert seen == [count * max(views, 1) for count in stacks]
    flat = model.normalise(torch.from_numpy(pictures))
    torch.testing.assert_close(logits, forward(flat).detach(), rtol=1e-4, atol=1e-5)


def test_a_backbone_prepared_otherwise_is_the_same_network(backbone):
    other = backbone.with_preprocessing(replace(backbone.spec.preprocessing, crop_mode="squash", mirrored=True))
    assert other.spec.preprocessing.crop_mode == "squash"
    assert backbone.spec.preprocessing.crop_mode == "center"
    assert other.trunk is backbone.trunk
    assert backbone.with_preprocessing(backbone.spec.preprocessing) is backbone
