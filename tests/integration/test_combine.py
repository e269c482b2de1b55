"""Finished runs that answer together: the weighted mean of their logits, saved, loaded and refused as promised."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax

import transferkit as tk
from tests.conftest import PACKAGED
from transferkit.cli import main
from transferkit.core.errors import DataError, OptionError, RunFolderError
from transferkit.records import HeldBackScores


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """140 digits in folders, 8 of each class to train on."""
    from sklearn.datasets import load_digits

    found, rng = load_digits(), np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("digits")
    for label in range(10):
        for number, row in enumerate(rng.permutation(np.flatnonzero(found.target == label))[:14]):
            path = folder / ("train" if number < 8 else "test") / str(label) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((found.images[row] * 15).astype(np.uint8)).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    """Two runs of other sizes and stages, and a third that knows nothing."""
    folder = tmp_path_factory.mktemp("runs")
    how = {"views": 1, "geometry": "crop", "progress": False, "strategy": "linear_probe", "cache": folder / "bank"}
    for name, size, stage in (("small", 32, "joined"), ("large", 64, "joined"), ("top", 32, "top")):
        tk.adapt(PACKAGED, digits, image_size=size, stage=stage, out=folder / name, **how)
    return folder


def chance(run: tk.Result) -> tk.Result:
    """The same run, whose held-back scores say nothing."""
    scores = run.held_back_scores
    noise = np.random.default_rng(0).normal(size=scores.logits.shape).astype(np.float32)
    return tk.Result(run.model, run.record, held_back_scores=replace(scores, logits=noise))


def test_the_ensemble_answers_with_the_weighted_mean_of_its_members(runs, digits, tmp_path):
    both = tk.combine([runs / "small", runs / "large"], out=tmp_path / "both")
    singles = [tk.load(runs / name) for name in ("small", "large")]
    assert len(both.members) == 2, both.sentences
    logits = sum(
        weight * log_softmax(np.log(one.predict(digits / "test").probabilities.astype(float)), axis=1)
        for weight, one in zip(both.weights, singles, strict=True)
    )
    found = both.predict(digits / "test", coverage=0.9)
    np.testing.assert_allclose(found.probabilities, softmax(logits, axis=1), atol=1e-6)
    assert found.sets.any(axis=1).all()
    scores = both.held_back_scores
    assert scores.accuracy >= max(one.held_back_scores.accuracy for one in singles)
    again = tk.load_ensemble(tmp_path / "both")
    assert (again.weights, again.sentences, again.classes) == (both.weights, both.sentences, singles[0].classes)
    np.testing.assert_array_equal(again.predict(digits / "test", coverage=0.9).sets, found.sets)


def test_a_run_that_knows_nothing_gets_no_weight(runs):
    good = tk.load(runs / "small")
    found = tk.combine([chance(good), good])
    assert found.members == (good,)
    assert found.weights == (1.0,)
    assert "run 2 alone is returned." in found.sentences


def test_the_command_line_combines_and_predicts(runs, digits, tmp_path, capsys):
    listed = f"runs=[{runs / 'small'}, {runs / 'large'}]"
    main(["combine", listed, f"out={tmp_path / 'both'}"])
    assert "Predicting with it costs the sum of its 2 members." in capsys.readouterr().out
    main(["predict", f"run={tmp_path / 'both'}", f"images={digits / 'test' / '3'}", "format=json", "coverage=0.9"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6
    assert all(row["set"] for row in rows)
    with pytest.raises(SystemExit):
        main(["combine", listed, f"out={tmp_path / 'both'}"])
    assert "holds a finished run. Choose another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", f"run={tmp_path / 'both'}"])
    assert "holds an ensemble of several runs, and one run is needed" in capsys.readouterr().err


def heads(runs, digits):
    """Two heads on the same frozen features, one ridge and one logistic."""
    how = {"views": 1, "geometry": "crop", "progress": False, "strategy": "linear_probe", "cache": runs / "bank"}
    train = {"image_size": 32, "stage": "joined", "test": 0}
    return [tk.adapt(PACKAGED, digits / "train", head=head, **train, **how) for head in ("ridge", "logistic")]


def test_averaged_weights_of_linear_heads_give_averaged_logits(runs, digits, tmp_path):
    """On one frozen backbone the mean of two linear layers computes the mean of their outputs."""
    ridge, logistic = heads(runs, digits)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    logits = [log_softmax(np.log(one.probabilities(pixels).astype(float)), axis=1) for one in (ridge, logistic)]
    own = [one.evaluate(digits / "test", split="val", progress=False) for one in heads(runs, digits)]
    mixed = []
    for method in ("wise", "soup"):
        found = tk.combine([ridge, logistic], method=method, val=digits / "test", out=tmp_path / method)
        assert isinstance(found, tk.Result)
        if found in (ridge, logistic):  # no mixture was better; the other method's is
            continue
        score = max((one.accuracy, -one.log_loss) for one in own)
        assert (found.metrics["val"].accuracy, -found.metrics["val"].log_loss) > score
        mixed.append(method)
        mixture = found.decision.reasons[-2]
        share = 0.5 if method == "soup" else float(mixture.split(" of run 2")[0].split()[-1])
        expected = softmax((1 - share) * logits[0] + share * logits[1], axis=1)
        np.testing.assert_allclose(found.probabilities(pixels), expected, atol=1e-5)
        again = tk.load(tmp_path / method)
        np.testing.assert_array_equal(again.probabilities(pixels), found.probabilities(pixels))
    assert mixed


def test_weights_that_are_not_alike_are_refused(runs, digits):
    with pytest.raises(OptionError, match=r"(?s)other weights than .*classifier.*method=average takes any runs"):
        tk.combine([runs / "small", runs / "top"], method="soup", val=digits / "test")
    with pytest.raises(OptionError, match="another preprocessing"):
        tk.combine([runs / "small", runs / "large"], method="soup", val=digits / "test")
    with pytest.raises(OptionError, match="method=wise mixes two runs"):
        tk.combine([runs / "small"] * 3, method="wise", val=digits / "test")
    with pytest.raises(OptionError, match="Unknown method 'soups'. Closest known: soup"):
        tk.combine([runs / "small"] * 2, method="soups")
    with pytest.raises(OptionError, match="Leave val out"):
        tk.combine([runs / "small", runs / "large"], val=digits / "test")
    with pytest.raises(DataError, match="trained on"):
        tk.combine([runs / "small"] * 2, method="soup", val=digits / "train")


def test_a_run_takes_the_place_of_an_ensemble_only_when_told(runs, digits, tmp_path):
    both = tk.combine([runs / "small", runs / "large"], out=tmp_path / "both")
    with pytest.raises(RunFolderError, match="holds an ensemble"):
        both.members[0].save(tmp_path / "both")
    both.members[0].save(tmp_path / "both", overwrite=True)
    assert tk.load(tmp_path / "both").classes == both.classes
    tk.combine([runs / "small", runs / "large"], out=tmp_path / "both", overwrite=True)
    assert tk.load_ensemble(tmp_path / "both").weights == both.weights


def test_what_does_not_fit_together_is_said_at_once(runs, tmp_path):
    small, top = tk.load(runs / "small"), tk.load(runs / "top")
    with pytest.raises(OptionError, match=r"two finished runs or more, runs=\[A,B\]"):
        tk.combine([small])
    with pytest.raises(OptionError, match="two finished runs or more"):
        tk.combine("runs/a")
    bare = tk.Result(top.model, top.record)
    other = tk.Result(top.model, replace(top.record, trained_on=("0" * 32,)), held_back_scores=top.held_back_scores)
    with pytest.raises(OptionError, match="(?s)run 2 has no held-back.*run 3 was trained on other images"):
        tk.combine([small, bare, other])
    few = small.held_back_scores.take(np.arange(5))
    with pytest.raises(OptionError, match="5 images were held back from all of them; weights need 40"):
        tk.combine([small, tk.Result(top.model, top.record, held_back_scores=few)])
    scores = small.held_back_scores
    turned = HeldBackScores(labels=(scores.labels + 1) % 10, logits=scores.logits, rows=scores.rows)
    with pytest.raises(OptionError, match="held-back images have other labels"):
        tk.combine([small, tk.Result(top.model, top.record, held_back_scores=turned)])
    with pytest.raises(RunFolderError, match="holds no ensemble"):
        tk.load_ensemble(runs / "small")
    (tmp_path / "ensemble.json").write_text('{"schema": 1, "members": ["../x"], "weights": [1], "sentences": []}')
    with pytest.raises(RunFolderError, match="cannot be read"):
        tk.load_ensemble(tmp_path)
