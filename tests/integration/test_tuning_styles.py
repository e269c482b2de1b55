"""Babysitting a training, and stored settings measured again: real training on few images."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import yaml
from PIL import Image

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.records import TuningRecord
from transferkit.report import render_tuning

MODEL = "packaged/tf_efficientnet_lite0"
SHORT = {"epochs": 6, "folds": 2, "augment": "none", "batch_size": 8}

tune = partial(tk.tune, MODEL, image_size=32, views=1, strategy="few_layers", progress=False, train=SHORT)


@pytest.fixture
def faint(tmp_path):
    """ROOT/{train,test}/{across,down}/*.png: 16 and 2 images of stripes that hardly show in the noise."""
    root, rng = tmp_path / "faint", np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for name, phase in (("across", rows), ("down", columns)):
        for number in range(18):
            wave = 127 + 14 * np.sin(phase / 2 + rng.uniform(0, 6))
            pixels = np.clip(wave[..., None] + rng.normal(0, 45, (32, 32, 3)), 0, 255).astype(np.uint8)
            file = root / ("train" if number < 16 else "test") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root


def test_a_rate_that_is_far_too_high_is_mended(faint, tmp_path):
    # Without warm-up and average the first epoch is spoilt as well, and cannot be the best one.
    train = {**SHORT, "lr": 3.0, "warmup": 0.0, "average": "none"}
    found = tune(faint, train=train, style="panda", out=tmp_path)
    advised = found.trials[0]
    assert (advised.stage, advised.is_full, dict(advised.values)) == ("advised", True, {})
    assert found.interventions[0].setting == "train.lr"
    assert found.interventions[0].after < 3
    assert found.best.accuracy >= advised.accuracy
    assert found.settings["train"]["lr"] < 3
    assert found.style == "panda"
    page = render_tuning(found)
    assert "What was changed, and why" in page
    assert from_json(TuningRecord, json.loads((tmp_path / "tuning.json").read_text())) == from_json(
        TuningRecord, to_json(found)
    )
    result = tk.adapt(MODEL, faint, image_size=32, views=1, progress=False, **found.settings)
    assert result.record.training.candidates[-1].accuracy == pytest.approx(found.best.accuracy)


def test_settings_of_a_healthy_training_stay(stripes):
    found = tune(stripes, style="panda", seconds=1e-3)
    assert found.interventions == ()
    assert found.best is found.trials[0]
    assert found.settings == {"strategy": "few_layers", "train": SHORT}
    assert "The curves asked for no change, or there was no time." in found.sentences


@pytest.fixture
def searched(stripes, tmp_path):
    """The folder of a search of two points, of which the first is good."""
    out = tmp_path / "search"
    tune(stripes, space={"train.lr": [1e-3, 2.0]}, trials=2, sampler="grid", out=out)
    return out


def test_nothing_has_changed_and_settings_still_hold(stripes, searched):
    found = tune(stripes, retest=True, out=searched)
    retest = found.retest
    assert retest.changes == ()
    assert [one.name for one in retest.tested] == ["stored best", "stored 2", "advised"]
    stored = retest.tested[0]
    assert stored.accuracy == pytest.approx(stored.accuracy_then)
    assert not retest.is_stale
    assert found.settings["train"] == {**SHORT, "lr": found.best.values["train.lr"]}
    assert retest.sentences[0].startswith("Nothing has changed")
    assert retest.sentences[1].startswith("The stored settings still hold (")
    assert len(found.trials) == 2
    assert "Measured again" in render_tuning(found)


def test_what_changed_is_named(stripes, searched):
    shutil.rmtree(stripes / "train" / "slant")
    shutil.rmtree(stripes / "test" / "slant")
    found = tk.tune("packaged/tf_efficientnet_lite1", stripes, image_size=48, views=1, progress=False, train=SHORT,
                    strategy="few_layers", retest=True, out=searched)  # fmt: skip
    said = " ".join(found.retest.changes)
    assert "Classes are gone: slant." in said
    assert "There are 16 training images, there were 24." in said
    assert "The backbone is packaged/tf_efficientnet_lite1, it was packaged/tf_efficientnet_lite0." in said
    assert "Images are 48 x 48 pixels, they were 32 x 32." in said


def edit(searched, change):
    file = searched / "tuning.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_settings_that_cannot_be_used_any_more_fail_alone(stripes, searched):
    edit(searched, lambda record: record["trials"][0]["values"].update(stage="gone"))
    found = tune(stripes, retest=True, out=searched)
    stored, other, advised = found.retest.tested
    assert "gone" in stored.error
    assert other.accuracy is not None
    assert advised.accuracy is not None
    assert found.retest.is_stale
    assert "The stored best cannot be used any more (" in found.retest.sentences[1]
    assert "stage" not in found.settings


def test_the_file_of_best_settings_is_replaced_only_where_others_are_better(stripes, searched, capsys, monkeypatch):
    monkeypatch.chdir(searched.parent)
    best = searched / "experiment" / "best.yaml"
    words = ["tune", f"model={MODEL}", "image_size=32", "views=1", f"data.root={stripes}", "strategy=few_layers",
             *(f"train.{name}={value}" for name, value in SHORT.items()), "tune.retest=true", "out=search"]  # fmt: skip
    main(words)
    assert "The stored settings still hold" in capsys.readouterr().out
    assert not best.exists()
    edit(searched, lambda record: record["trials"][0]["values"].update(stage="gone"))
    main(words)
    said = " ".join(capsys.readouterr().out.split())
    assert "Intuition has gone stale" in said
    assert "best.yaml, replaced" in said
    assert "stage" not in yaml.safe_load(best.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "pandas"}, "Unknown style 'pandas'. Closest known: panda"),
        ({"style": "panda", "trials": 9}, "leave out tune.trials, or use style=caviar"),
        ({"style": "panda", "space": {"train.lr": [0.1, 0.2]}}, "leave out tune.space"),
        ({"retest": True}, "out= must be its folder"),
        ({"retest": "yes"}, "retest must be true or false"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(stripes, options, message):
    with pytest.raises(OptionError, match=message):
        tune(stripes, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is nothing to retest: .* is missing"), ("[1]", "is no record of a search"), ("{", "is no record")],
)
def test_a_folder_without_a_search_is_refused(stripes, tmp_path, content, message):
    if content is not None:
        (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(OptionError, match=message):
        tune(stripes, retest=True, out=tmp_path)


def test_little_time_means_one_training_and_what_a_search_alone_has_means_many(stripes):
    found = tune(stripes, train={**SHORT, "epochs": 1}, seconds=0.5)
    assert found.style == "panda"
    assert found.why_style.startswith("style: panda, as only ")
    many = tune(stripes, train={**SHORT, "epochs": 1}, seconds=60.0, trials=1, sampler="random")
    assert many.style == "caviar"
