"""Ranking backbones: tiny networks whose quality is known by construction."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.core.errors import BackboneError, DataError, HubError, OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.measure import MEASURES
from transferkit.records import Preprocessing, Ranking
from transferkit.workflow import rank as module

SIDE = 16
PLAIN = Preprocessing(size=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")


class Colours(nn.Module):
    """Features are what `keep` leaves of the mean colour; a head of four classes."""

    def __init__(self, keep: tuple[float, float, float], head: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 2, 2, bias=False)
        self.second = nn.Conv2d(3, 3, 2, 2, bias=False)
        for layer in (self.first, self.second):
            layer.weight.data = torch.diag(torch.tensor(keep))[:, :, None, None] * torch.full((1, 1, 2, 2), 0.25)
        self.head = nn.Linear(3, 4) if head else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).relu().mean(dim=(2, 3)))


class Tinted(torch.utils.data.Dataset):
    """Noise with a tint; the tint is the class."""

    def __init__(self, images: int = 60, noise: float = 90.0) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(images) % 3
        tints = 60 + 120 * np.eye(3)[self.labels][:, None, None]
        drift = rng.normal(0, noise, (images, 1, 1, 3))
        self.images = np.clip(tints + drift + rng.normal(0, 20, (images, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        self.targets = self.labels.tolist()
        self.classes = ["red", "green", "blue"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images[index], int(self.labels[index])


ALL = (1.0, 1.0, 1.0)
ONE = (1.0, 0.0, 0.0)


def rank(models, data=None, **options):
    defaults = {"preprocessing": PLAIN, "progress": False, "device": "cpu"}
    return tk.rank(models, Tinted() if data is None else data, **{**defaults, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A network that sees one colour, then one that sees all three, then a name that nobody knows."""
    cache = tmp_path_factory.mktemp("bank")
    return rank([Colours(ONE), Colours(ALL), "timm/no_such_network"], cache=cache)


def test_who_sees_more_is_first_and_the_order_given_does_not_matter(found):
    assert [row.name for row in found.models] == ["module/Colours (2)", "module/Colours"]
    first, second = found.models
    assert (first.rank, second.rank) == (1, 2)
    assert first.joined.accuracy > second.joined.accuracy + 0.1
    assert first.best > 0.95
    assert first.best + second.best == pytest.approx(1)
    assert found.best is first
    assert found.model("module/Colours") is second


def test_one_model_that_fails_does_not_lose_the_others(found):
    (lost,) = found.left_out
    assert lost.name == "timm/no_such_network"
    assert "Unknown timm model" in lost.reason


def test_only_training_images_are_looked_at(found):
    assert found.images == found.data.size("train") < 60
    assert found.data.size("test") > 0
    assert all(row.images_per_second > 0 for row in found.models)


def test_every_measure_has_a_value_or_a_reason(found):
    for row in found.models:
        assert [score.measure for score in row.scores] == list(MEASURES)
        for score in row.scores:
            assert (score.value is None) == bool(score.reason)
    values = {score.measure: score.value for score in found.best.scores}
    assert {"press", "knn", "logme", "leep"} <= {name for name, value in values.items() if value is not None}


def test_the_prior_is_named_and_never_a_guess(found):
    assert found.prior == "parameters"
    assert [row.prior for row in found.models] == [72.0, 72.0]  # two convolutions of 3 x 3 x 2 x 2
    assert [row.prior_rank for row in found.models] == [1, 1]


def test_reasons_hold_the_numbers(found):
    said = " ".join(found.reasons)
    assert f"{100 * found.best.joined.accuracy:.1f} %" in said
    assert "resamples" in said
    assert "parameters alone" in said


def test_through_json_and_back(found):
    again = from_json(Ranking, json.loads(json.dumps(to_json(found))))
    assert again == found


def test_the_same_model_twice_shares_its_rank_and_has_no_say_in_chance():
    twins = rank([Colours(ALL), Colours(ALL)])
    assert [row.rank for row in twins.models] == [1, 1]
    assert [(row.rank_low, row.rank_high) for row in twins.models] == [(1, 2), (1, 2)]
    assert [row.best for row in twins.models] == pytest.approx([0.5, 0.5])
    assert "not distinguishable by" in twins.reasons[1]


def test_a_second_run_computes_no_image(monkeypatch):
    once = rank([Colours(ALL)])

    def never(*_):
        raise AssertionError("an image was run again")

    monkeypatch.setattr("transferkit.features.extraction._run_all", never)
    again = rank([Colours(ALL)])
    assert once.models[0].images_per_second is not None
    assert again.models[0].images_per_second is None
    assert again.models[0].joined == once.models[0].joined


