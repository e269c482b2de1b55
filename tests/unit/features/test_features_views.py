"""Every view has a shelf of its own, and the checkpoint's own crop keeps the one that it always had."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from tests.unit.nn.toy_networks import Pyramid, spec_of
from transferkit.data import open_data
from transferkit.features import FeatureBank
from transferkit.features.engines.torch import origin_of, stage_extractor
from transferkit.features.extraction import open_shelves
from transferkit.nn import Backbone
from transferkit.records import View
from transferkit.workflow.measure import read_features

PAD = View(name="pad", crop_mode="border")
MIRRORED = View(name="crop+mirror", crop_mode="center", mirrored=True)


@pytest.fixture
def backbone():
    return Backbone(Pyramid(), spec_of())


def test_a_single_view_is_named_as_before_there_were_any(backbone):
    digested = origin_of(backbone, "layers", "weights", torch.device("cpu"))["preprocessing"]
    assert not {"views", "mirrored", "origin"} & set(digested)
    known = asdict(backbone.spec.preprocessing)
    assert digested == {name: known[name] for name in digested}


def test_views_lie_apart_and_what_averages_them_makes_no_difference(backbone, tmp_path):
    bank, own = FeatureBank(tmp_path), backbone.spec.preprocessing
    several = replace(own, views=(PAD, MIRRORED))

    def folder(preprocessing):
        seen = backbone.with_preprocessing(preprocessing)
        extractor = stage_extractor(seen, pooling="avg", device=torch.device("cpu"))
        return open_shelves(bank, extractor.identity())["features"].folder

    pad, mirrored = (folder(view) for view in several.each_view)
    assert len({folder(own), pad, mirrored}) == 3
    assert folder(several) == folder(own)


def test_the_pass_over_several_views_averages_them_and_fills_the_shelf_of_each(backbone, tmp_path):
    colours = [(Image.new("RGB", (20 + n, 12), (9 * n, 90, 200 - 9 * n)), n % 2) for n in range(6)]
    data = open_data({"train": colours}, progress=False)
    own = backbone.spec.preprocessing
    crop = View(name="crop", crop_mode=own.crop_mode, crop_pct=own.crop_pct)
    several = backbone.with_preprocessing(replace(own, views=(crop, PAD, MIRRORED)))

    def read(network, **options):
        return read_features(network, data, bank=FeatureBank(tmp_path), pooling="avg+max", progress=False, **options)

    done = read(several)
    stages = list(done.table.blocks)
    each = [read(backbone, preprocessing=view) for view in several.spec.preprocessing.each_view]
    assert (done.computed, [one.computed for one in each]) == (6, [0, 0, 0])
    mean = sum(one.table.load(stages) for one in each) / 3
    assert done.table.load(stages) == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert each[0].table.load(stages) != pytest.approx(each[1].table.load(stages), rel=1e-3)
