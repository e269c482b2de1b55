from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional

from tests.unit.nn.toy_networks import Classifier, Pyramid, spec_of
from transferkit.nn import Backbone, TransferModel
from transferkit.nn.model import normalise
from transferkit.types import Preprocessing


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
