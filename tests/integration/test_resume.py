"""A run that is killed and started again ends as the one that was not: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from transferkit.strategies import STRATEGIES

SHORT = {"epochs": 5, "folds": 2, "lr": 0.01}

VARIED: dict[str, dict[str, Any]] = {
    "few_layers": {"augment": "light", "views": 2},
    "many_layers": {"average": "ema", "mixup": 0.4, "folds": 3, "augment": "medium"},
    "lp_ft": {"average": "swa", "dropout": 0.2, "cutmix": 1.0, "optimizer": "sgd"},
    "surgical": {"schedule": "plateau", "patience": 2, "epochs": 12, "l2_sp": 0.1},
    "norm_only": {"patience": 1, "epochs": 12, "clip": 1.0},
    "lora": {"dropout": 0.1, "average": "ema", "batch_size": 7},
    "bias_only": {"schedule": "linear", "label_smoothing": 0.1},
}
"""Strategy -> settings, so that each setting that remembers something is met somewhere."""


def test_every_strategy_that_trains_is_varied():
    assert set(VARIED) == set(STRATEGIES) - {"linear_probe"}


def kill(images: Path, folder: Path, scenarios: list[dict[str, Any]]) -> None:
    script = Path(__file__).with_name("killing.py")
    subprocess.run(
        [sys.executable, str(script), str(images), str(folder), json.dumps(scenarios)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])},
    )


def recorded(run: Path) -> dict[str, Any]:
    """What was written of the training, but for its seconds."""
    training = json.loads((run / "result.json").read_text(encoding="utf-8"))["training"]
    for epoch in training["epochs"]:
        del epoch["seconds"]
    return training


def assert_alike(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert recorded(one) == recorded(other)


def times_taken_up(run: Path) -> int:
    """A fit that is taken up after some epochs writes its curves beside those of before."""
    return len(list((run / "training" / "curves").glob("*-after-*")))


def test_a_killed_run_is_taken_up_and_ends_with_the_same_weights(stripes, tmp_path):
    settings = {"strategy": "few_layers", "train": {**SHORT, **VARIED["few_layers"], "epochs": 15}}
    kill(stripes, tmp_path, [{"name": "run", "kills": 3, "seed": 1, "adapt": settings}])
    assert_alike(tmp_path / "run" / "whole", tmp_path / "run" / "killed")
    assert not list((tmp_path / "run" / "killed" / "training").rglob("*.ckpt*"))


@pytest.mark.slow
def test_whatever_remembers_something_is_taken_up_where_it_was(stripes, tmp_path):
    scenarios = [
        {
            "name": f"{strategy}-{seed}",
            "kills": 5,
            "seed": seed,
            "adapt": {"strategy": strategy, "train": {**SHORT, **settings}},
        }
        for strategy, settings in VARIED.items()
        for seed in range(3)
    ]
    kill(stripes, tmp_path, scenarios)
    for scenario in scenarios:
        assert_alike(tmp_path / scenario["name"] / "whole", tmp_path / scenario["name"] / "killed")
    assert sum(times_taken_up(tmp_path / scenario["name"] / "killed") for scenario in scenarios) > len(scenarios)
