"""Which images a similarity is measured on, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.unit.features.features_toys import PLAIN, Reader, draw_images, make_backbone, name_images
from transferkit.core.serialization import from_json, to_json
from transferkit.features import FeatureBank, frozen_pass
from transferkit.nn import Backbone
from transferkit.records import SimilarityDetail
from transferkit.workflow.source_similarity import (
    MIN_PREDICTIONS,
    SAMPLE,
    Side,
    choose_sample,
    load_head_scale,
    load_scale,
    measure_similarity,
)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 20))
def test_the_sample_has_each_content_once_and_grows_from_the_front(numbers, size):
    ids, among = name_images(*numbers), np.arange(len(numbers))
    chosen, more = choose_sample(ids, among, size=size), choose_sample(ids, among, size=size + 5)
    assert len(chosen) == min(size, len(set(numbers)))
    assert (more[: len(chosen)] == chosen).all()
    assert sorted(set(numbers))[: len(chosen)] == [numbers[i] for i in chosen]


def test_the_sample_keeps_to_the_images_it_may_choose_from():
    ids = name_images(*range(10, 0, -1))
    assert choose_sample(ids, np.array([0, 2, 4]), size=2).tolist() == [4, 2]
    assert SAMPLE >= 2


def pretrained(backbone: Backbone, *, is_pretrained: bool = True) -> Backbone:
    backbone.spec = replace(backbone.spec, pretrained=is_pretrained)
    return backbone


def look(backbone: Backbone, folder: Path, images: np.ndarray) -> Side:
    ids = name_images(*(hash(image.tobytes()) % 10**9 for image in images))
    done = frozen_pass(
        backbone,
        Reader(images),
        ids,
        bank=FeatureBank(folder),
        sample=np.arange(len(images)),
        device="cpu",
        progress=False,
    )
    assert done.moments is not None
    return Side(done.moments, done.table, np.arange(len(images)) % 2)


def test_it_is_measured_against_the_running_statistics(tmp_path):
    backbone = pretrained(make_backbone())
    detail = measure_similarity(backbone, look(backbone, tmp_path, draw_images(20)))
    assert detail.origin == "norm statistics"
    assert 0 <= detail.low <= detail.value <= detail.high <= 1
    assert [stage.stage for stage in detail.stages] == ["0", "1", "top"]
    mean = np.mean([stage.distance for stage in detail.stages])
    assert detail.value == pytest.approx(load_scale().similarity(mean))
    assert (detail.images, detail.source_images, dict(detail.others)) == (20, 0, {})
    assert from_json(SimilarityDetail, to_json(detail)) == detail


def test_what_the_person_says_wins_and_the_note_keeps_what_was_measured(tmp_path):
    backbone = pretrained(make_backbone())
    side = look(backbone, tmp_path, draw_images(20))
    detail = measure_similarity(backbone, side, given=0.0)
    assert (detail.value, detail.low, detail.high, detail.origin) == (0.0, None, None, "given")
    assert f"{measure_similarity(backbone, side).value:.2f}" in detail.note
    assert detail.stages


def test_random_weights_and_missing_memory_are_said(tmp_path):
    side = look(make_backbone(), tmp_path, draw_images(2))
    random = measure_similarity(pretrained(make_backbone(), is_pretrained=False), side)
    assert (random.value, random.origin) == (None, "unknown")
    assert "random" in random.note
    bare = measure_similarity(pretrained(forgetful()), side)
    assert "no batch normalisation" in bare.note
    assert "nor a classifier" in bare.note
    assert measure_similarity(pretrained(forgetful()), side, given=0.7).value == 0.7


def forgetful() -> Backbone:
    """Without anything in its normalisation layers."""
    network = make_backbone().trunk
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return make_backbone(network)


def test_source_images_stand_in_for_missing_memory(tmp_path):
    backbone = pretrained(forgetful())
    source = look(backbone, tmp_path, draw_images(40, seed=1))
    near = measure_similarity(backbone, look(backbone, tmp_path, draw_images(30, seed=2)), source=source)
    far = measure_similarity(backbone, look(backbone, tmp_path, draw_images(30, seed=3) // 4), source=source)
    assert near.origin == "source images"
    assert near.high > 0.9 > far.high
    assert near.source_images == 40
    for name in ("frechet_distance", "mmd", "proxy_a_distance", "emd_of_class_means"):
        assert near.others[name] < far.others[name]
    assert near.others["class_mean_similarity"] > far.others["class_mean_similarity"]


def test_source_images_are_compared_also_where_the_backbone_remembers(tmp_path):
    backbone = pretrained(make_backbone())
    target, source = (look(backbone, tmp_path, draw_images(20, seed=seed)) for seed in (0, 1))
    detail = measure_similarity(backbone, target, source=source)
    assert detail.value == measure_similarity(backbone, target).value
    assert set(detail.others) >= {"frechet_distance", "mmd"}


def test_a_single_image_is_too_few(tmp_path):
    backbone = pretrained(make_backbone())
    assert "2 different images" in measure_similarity(backbone, look(backbone, tmp_path, draw_images(1))).note


KINDS = 100
PATCH = 8


class PatchNetwork(nn.Module):
    """Like a vision transformer: one layer over patches, tokens averaged, layer normalisation, no batch normalisation.

    Its classifier knows `KINDS` colours, by their prototypes.
    """

    def __init__(self, classes: int = KINDS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.patches = nn.Conv2d(3, 64, PATCH, PATCH, bias=False)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, classes)
        self.colours = torch.randint(0, 256, (KINDS, 3), generator=generator)
        with torch.no_grad():
            self.patches.weight.copy_(torch.randn(self.patches.weight.shape, generator=generator) / PATCH)
            flat = (self.colours.float() / 255 - torch.tensor(PLAIN.mean)) / torch.tensor(PLAIN.std)
            self.head.weight.zero_()
            prototypes = self.features(flat.view(KINDS, 3, 1, 1).expand(-1, -1, 32, 32))
            self.head.weight[: min(KINDS, classes)] = 10 * prototypes[:classes]
            self.head.bias.copy_(-5 * (self.head.weight / 10).square().sum(dim=1))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.patches(images).flatten(2).mean(dim=2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def make_patch_backbone(network: nn.Module | None = None) -> Backbone:
    return pretrained(make_backbone(PatchNetwork() if network is None else network, name="patches"))


def paint(count: int, *, noise: float, seed: int = 0) -> np.ndarray:
    """(N, 3, 32, 32) uint8: the network's own colours, with so large a share of grey noise of one mean."""
    rng = np.random.default_rng(seed)
    colours = PatchNetwork().colours.numpy()[rng.permutation(np.arange(count) % KINDS)]
    grain = rng.normal(128, 20, (count, 3, 32, 32))
    mixed = (1 - noise) * colours[:, :, None, None] + noise * grain
    return np.clip(mixed, 0, 255).astype(np.uint8)


