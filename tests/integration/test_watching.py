"""`adapt` watches its fits: nothing of the result changes, what was seen is kept, and a step that breaks runs again."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import transferkit as tk
from transferkit.doctor import replay
from transferkit.finetune import TransferModule, cross_validation
from transferkit.report import render

SHORT = {"epochs": 5, "folds": 1, "lr": 0.01, "augment": "none", "batch_size": 4}
MODEL = "timm/test_resnet"


def adapt(stripes, out: Path, *, strategy: str = "many_layers", **train):
    return tk.adapt(
        MODEL, stripes, pretrained=False, image_size=32, strategy=strategy, norm="keep", progress=False, out=out,
        train={**SHORT, **train},
    )  # fmt: skip


@pytest.fixture
def run(stripes, tmp_path):
    return adapt(stripes, tmp_path / "run")


def test_the_result_is_the_same_without_a_monitor(run, stripes, tmp_path):
    plain = adapt(stripes, tmp_path / "plain", monitor=0)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert plain.record.training.monitor is None
    assert not list((tmp_path / "plain").rglob("steps.csv"))
    assert plain.metrics == run.metrics


def test_what_was_seen_is_in_record_file_and_report(run, tmp_path):
    monitor = run.record.training.monitor
    assert monitor.steps == (0, 10)
    assert monitor.missing == ()
    assert monitor.capsule == ""
    names = [stage.stage for stage in monitor.stages]
    assert names == [stage.name for stage in run.evidence.backbone.stages if stage.name in names] + ["head"]
    trained = [stage for stage in monitor.stages if any(stage.ratio)]
    assert trained
    assert all(len(stage.weights) == len(stage.gradients) == 2 for stage in trained)
    assert all(len(stage.outputs) == 2 and sum(stage.outputs[0].counts) > 0 for stage in trained)
    assert all(stage.similarity[-1] <= 1 for stage in monitor.stages if stage.similarity)
    assert any(stage.statistics_drift > 0 for stage in monitor.stages if stage.statistics_drift is not None)
    loaded = tk.load(tmp_path / "run")
    assert loaded.record.training.monitor == monitor
    assert loaded.record.training.symptoms == run.record.training.symptoms
    (file,) = (tmp_path / "run").glob("training/many_layers/watched/fold-0/steps.csv")
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["group"] for row in rows} == {stage.stage for stage in trained}
    page = render(run.record)
    assert "Inside the network" in page
    assert 'data-chart="updates"' in page
    assert 'data-chart="features"' in page


def test_a_result_of_before_is_read(run, tmp_path):
    path = tmp_path / "run" / "result.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    del plain["training"]["monitor"], plain["training"]["symptoms"]
    path.write_text(json.dumps(plain), encoding="utf-8")
    training = tk.load(tmp_path / "run").record.training
    assert training.monitor is None
    assert training.symptoms is None
    assert "Inside the network" not in render(tk.load(tmp_path / "run").record)


@pytest.mark.parametrize("strategy", ["many_layers", "few_layers", "lora"])
def test_a_step_that_breaks_is_kept_and_runs_again_by_itself(strategy, stripes, tmp_path):
    broken = {"optimizer": "sgd", "clip": 0.0, "lr": 1e30, "warmup": 0.0}
    extra = {"l2_sp": 0.1} if strategy == "many_layers" else {}
    result = adapt(stripes, tmp_path / "run", strategy=strategy, **broken, **extra)
    training = result.record.training
    assert training.monitor.capsule == f"training/{strategy}/watched/fold-0/nan_capsule.pt"
    assert training.symptoms[0].cause == "not_finite"
    assert "nan_capsule.pt" in training.symptoms[0].evidence
    path = tmp_path / "run" / training.monitor.capsule
    found = replay(path)
    assert found.symptoms[0].cause in ("activation_not_finite", "loss_not_finite", "gradient_not_finite")
    assert not found.healthy
    assert "alarm: not finite" in render(result.record)


def test_a_step_that_breaks_in_the_training_on_all_images_is_named(stripes, tmp_path, monkeypatch):
    plain, judge = TransferModule.training_step, cross_validation.verify

    def step(module, batch, batch_index):
        loss = plain(module, batch, batch_index)
        return loss * float("nan") if module.expected_losses else loss

    def keep_the_network(*args, **named):
        found = judge(*args, **named)
        return replace(found, kept=max(found.candidates, key=lambda one: one.weight))

    monkeypatch.setattr(TransferModule, "training_step", step)
    monkeypatch.setattr(cross_validation, "verify", keep_the_network)
    training = adapt(stripes, tmp_path / "run", epochs=3).record.training
    (note,) = [one for one in training.notes if "capsule" in one]
    assert "training/many_layers/watched/all/nan_capsule.pt; transferkit doctor replay" in note
    assert str(tmp_path) not in note


def test_the_option_is_checked():
    with pytest.raises(tk.TransferkitError, match="monitor must be >= 0, got -1"):
        tk.Recipe(monitor=-1)
