"""Trainers in mixed, half and double precision on the whole road: what is kept is in single precision."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.cli import main
from transferkit.finetune import TransferModule, cross_validation, verify

COMPUTED_IN = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


@pytest.fixture
def computed(monkeypatch) -> set[torch.dtype]:
    """The types of what networks say in training."""
    types, own = set(), TransferModule.forward

    def forward(self, images):
        logits = own(self, images)
        if self.training:
            types.add(logits.dtype)
        return logits

    monkeypatch.setattr(TransferModule, "forward", forward)
    return types


@pytest.fixture
def keep_both(monkeypatch):
    """An average of network and probe is kept, whoever is better."""

    def judge(*compared):
        verdict = verify.verify(*compared)
        return replace(verdict, kept=verdict.candidates[2])

    monkeypatch.setattr(cross_validation, "verify", judge)


@pytest.mark.usefixtures("keep_both")
@pytest.mark.parametrize("precision", COMPUTED_IN)
@pytest.mark.parametrize(
    ("strategy", "recipe"),
    [("few_layers", {"views": 2}), ("many_layers", {"views": 0, "average": "swa", "optimizer": "sgd"})],
    ids=["activations", "pictures"],
)
def test_what_is_kept_is_in_single_precision(strategy, recipe, precision, stripes, computed, tmp_path):
    result = tk.adapt(
        "timm/test_resnet",
        stripes,
        pretrained=False,
        image_size=32,
        strategy=strategy,
        train={"epochs": 2, "folds": 1, "lr": 1e-3, "flip": False, "augment": "light", **recipe},
        trainer={"precision": precision},
        class_weight="balanced",
        out=tmp_path / "run",
        progress=False,
    )
    assert computed == {COMPUTED_IN[precision]}
    training = result.record.training
    assert np.isfinite([[epoch.train_loss, epoch.val_loss] for epoch in training.epochs]).all()
    tensors = result.model.state_dict().values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    here = result.predict(stripes / "test" / "down").probabilities
    assert np.isfinite(here).all()
    loaded = tk.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(stripes / "test" / "down").probabilities, here)


def test_mixed_precision_on_the_command_line(stripes, computed, tmp_path, capsys):
    main([
        "adapt", "model=timm/test_resnet", "pretrained=false", "image_size=32", "data=folder", f"data.root={stripes}",
        "strategy=lp_ft", "train.epochs=2", "train.folds=1", "train.lr=1e-4", "trainer.precision=bf16-mixed",
        f"out={tmp_path / 'run'}", "progress=false", "debug=true",
    ])  # fmt: skip
    assert computed == {torch.bfloat16}
    assert "test accuracy" in capsys.readouterr().out
    training = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["training"]
    assert len(training["epochs"]) == 2