def test_a_classifier_tells_how_near_images_are_without_batch_normalisation(tmp_path):
    backbone = make_patch_backbone()
    assert backbone.source_moments() == {}
    found = [
        measure_similarity(backbone, look(backbone, tmp_path, paint(200, noise=noise)))
        for noise in (0.0, 0.6, 0.9, 1.0)
    ]
    values = [detail.value for detail in found]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert values[-1] < 0.2
    for detail in found:
        assert detail.origin == "head confidence"
        assert detail.low < detail.value < detail.high
        assert (detail.images, detail.stages) == (200, ())
        assert "estimated from the predictions of the classifier" in detail.note
        assert "rough" in detail.note
        assert from_json(SimilarityDetail, to_json(detail)) == detail
    assert "of its" in found[0].note


def test_few_images_widen_the_interval_and_very_few_say_nothing(tmp_path):
    backbone = make_patch_backbone()
    many, few = (look(backbone, tmp_path, paint(count, noise=0.6)) for count in (300, MIN_PREDICTIONS))
    wide, narrow = (measure_similarity(backbone, side) for side in (few, many))
    assert wide.origin == narrow.origin == "head confidence"
    scale = load_head_scale()
    assert narrow.high - narrow.low > 0
    assert scale.scatter > 0
    none = measure_similarity(backbone, look(backbone, tmp_path, paint(MIN_PREDICTIONS - 1, noise=0.6)))
    assert (none.value, none.origin) == (None, "unknown")
    assert f"at least {MIN_PREDICTIONS} different images; there are {MIN_PREDICTIONS - 1}" in none.note


@pytest.mark.parametrize("case", ["no head", "few classes", "another normalisation", "random weights"])
def test_without_a_classifier_that_knows_the_source_nothing_is_made_up(tmp_path, case):
    backbone = make_patch_backbone(PatchNetwork(10) if case == "few classes" else None)
    side = look(backbone, tmp_path, paint(50, noise=0.0))
    if case == "no head":
        backbone = backbone.without_head()
    elif case == "another normalisation":
        backbone.spec = replace(backbone.spec, norm="group")
    elif case == "random weights":
        pretrained(backbone, is_pretrained=False)
    detail = measure_similarity(backbone, side)
    assert (detail.value, detail.origin) == (None, "unknown")
    said = {
        "no head": "nor a classifier. Pass source=DIR",
        "few classes": "its classifier has 10 classes, fewer than the 100 needed",
        "another normalisation": "its classifier was trained behind another normalisation",
        "random weights": "random",
    }
    assert said[case] in detail.note


def test_source_images_stand_in_where_there_is_no_head_and_are_compared_where_there_is(tmp_path):
    backbone = make_patch_backbone()
    target, source = (look(backbone, tmp_path, paint(60, noise=0.5, seed=seed)) for seed in (1, 2))
    detail = measure_similarity(backbone, target, source=source)
    assert (detail.origin, detail.source_images) == ("head confidence", 60)
    assert set(detail.others) >= {"frechet_distance", "mmd"}
    assert measure_similarity(backbone.without_head(), target, source=source).origin == "source images"


def test_batch_normalisation_is_asked_before_the_classifier(tmp_path):
    backbone = pretrained(make_backbone())
    assert backbone.head is not None
    assert measure_similarity(backbone, look(backbone, tmp_path, draw_images(30))).origin == "norm statistics"
