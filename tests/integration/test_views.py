"""One way of seeing the images from the look to the exported model: the same numbers everywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

import transferkit as tk
from tests.unit.nn.toy_networks import Pyramid
from transferkit.core.errors import OptionError
from transferkit.data import decode, to_pixels
from transferkit.nn import Blend, TransferModel
from transferkit.records import Preprocessing, ViewScore

OWN = Preprocessing(
    size=32, mean=(0.4,) * 3, std=(0.3,) * 3, interpolation="bilinear", crop_pct=0.875, origin="as given by the caller"
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Pyramid()


@pytest.fixture
def photos(tmp_path):
    """ROOT/{train,test}/{red,green}/*.png: wide and tall pictures, 8 training and 3 test images a class."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for label, name in enumerate(["red", "green"]):
        for number in range(11):
            height, width = (24, 36 + number) if number % 2 else (40 + number, 24)
            pixels = rng.integers(0, 120, (height, width, 3))
            pixels[..., label] += rng.integers(0, 130)
            path = root / ("train" if number < 8 else "test") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture
def adapt(network, photos):
    def run(**options):
        defaults = {"preprocessing": OWN, "progress": False, "device": "cpu", "strategy": "linear_probe"}
        return tk.adapt(network, photos, **{**defaults, **options})

    return run


def files(photos):
    return sorted((photos / "test").glob("*/*.png"))


def held_out(result):
    """The probabilities of the report, in the order of `files`."""
    answers = result.record.held_out
    return answers.probabilities[np.argsort([item.split("test/")[-1] for item in answers.items])]


def by_hand(model, photos):
    """(N, K): every view on its own through the model, logits averaged, blends added up."""
    parts = model.parts if isinstance(model, Blend) else (model,)
    logits = []
    for path in files(photos):
        views = [to_pixels(decode(path), view) for view in model.preprocessing.each_view]
        with torch.no_grad():
            each = [sum(part(model.normalise(torch.from_numpy(view)[None])) for part in parts) for view in views]
        logits.append(torch.stack(each).mean(dim=0))
    return softmax(torch.cat(logits).numpy(), axis=1)


VIEWS = "pad+crop+mirror"


def test_a_probe_on_averaged_features_gives_the_same_answers_everywhere(adapt, photos, network, tmp_path):
    result = adapt(views=VIEWS, out=tmp_path / "run")
    assert [view.name for view in result.model.preprocessing.views] == ["crop", "pad", "crop+mirror", "pad+mirror"]
    answers = result.predict(files(photos)).probabilities
    np.testing.assert_allclose(answers, held_out(result), atol=1e-5)
    np.testing.assert_allclose(answers, by_hand(result.model, photos), atol=1e-5)
    again = tk.load(tmp_path / "run", module=network)
    assert again.model.preprocessing == result.model.preprocessing
    assert again.evidence.views == result.evidence.views
    assert (again.predict(files(photos)).probabilities == answers).all()
    assert any("averaged over 4 views of each image" in reason for reason in result.decision.reasons)
    assert '<section id="views"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_averaging_is_not_what_one_view_says(adapt, photos):
    several, one = adapt(views=VIEWS), adapt(views=1, geometry="crop")
    assert several.model.linear.weight.shape == one.model.linear.weight.shape
    assert not torch.allclose(several.model.linear.weight, one.model.linear.weight, rtol=1e-3)
    assert one.evidence.views is None
    assert one.model.preprocessing == OWN
    assert not any("view" in reason for reason in one.decision.reasons)


