"""Which images a similarity is measured on, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.features.features_toys import Reader, draw_images, make_backbone, name_images
from transferkit.domain import SAMPLE, Side, choose_sample, load_scale, measure_similarity
from transferkit.features import FeatureBank, frozen_pass
from transferkit.nn import Backbone
from transferkit.serialise import from_json, to_json
from transferkit.types import SimilarityDetail


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


def test_random_weights_and_missing_memory_are_said():
    random = measure_similarity(pretrained(make_backbone(), is_pretrained=False), None)
    assert (random.value, random.origin) == (None, "unknown")
    assert "random" in random.note
    assert "no batch normalisation" in measure_similarity(pretrained(forgetful()), None).note
    assert measure_similarity(pretrained(forgetful()), None, given=0.7).value == 0.7


def forgetful() -> Backbone:
    """Without anything in its normalisation layers."""
    from torch import nn

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
