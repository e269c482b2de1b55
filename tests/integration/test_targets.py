"""Several labels per image, and numbers, from a manifest to a saved run that predicts and is evaluated."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.api.planning import dry_run
from transferkit.cli import main
from transferkit.core.errors import OptionError
from transferkit.data import decode, to_pixels
from transferkit.doctor.label_review import review_labels
from transferkit.doctor.session_review import review_copies
from transferkit.options import PassOptions

PACKAGED = "packaged/tf_efficientnet_lite0"
HOW = {"image_size": 32, "views": 1, "geometry": "full", "progress": False}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Sixty pictures: red or not, striped or not, and a number that is their brightness."""
    folder = tmp_path_factory.mktemp("pictures ü")
    rng = np.random.default_rng(0)
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "red", "striped", "grey", "text"])
        for number in range(60):
            red, striped, grey = rng.random() < 0.4, rng.random() < 0.5, rng.integers(20, 200)
            pixels = rng.integers(0, 30, (32, 32, 3)) + grey
            pixels[..., 0] += 55 * red
            pixels[::4] -= 20 * striped
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
            names = ";".join(name for name, on in (("röt", red), ("striped", striped)) if on)
            writer.writerow([f"{number}.png", names, int(red), int(striped), int(grey), "a" if red else "b"])
    return folder / "m.csv"


@pytest.fixture(scope="module")
def labelled(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "run"
    return tk.adapt(PACKAGED, manifest, task="multi_label", out=out, cache=out.parent / "bank", **HOW), out


@pytest.fixture(scope="module")
def measured(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("numbers") / "run"
    columns = {"label": ["grey", "red"]}
    how = {**HOW, "cache": out.parent / "bank"}
    return tk.adapt(PACKAGED, manifest, columns=columns, task="regression", out=out, **how), out


def test_labels_all_the_way(labelled, manifest):
    result, out = labelled
    assert result.task == "multi_label"
    assert result.classes == ("röt", "striped")
    scores = result.metrics["test"]
    assert (scores.measure, scores.score) == ("mean average precision", scores.mean_average_precision)
    assert scores.score > 0.9
    assert {probe.measure for probe in result.evidence.probes} == {"mean average precision"}
    assert result.decision.strategy == "linear_probe"
    assert any("mode=search tries it" in reason for reason in result.decision.reasons)
    found = result.predict(manifest.parent / "0.png")
    again = tk.load(out)
    np.testing.assert_array_equal(again.predict(manifest.parent / "0.png").probabilities, found.probabilities)
    assert again.thresholds == result.thresholds
    assert again.metrics["test"] == scores
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "Precision and recall" in html
    assert "Confusion matrix" not in html
    assert "accuracy" not in html.partition("<main>")[2].partition('id="reproduce"')[0].lower()


def test_numbers_all_the_way(measured, manifest):
    result, out = measured
    scores = result.metrics["test"]
    assert (scores.measure, scores.score) == ("R2", scores.r2)
    assert scores.r2 > 0.5
    assert [one.name for one in scores.numbers] == ["grey", "red"]
    assert scores.numbers[0].mae < 40
    answers = result.predict(manifest.parent / "0.png")
    assert answers.values.shape == (1, 2)
    assert 0 < answers.values[0, 0] < 255
    assert tk.load(out).predict(manifest.parent / "0.png").to_csv() == answers.to_csv()
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "Predicted and true" in html
    assert "accuracy" not in html.partition("<main>")[2].partition('id="reproduce"')[0].lower()


def test_a_run_is_evaluated_on_other_images_with_the_same_targets(measured, labelled, manifest):
    result, _ = measured
    with pytest.raises(OptionError, match="one class per image"):
        labelled[0].evaluate("builtin/digits")
    assert result.evaluate() == result.metrics["test"]


def test_what_takes_one_class_per_image_refuses_in_a_sentence(manifest):
    with pytest.raises(OptionError, match="head=logistic is for one class per image"):
        tk.adapt(PACKAGED, manifest, task="multi_label", head="logistic", **HOW)
    with pytest.raises(OptionError, match="no classes to balance"):
        tk.adapt(PACKAGED, manifest, columns={"label": ["grey"]}, class_weight="balanced", **HOW)
    match = "needs one class per image, and these have task=multi_label"
    how = {"task": "multi_label", "image_size": 32, "progress": False}
    with pytest.raises(OptionError, match=match):
        review_labels(PACKAGED, manifest, **how)
    with pytest.raises(OptionError, match=match):
        review_copies(PACKAGED, manifest, PassOptions(**how))


def test_the_command_line_takes_a_list_of_columns(manifest, tmp_path, capsys):
    words = [f"data.path={manifest}", "data.columns.label=[red,striped]", f"model={PACKAGED}", "image_size=32"]
    main(["adapt", *words, "views=1", "geometry=full", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'bank'}"])
    assert "test mean average precision" in capsys.readouterr().out
    plain = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert plain["model"]["task"] == "multi_label"
    assert plain["evidence"]["data"]["classes"] == ["red", "striped"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_a_fine_tuned_network_is_never_worse_than_the_probe(manifest, tmp_path, task):
    options = {"task": task} if task == "multi_label" else {"columns": {"label": ["grey"]}, "task": task}
    how = {**HOW, "cache": tmp_path / "bank", "out": tmp_path / "run"}
    result = tk.adapt(PACKAGED, manifest, strategy="few_layers", train={"epochs": 2, "folds": 1}, **options, **how)
    training = result.record.training
    assert training.kept.accuracy >= training.candidates[0].accuracy
    assert training.kept.log_loss <= training.candidates[0].log_loss
    found = result.predict(manifest.parent / "1.png")
    assert tk.load(tmp_path / "run").predict(manifest.parent / "1.png").to_csv() == found.to_csv()


def test_a_dry_run_counts_what_the_decision_will_be(labelled, manifest):
    _, out = labelled
    how = {**HOW, "cache": out.parent / "bank", "task": "multi_label"}
    plan = dry_run("adapt", {"model": PACKAGED, "data": manifest, **how})
    assert plan.strategy == "linear_probe"
    assert (plan.data.task, plan.data.classes) == ("multi_label", 2)
    assert "fine-tune" not in {step.name for step in plan.steps}
    plan = dry_run("adapt", {"model": PACKAGED, "data": manifest, "mode": "search", **how})
    assert plan.strategy == ""
    assert "fine-tune" in {step.name for step in plan.steps}


def test_backbones_are_ranked_by_what_their_probes_reach(measured, manifest, tmp_path):
    _, out = measured
    ranking = tk.rank([PACKAGED], manifest, columns={"label": ["grey", "red"]}, task="regression",
                      cache=out.parent / "bank", **HOW)  # fmt: skip
    assert ranking.data.measure == "R2"
    assert ranking.best.joined.accuracy > 0.8


def test_onnx_answers_as_the_run_does(measured, labelled, manifest, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    files = [manifest.parent / f"{number}.png" for number in range(8)]
    for (result, _), output in ((measured, "values"), (labelled, "probabilities")):
        session = onnxruntime.InferenceSession(str(result.export(tmp_path / f"{output}.onnx")))
        pixels = np.stack([to_pixels(decode(path), result.model.preprocessing) for path in files])
        (answers,) = session.run([output], {"pixels": pixels})
        found = result.predict(files)
        wanted = found.values if output == "values" else found.probabilities
        np.testing.assert_allclose(answers, wanted, rtol=1e-4, atol=1e-4)
