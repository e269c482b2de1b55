"""A swapped network on the whole road: measured, fine-tuned, saved, loaded, exported."""

from __future__ import annotations

import html

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.core.errors import OptionError
from transferkit.nn.norm import FrozenBatchNorm, GroupNorm
from transferkit.options import PassOptions
from transferkit.records import Preprocessing
from transferkit.workflow import norm_swap
from transferkit.workflow.session import open_session

PLAIN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 24)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("kind", "layer"), [("frozen", FrozenBatchNorm), ("group", GroupNorm)])
def test_a_swapped_network_is_fine_tuned_saved_loaded_and_exported(kind, layer, stripes, tmp_path):
    network = tk.swap_norm(make_network(), kind)
    recipe = tk.Recipe(epochs=2)
    result = tk.adapt(
        network, stripes, preprocessing=PLAIN, strategy="few_layers", train=recipe, out=tmp_path / "run", progress=False
    )
    kept = [module for module in result.model.modules() if isinstance(module, layer)]
    assert len(kept) == 3
    if kind == "frozen":
        assert all(torch.equal(module.running_mean, torch.zeros_like(module.running_mean)) for module in kept)
    here = result.predict(stripes / "test" / "down").probabilities
    loaded = tk.load(tmp_path / "run", module=tk.swap_norm(make_network(), kind))
    np.testing.assert_array_equal(loaded.predict(stripes / "test" / "down").probabilities, here)
    exported = loaded.export(tmp_path / "model.onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(exported))
    assert session.get_inputs()


def adapt_stripes(stripes, *, model="packaged/tf_efficientnet_lite0", strategy="few_layers", train=None, **options):
    return tk.adapt(
        model,
        stripes,
        strategy=strategy,
        train={"epochs": 2, "folds": 1, "views": 0, "augment": "none", **(train or {})},
        image_size=32,
        progress=False,
        **options,
    )


def test_what_becomes_of_normalisation_is_decided_and_said(stripes):
    result = adapt_stripes(stripes)
    assert result.decision.norm == "frozen"
    assert "keeps the statistics that the weights were trained with" in " ".join(result.decision.reasons)
    assert result.evidence.backbone.norm == ""


def test_a_swap_that_leaves_the_features_as_they_were_is_not_measured_and_comes_back_from_the_folder(stripes, tmp_path):
    result = adapt_stripes(stripes, norm="renorm", out=tmp_path / "run")
    assert (result.decision.norm, result.evidence.backbone.norm) == ("renorm", "renorm")
    said = "Batch normalisation was swapped for 'renorm', which leaves the features unchanged until it is trained."
    assert said in result.decision.reasons
    assert said in html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    images = stripes / "test" / "down"
    loaded = tk.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(images).probabilities, result.predict(images).probabilities)


def test_group_normalisation_is_fitted_to_the_training_images(stripes, tmp_path):
    result = adapt_stripes(stripes, norm="group", out=tmp_path / "run")
    (outcome,) = (reason for reason in result.decision.reasons if reason.startswith(("Accepted", "Refused")))
    assert result.decision.norm == ("standardised_group" if outcome.startswith("Accepted") else "frozen")
    images = stripes / "test" / "down"
    loaded = tk.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(images).probabilities, result.predict(images).probabilities)


@pytest.mark.parametrize("norm", ["frozen", "renorm"])
def test_lp_ft_trains_the_first_stages_as_well_where_their_layers_were_swapped(norm, stripes):
    result = adapt_stripes(stripes, strategy="lp_ft", norm=norm)
    first = result.evidence.backbone.stages[0].name
    trained = {claim.stage for claim in result.record.training.claims if claim.lr > 0}
    assert (first in trained) == (norm == "renorm")


