"""`fewshot` and `fewshot add` from the command line to the files they leave."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import DataError, OptionError
from transferkit.core.serialization import from_json
from transferkit.records import FewShotRecord
from transferkit.report import render_few_shot

MODEL = "timm/test_resnet"
QUICK = {"pretrained": False, "image_size": 32, "episodes": 6, "views": 1, "progress": False}
WORDS = [f"model={MODEL}", "pretrained=false", "image_size=32", "episodes=6", "views=1", "progress=false"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of nine coloured pictures in a folder with a space and an umlaut."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "Bilder für alle"
    for number, name in enumerate(("rot", "grün", "blau")):
        (root / name).mkdir(parents=True)
        for place in range(9):
            picture = rng.integers(0, 90, (24, 20, 3), dtype=np.uint8)
            picture[..., number] += 120
            Image.fromarray(picture).save(root / name / f"{place}.png")
    return root


def test_a_record_says_what_was_measured(cache, pictures):
    asked = {"ways": 3, "shots": 2, "queries": 3, "test": 0.0, "cache": cache}
    found = tk.fewshot(MODEL, pictures, method="all", transductive=True, prior=[pictures], **asked, **QUICK)
    assert found.scores[0].method == "last_layer"
    assert len(found.scores) == 7
    assert all(one.low <= one.accuracy <= one.high for one in found.scores)
    assert found.score("last_layer").gain == 0
    assert found.best.accuracy > 0.9  # the colours are far apart
    assert "whitened by the spread" in str(found)
    assert found.best.method in render_few_shot(found)
    again = tk.fewshot(MODEL, pictures, method="ridge", prior=[pictures], **asked, **QUICK)
    assert again.score("ridge").accuracy == found.score("ridge").accuracy


def test_the_command_leaves_a_record_or_a_page(cache, pictures, tmp_path, capsys):
    words = [*WORDS, f"data.root={pictures}", "ways=2", "queries=3", "test=0.0", f"cache={cache}", "prior=unlabelled"]
    main(["fewshot", *words, f"out={tmp_path / 'few.json'}"])
    assert "nearest_mean" in capsys.readouterr().out
    plain = json.loads((tmp_path / "few.json").read_text("utf-8"))
    record = from_json(FewShotRecord, plain["fewshot"])
    assert record.ways == 2
    assert record.command.startswith("transferkit fewshot model=")
    main(["fewshot", *words, f"out={tmp_path / 'few.html'}"])
    assert "of 2 classes with 1 shot" in (tmp_path / "few.html").read_text("utf-8")


def test_what_cannot_be_measured_is_said_with_a_remedy(cache, pictures, tmp_path):
    with pytest.raises(DataError, match=r"the images are of 3\. Ask for fewer: ways=3"):
        tk.fewshot(MODEL, pictures, test=0.0, cache=cache, **QUICK)
    with pytest.raises(DataError, match="Ask for queries=8"):
        tk.fewshot(MODEL, pictures, ways=3, test=0.0, cache=cache, **QUICK)
    with pytest.raises(OptionError, match="Allow it: transductive=true"):
        tk.fewshot(MODEL, pictures, method="soft_means", **QUICK)
    with pytest.raises(OptionError, match="imbalance must be > 0"):
        tk.fewshot(MODEL, pictures, imbalance=-1.0, **QUICK)
    with pytest.raises(OptionError, match=r"Unknown few-shot method 'rigde'.*ridge"):
        tk.fewshot(MODEL, pictures, method="rigde", **QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        tk.fewshot(MODEL, tmp_path / "empty", **QUICK)


def test_a_class_joins_a_finished_run(cache, pictures, tmp_path, capsys):
    """From adapt to a larger run that is loaded, predicts, and is scored again."""
    adapted = {"pretrained": False, "image_size": 32, "views": 1, "progress": False, "strategy": "linear_probe"}
    result = tk.adapt(MODEL, pictures, test=0.3, cache=cache, out=tmp_path / "run", **adapted)
    grey = np.full((30, 30), 250, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    call = ["fewshot", "add", f"run={tmp_path / 'run'}", "class=weiß", f"images={tmp_path / 'grey.png'}"]
    main([*call, f"out={tmp_path / 'larger'}", f"cache={cache}", "progress=false"])
    assert "Class 'weiß' was added from 1 image" in capsys.readouterr().out
    larger = tk.load(tmp_path / "larger")
    assert larger.classes == (*result.classes, "weiß")
    (added,) = larger.record.added
    assert (added.source, added.held_back) == ("train", True)
    assert larger.metrics["test"].images == result.metrics["test"].images
    assert larger.predict(tmp_path / "grey.png").labels == ["weiß"]
    with pytest.raises(SystemExit):  # the run without the class is there
        main([*call, f"out={tmp_path / 'run'}", f"cache={cache}"])