def test_data_is_opened_once_for_all(monkeypatch):
    opened = []
    real = module.open_images
    monkeypatch.setattr(module, "open_images", lambda *given: opened.append(1) or real(*given))
    rank([Colours(ALL), Colours(ONE)])
    assert opened == [1]


def test_a_backbone_without_classifier_has_no_source_probabilities():
    (row,) = rank([Colours(ALL, head=False)]).models
    reasons = {score.measure: score.reason for score in row.scores}
    assert reasons["leep"] == reasons["nce"] == "The backbone has no classifier of its own."


def test_random_weights_are_said_to_be_random():
    found = rank(["timm/test_resnet", "timm/test_byobnet"], pretrained=False, image_size=32, preprocessing=None)
    assert not any(row.pretrained for row in found.models)
    assert "are random" in found.reasons[-1]
    assert {score.reason for score in found.best.scores if score.measure == "leep"} == {
        "The weights of its own classifier are random."
    }
    assert found.best.image_size == 32


def test_a_measure_that_fails_is_told_not_lost(monkeypatch):
    def broken(features, labels):
        raise DataError("it does not like these")

    monkeypatch.setitem(MEASURES._entries, "parc", replace(MEASURES["parc"], function=broken))
    monkeypatch.setitem(MEASURES._entries, "gbc", replace(MEASURES["gbc"], function=lambda *_: float("nan")))
    reasons = {score.measure: score.reason for score in rank([Colours(ALL)]).best.scores}
    assert reasons["parc"] == "it does not like these"
    assert reasons["gbc"] == "The value is not finite."


def test_measures_that_come_too_late_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "MEASURE_SECONDS", 0.0)
    first, *others = rank([Colours(ALL)]).best.scores
    assert first.value is not None
    assert all(score.reason.startswith("Left out: the measures before it took") for score in others)


def test_measures_see_a_sample_the_ranks_see_all(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_IMAGES", 20)
    found = rank([Colours(ALL)])
    assert found.measured_images == 20 < found.images


def test_patterns_stand_for_what_is_on_this_machine():
    assert list(module.name_models("packaged/*lite[01]", pretrained=True)) == [
        "packaged/tf_efficientnet_lite0",
        "packaged/tf_efficientnet_lite1",
    ]
    twice = module.name_models(["packaged/*lite0", "packaged/tf_efficientnet_lite0"], pretrained=True)
    assert list(twice) == ["packaged/tf_efficientnet_lite0"]
    with pytest.raises(OptionError, match=r"'nothing/like\*this' matches no model"):
        module.name_models("nothing/like*this", pretrained=True)
    with pytest.raises(OptionError, match="No model is named"):
        module.name_models([], pretrained=True)


def test_a_pattern_never_fetches(monkeypatch):
    entry = module.zoo.catalog("*lite0", source="packaged")[0]
    monkeypatch.setattr(module.zoo, "catalog", lambda pattern: [replace(entry, name="timm/x", offline=False)] * 3)
    with pytest.raises(OptionError, match="matches 3 models of the zoo, but the weights of none are on this machine"):
        module.name_models("timm/*", pretrained=True)
    assert list(module.name_models("timm/*", pretrained=False)) == ["timm/x"]


def test_if_none_can_be_ranked_it_is_an_error(monkeypatch):
    def fetch(*_, **__):
        raise HubError("no network")

    monkeypatch.setattr(module, "open_backbone", fetch)
    with pytest.raises(BackboneError, match=r"None of the models can be ranked:\n- timm/a: no network\n- timm/b: no"):
        rank(["timm/a", "timm/b"])


def test_published_accuracy_is_the_prior_where_all_have_one(stripes):
    names = ["packaged/tf_efficientnet_lite0", "packaged/tf_efficientnet_lite1"]
    found = rank(names, stripes, image_size=32, preprocessing=None)
    rows = {row.name: row for row in found.models}
    assert found.prior == "published accuracy"
    assert [rows[name].prior for name in names] == [0.751, 0.767]
    assert [rows[name].prior_rank for name in names] == [2, 1]
    assert "tensorflow/tpu" in rows[names[0]].published_by
    # The source's classifier reads the averages of the top stage, whatever the pooling.
    leep = {score.measure: score.value for score in rows[names[0]].scores}["leep"]
    assert -np.log(3) <= leep <= 0