@pytest.mark.parametrize(("after", "accepted"), [(0.891, True), (0.889, False)])
def test_a_swap_that_costs_the_features_more_than_a_point_is_refused(after, accepted, stripes, monkeypatch, tmp_path):
    accuracies = iter([0.9, after])
    monkeypatch.setattr(norm_swap, "_accuracy", lambda evidence: next(accuracies))
    result = adapt_stripes(stripes, norm="layer", out=tmp_path / "run")
    kind = ("layer", "layer") if accepted else ("frozen", "")
    assert (result.decision.norm, result.evidence.backbone.norm) == kind
    (outcome,) = (reason for reason in result.decision.reasons if "swapped for 'layer'" in reason)
    assert outcome.startswith("Accepted: with" if accepted else "Refused: with")
    assert f"the held-back accuracy of a probe is {100 * after:.1f} %, before it was 90.0 %" in outcome
    assert outcome in html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))


def test_a_refused_swap_does_not_freeze_statistics_of_random_weights(stripes, monkeypatch):
    monkeypatch.setattr(norm_swap, "MARGIN", -1.0)  # nothing is good enough
    result = adapt_stripes(stripes, model="timm/test_efficientnet", pretrained=False, train={"batch_size": 8})
    assert result.decision.norm == "keep"


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_one_image_at_once_is_enough_for_what_needs_no_batch(norm, stripes, monkeypatch):
    monkeypatch.setattr(norm_swap, "MARGIN", 1.0)
    result = adapt_stripes(stripes, norm=norm, train={"batch_size": 1, "epochs": 2})
    assert result.decision.norm == {"group": "standardised_group"}.get(norm, norm)
    assert [epoch.phase for epoch in result.record.training.epochs] == ["head", "last stages"]
    assert result.metrics["test"].accuracy == 1.0


@pytest.mark.parametrize("norm", ["keep", "ghost"])
def test_one_image_at_once_tells_nothing_of_how_images_vary(norm, stripes):
    with pytest.raises(OptionError, match=f"norm={norm} .* a single image has no spread. Use norm=frozen, norm=group,"):
        adapt_stripes(stripes, norm=norm, train={"batch_size": 1})
    probe = tk.adapt(
        "packaged/tf_efficientnet_lite0", stripes, batch_size=1, strategy="linear_probe", image_size=32, progress=False,
    )  # fmt: skip
    assert probe.decision.strategy == "linear_probe"


def test_a_relative_that_was_trained_with_group_normalisation_is_named(stripes):
    result = adapt_stripes(stripes, model="timm/test_efficientnet", pretrained=False, train={"batch_size": 8})
    (said,) = (reason for reason in result.decision.reasons if "are too few to estimate new ones" in reason)
    assert "timm/test_efficientnet_gn.r160_in1k is a relative that was trained with group normalisation" in said


@pytest.mark.parametrize(("size", "images", "used"), [(96, 5000, 512), (224, 5000, 94), (512, 5000, 64), (224, 50, 50)])
def test_large_pictures_are_fewer_to_fit_to(size, images, used):
    assert norm_swap._how_many(images, size) == used


def test_what_answers_by_the_batch_is_for_other_loops():
    with pytest.raises(OptionError, match="With norm=alpha a prediction depends on the other images"):
        tk.adapt("packaged/nothing", "nowhere", norm="alpha")


def test_an_unknown_normalisation_is_met_before_any_work():
    with pytest.raises(OptionError, match="Unknown normalisation 'gruop'. Closest known: group."):
        tk.adapt("packaged/nothing", "nowhere", norm="gruop")


def test_a_swap_does_not_begin_the_budget_again(stripes, monkeypatch):
    monkeypatch.setattr(norm_swap, "MARGIN", 1.0)  # whatever it does to the features
    session = open_session("packaged/tf_efficientnet_lite0", stripes, PassOptions(image_size=32, progress=False))
    swapped, outcome = norm_swap.measure_swapped(session, "layer")
    assert outcome.startswith("Accepted")
    assert swapped.measured is not session.measured
    assert swapped.measured.since == session.measured.since