def test_every_view_is_kept_in_the_bank_and_found_there(adapt):
    first = adapt(views=VIEWS).evidence.views
    ran = {score.name: score.computed for score in first.scores if score.seconds is not None}
    assert ran == dict.fromkeys(["crop", "pad", "crop+mirror", "pad+mirror"], 16)
    again = adapt(views="crop+pad+squash").evidence.views
    assert {score.name: score.computed for score in again.scores if score.seconds is not None} == {
        "crop": 0, "squash": 16, "pad": 0,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_fine_tuned_network_is_trained_on_one_view_and_predicts_with_all(
    adapt, photos, network, tmp_path, monkeypatch, weight
):
    from transferkit.finetune import cross_validation

    judge = cross_validation.verify

    def keep(*arguments, **options):
        verdict = judge(*arguments, **options)
        kept = replace(verdict.candidates[-1], weight=weight, name="fine-tuned" if weight == 1 else "average")
        return replace(verdict, kept=kept)

    monkeypatch.setattr(cross_validation, "verify", keep)
    recipe = {"epochs": 1, "folds": 1, "augment": "none", "lr": 1e-3, "batch_size": 8}
    result = adapt(strategy="few_layers", views=VIEWS, train=recipe, out=tmp_path / "run")
    assert isinstance(result.model, TransferModel if weight == 1 else Blend)
    answers = result.predict(files(photos)).probabilities
    np.testing.assert_allclose(answers, held_out(result), atol=1e-5)
    np.testing.assert_allclose(answers, by_hand(result.model, photos), atol=1e-5)
    assert (tk.load(tmp_path / "run", module=network).predict(files(photos)).probabilities == answers).all()


@pytest.mark.parametrize(
    ("views", "geometry", "shape"),
    [
        (VIEWS, "auto", (2,)),
        ("mirror", "pad", ()),
        pytest.param("squash", "auto", (), marks=pytest.mark.slow),
        pytest.param("crop+full+pad", "full", (3,), marks=pytest.mark.slow),
    ],
)
def test_an_exported_model_takes_a_picture_a_geometry_and_says_which(adapt, photos, tmp_path, views, geometry, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    from transferkit.export.onnx import input_geometries

    result = adapt(views=views, geometry=geometry)
    session = onnxruntime.InferenceSession(str(result.export(tmp_path / "model.onnx")))
    metadata = session.get_modelmeta().custom_metadata_map
    told = json.loads(metadata["geometries"])
    geometries = input_geometries(result.model.preprocessing)
    assert [(one["crop_mode"], one["crop_pct"]) for one in told] == [(g.crop_mode, g.crop_pct) for g in geometries]
    assert not any(one["mirrored"] or one["views"] for one in told)
    assert session.get_inputs()[0].shape[1:] == [*shape, 3, 32, 32]
    pixels = np.stack([np.stack([to_pixels(decode(path), g) for g in geometries]) for path in files(photos)])
    (answers,) = session.run(None, {"pixels": pixels if shape else pixels[:, 0]})
    np.testing.assert_allclose(answers, result.predict(files(photos)).probabilities, atol=1e-5)
    (one,) = session.run(None, {"pixels": (pixels if shape else pixels[:, 0])[:1]})
    np.testing.assert_allclose(one, answers[:1], atol=1e-5)


def test_left_open_the_choice_is_said_with_its_numbers(adapt):
    found = adapt(strategy="auto").evidence.views
    assert found.views == ("crop", "squash", "zoom", "wide")
    assert [score.name for score in found.scores][:6] == ["crop", "squash", "zoom", "wide", "full", "pad"]
    assert found.images == 16
    assert all(0 <= score.accuracy <= 1 for score in found.scores if score.accuracy is not None)
    assert found.image_seconds > 0


def test_what_views_took_comes_out_of_the_budget(adapt, monkeypatch):
    from transferkit.workflow import decide

    left = []
    choose = decide.choose
    monkeypatch.setattr(
        "transferkit.workflow.decide.choose", lambda *a, budget=None, **o: left.append(budget) or choose(*a, **o)
    )
    result = adapt(strategy="auto", budget=100.0)
    assert left == [pytest.approx(100 - result.evidence.views.seconds, abs=0.06)]
    tk.decide(result.evidence, budget=100.0)
    assert left[1] == left[0]
    adapt(strategy="auto", budget=100.0, views=1, geometry="crop")
    assert left[2] == 100.0
    dear = replace(result.evidence.views, scores=(ViewScore(name="crop"), ViewScore(name="pad", seconds=1e4)))
    tk.decide(replace(result.evidence, views=dear), budget=3.0)
    assert left[3] == 1.5  # views never take more than half of what there is


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": "sqash"}, "Unknown view 'sqash'"),
        ({"geometry": "letterbox"}, "Unknown geometry 'letterbox'"),
        ({"geometry": "full", "views": "crop+pad"}, "is not among views=crop"),
        ({"views": "crop+pad", "preprocessed": True}, "preprocessed=True"),
    ],
)
@pytest.mark.parametrize("verb", [tk.adapt, tk.analyze, tk.rank])
def test_a_mistake_is_met_before_any_work(network, tmp_path, options, said, verb):
    missing = tmp_path / "nobody has looked for these images yet"
    with pytest.raises(OptionError, match=said):
        verb(network, missing, preprocessing=OWN, **options)


class Tensors(torch.utils.data.Dataset):
    """Prepared elsewhere."""

    classes = ("dark", "light")

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.full((3, 32, 32), float(index % 2)) + 0.01 * index, index % 2


def test_tensors_have_one_view_and_are_not_compared(network):
    evidence = tk.analyze(network, Tensors(), preprocessing=OWN, preprocessed=True, progress=False)
    assert evidence.views is None
    seen = evidence.backbone.preprocessing
    assert (seen.crop_mode, seen.crop_pct, seen.views, seen.prepared) == ("center", OWN.crop_pct, (), True)


def test_a_ranking_sees_the_images_alike_with_all_models(network, photos):
    plain = tk.rank([network], photos, preprocessing=OWN, progress=False)
    assert any("one view, each checkpoint's own crop" in reason for reason in plain.reasons)
    several = tk.rank([network], photos, preprocessing=OWN, progress=False, views="crop+pad")
    assert "All models were measured on the same views: crop+pad." in several.reasons
    assert several.models[0].joined.squared_error != plain.models[0].joined.squared_error
    evidence = tk.analyze(network, photos, preprocessing=OWN, progress=False, views="pad+crop")
    assert several.models[0].joined.squared_error == pytest.approx(evidence.probe("joined").squared_error, rel=1e-4)
