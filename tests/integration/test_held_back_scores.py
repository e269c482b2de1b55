"""A saved run keeps the scores of its training images, each while it was held back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import transferkit as tk
from tests.conftest import PACKAGED, draw_stripes
from transferkit.core.errors import RunFolderError
from transferkit.data import open_data
from transferkit.features import FeatureTable
from transferkit.options import AdaptOptions
from transferkit.records import HeldBackScores
from transferkit.workflow import fit
from transferkit.workflow.session import open_session

FILE = "held_back.safetensors"


def adapt(data, **options):
    return tk.adapt(PACKAGED, data, image_size=32, views=1, geometry="crop", progress=False, **options)


@pytest.fixture
def result(stripes, tmp_path):
    return adapt(stripes, strategy="linear_probe", stage="joined", head="ridge", out=tmp_path / "run")


def test_they_come_back_as_they_were(result, tmp_path):
    scores = result.held_back_scores
    assert (len(scores), scores.logits.dtype) == (24, np.float32)
    again = tk.load(tmp_path / "run").held_back_scores
    for name in ("labels", "logits", "rows"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert scores.accuracy == pytest.approx(result.record.held_back_accuracy)


def test_each_is_the_score_of_a_fit_without_the_image(stripes):
    """Refitting without one set of images gives their logits, but for penalty, scaling and temperature."""
    options = AdaptOptions(image_size=32, views=1, geometry="crop", progress=False, head="ridge")
    session = open_session(PACKAGED, stripes, options)
    decision = replace(
        tk.decide(session.measured.evidence, strategy="linear_probe"), strategy="linear_probe", stage="joined"
    )
    scores = fit.fit_decision(session, decision, options).scores
    together = session.measured.folds.together
    out = np.flatnonzero(together == together[0])
    rest = np.setdiff1d(np.arange(len(together)), out)
    plan = fit.plan_decision(session, decision)
    table: FeatureTable = session.measured.features(session.measured.train)
    refitted = fit.fit_closed_form(
        plan,
        session.backbone,
        table.take(rest),
        session.measured.labels[rest],
        classes=session.data.summary.classes,
        pooling=session.options.pooling,
        head="ridge",
        folds=session.measured.folds.take(rest),
    ).model.linear
    logits = table.take(out).load(plan.stages) @ refitted.weight.detach().numpy().T + refitted.bias.detach().numpy()
    held = scores.logits[np.isin(scores.rows, out)]
    held = held[np.argsort(scores.rows[np.isin(scores.rows, out)])]
    assert np.corrcoef(logits.ravel(), held.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("strategy", ["few_layers", "selected"])
def test_other_fits_keep_them_too(stripes, strategy):
    how = (
        {"strategy": "linear_probe", "stage": "selected"}
        if strategy == "selected"
        else {"strategy": strategy, "train": {"epochs": 1, "folds": 2, "refit": False}}
    )
    result = adapt(stripes, **how)
    data = open_data(stripes, progress=False)
    labels = data.labels[data.indices("train")]
    scores = result.held_back_scores
    assert 4 <= len(scores) <= 24
    np.testing.assert_array_equal(scores.labels, labels[scores.rows])
    assert scores.accuracy == pytest.approx(result.record.held_back_accuracy, abs=0.25)


def test_a_blend_of_folds_has_the_logits_of_the_kept_weight(stripes):
    """Held back from the one fold, what is returned scores exactly as recorded: nothing is refitted."""
    result = adapt(stripes, strategy="few_layers", train={"epochs": 2, "folds": 1, "refit": False}, device="cpu")
    scores = result.held_back_scores
    data = open_data(stripes, progress=False)
    rows = data.indices("train")[scores.rows]
    found = result.predict([data.folder / data.items[row] if hasattr(data, "folder") else stripes / data.items[row]
                            for row in rows], device="cpu")  # fmt: skip
    np.testing.assert_allclose(found.probabilities, scores.probabilities, atol=2e-3)


def test_a_run_without_them_loads(result, tmp_path):
    (tmp_path / "run" / FILE).unlink()
    again = tk.load(tmp_path / "run")
    assert again.held_back_scores is None
    again.save(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / FILE).exists()


def test_saving_a_run_without_them_removes_those_of_the_run_before(result, tmp_path):
    bare = tk.load(tmp_path / "run")
    bare.held_back_scores = None
    bare.save(tmp_path / "run", overwrite=True)
    assert tk.load(tmp_path / "run").held_back_scores is None


def test_what_is_broken_is_named(result, tmp_path):
    file = tmp_path / "run" / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(RunFolderError, match=r"held_back.safetensors cannot be read: .* Delete it"):
        tk.load(tmp_path / "run")
    other = tmp_path / "other"
    tk.Result(
        result.model,
        result.record,
        held_back_scores=HeldBackScores(
            labels=np.array([0]), logits=np.zeros((1, 2), dtype=np.float32), rows=np.array([0])
        ),
    ).save(other)
    with pytest.raises(RunFolderError, match="2 classes, the model beside it has 3"):
        tk.load(other)


def test_one_image_a_class_leaves_none(tmp_path):
    for number, name in enumerate(["across", "down"]):
        draw_stripes(tmp_path / "few" / "train" / name / "0.png", angle=number, seed=number)
    assert adapt(tmp_path / "few", strategy="linear_probe", stage="joined").held_back_scores is None


def test_many_are_sampled(stripes, monkeypatch):
    monkeypatch.setattr(fit, "MAX_HELD_BACK", 9)
    first, second = (adapt(stripes, strategy="linear_probe", stage="joined").held_back_scores for _ in range(2))
    assert np.bincount(first.labels).tolist() == [3, 3, 3]
    np.testing.assert_array_equal(first.rows, second.rows)
