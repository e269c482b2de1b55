"""A run that is killed and started again ends as the one that was not: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import transferkit as tk
from transferkit import cli
from transferkit.core.errors import RunFolderError
from transferkit.finetune import checkpoint
from transferkit.strategies import NEED_UNLABELLED, STRATEGIES

SHORT = {"epochs": 5, "folds": 2, "lr": 0.01}

VARIED: dict[str, dict[str, Any]] = {
    "few_layers": {"augment": "light", "views": 2},
    "many_layers": {"average": "ema", "mixup": 0.4, "folds": 3, "augment": "medium", "lr": None},
    "lp_ft": {"average": "swa", "dropout": 0.2, "cutmix": 1.0, "optimizer": "sgd"},
    "surgical": {"schedule": "plateau", "patience": 2, "epochs": 12, "l2_sp": 0.1},
    "norm_only": {"patience": 1, "epochs": 12, "clip": 1.0},
    "lora": {"dropout": 0.1, "average": "ema", "batch_size": 7, "lr": "find"},
    "fixmatch": {"folds": 2, "average": "ema"},
    "dann": {"folds": 2, "dropout": 0.2},
    "bias_only": {"schedule": "linear", "label_smoothing": 0.1},
}
"""Strategy -> settings of its training, so that each setting that remembers something is met somewhere."""

BESIDES: dict[str, dict[str, Any]] = {
    "norm_only": {"val": 0.25},
    "many_layers": {"class_weight": "balanced"},
    "lora": {"stage": "joined"},
}
"""Strategy -> other settings; a validation split of one's own leaves out the last fit on all images."""


def test_every_strategy_that_trains_is_varied():
    assert set(VARIED) == set(STRATEGIES) - {"linear_probe"}


def noise(folder: Path) -> Path:
    """A folder of images without labels."""
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(exist_ok=True)
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "more" / f"{number}.png")
    return folder / "more"


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


@contextmanager
def interrupted(monkeypatch) -> Iterator[None]:
    """Ctrl-C in the second fold, after its second epoch."""
    own, memories = checkpoint.RunCheckpoint.on_train_epoch_end, []

    def note(self: checkpoint.RunCheckpoint, trainer: Any, module: Any) -> None:
        own(self, trainer, module)
        memories.append(self)
        if len(memories) > len(self.epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "SAVE_EVERY", 0.0)
        patched.setattr(checkpoint.RunCheckpoint, "on_train_epoch_end", note)
        yield


def times_taken_up(run: Path) -> int:
    """A fit that is taken up after some epochs writes its curves beside those of before."""
    return len(list((run / "training").glob("*/curves/*-after-*")))


def test_a_killed_run_is_taken_up_and_ends_with_the_same_weights(stripes, tmp_path):
    settings = {"strategy": "few_layers", "train": {**SHORT, **VARIED["few_layers"], "epochs": 8}}
    kill(stripes, tmp_path, [{"name": "run", "kills": 2, "seed": 1, "adapt": settings}])
    assert_alike(tmp_path / "run" / "whole", tmp_path / "run" / "killed")
    assert not list((tmp_path / "run" / "killed" / "training").rglob("*.ckpt*"))


def test_what_is_in_the_way_is_met_with_care(stripes, tmp_path, monkeypatch):
    """Another run's checkpoints are dropped; files that are nobody's are left alone."""
    begun = {"pretrained": False, "image_size": 32, "strategy": "lp_ft", "progress": False, "cache": tmp_path / "bank"}
    work = tmp_path / "run" / "training" / "lp_ft"
    (work / "mine").mkdir(parents=True)
    (work / "mine" / "photo.jpg").touch()
    with pytest.raises(RunFolderError, match="holds files of somebody else's, such as mine"):
        tk.adapt("timm/test_resnet", stripes, train=SHORT, out=tmp_path / "run", **begun)
    assert (work / "mine" / "photo.jpg").is_file()
    shutil.rmtree(work)
    with interrupted(monkeypatch), pytest.raises(KeyboardInterrupt):
        tk.adapt("timm/test_resnet", stripes, train=SHORT, out=tmp_path / "run", **begun)
    assert (work / "fold-1" / "last.ckpt").is_file()
    other = {**SHORT, "lr": 0.02}
    tk.adapt("timm/test_resnet", stripes, train=other, out=tmp_path / "run", **begun)
    assert not list((work / "curves").glob("*-after-*"))
    assert json.loads((work / "identity.json").read_text(encoding="utf-8"))["recipe"]["lr"] == 0.02


def test_ctrl_c_in_training_says_how_to_go_on_and_resume_can_be_declined(stripes, tmp_path, monkeypatch, capsys):
    words = [
        "model=timm/test_resnet", "pretrained=false", "image_size=32", "data=folder", f"data.root={stripes}",
        "strategy=lp_ft", *(f"train.{name}={value}" for name, value in SHORT.items()),
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with interrupted(monkeypatch), pytest.raises(SystemExit) as stopped:
            cli.main(["adapt", *words, "resume=false", "out=run"])
        assert stopped.value.code == 130
        said = capsys.readouterr().err
        assert said.startswith("\nInterrupted; resume it with: transferkit adapt model=timm/test_resnet")
        assert not list((tmp_path / "run" / "training" / "lp_ft" / "curves").glob("*-after-*"))
    _, verb, *again = shlex.split(said.partition("resume it with: ")[2])
    assert (verb, again) == ("adapt", [*words, f"out={tmp_path / 'run'}"])
    cli.main([verb, *again])
    assert list((tmp_path / "run" / "training" / "lp_ft" / "curves").glob("fold-1-after-*"))
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize("strategy", NEED_UNLABELLED)
def test_training_with_unlabelled_images_is_taken_up_to_the_same_weights(stripes, tmp_path, monkeypatch, strategy):
    settings = {
        "pretrained": False, "image_size": 32, "strategy": strategy, "unlabelled": noise(tmp_path), "progress": False,
        "train": {**SHORT, "lr": 0.01},
    }  # fmt: skip
    tk.adapt("timm/test_resnet", stripes, out=tmp_path / "whole", **settings)
    with interrupted(monkeypatch), pytest.raises(KeyboardInterrupt):
        tk.adapt("timm/test_resnet", stripes, out=tmp_path / "killed", **settings)
    tk.adapt("timm/test_resnet", stripes, out=tmp_path / "killed", **settings)
    assert times_taken_up(tmp_path / "killed") > 0
    assert_alike(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_whatever_remembers_something_is_taken_up_where_it_was(stripes, tmp_path):
    more = {"unlabelled": str(noise(tmp_path))}
    besides = {**BESIDES, **dict.fromkeys(NEED_UNLABELLED, more)}
    scenarios = [
        {
            "name": strategy,
            "kills": 4,
            "seed": 0,
            "adapt": {"strategy": strategy, "train": {**SHORT, **settings}, **besides.get(strategy, {})},
        }
        for strategy, settings in VARIED.items()
    ]
    kill(stripes, tmp_path, scenarios)
    for scenario in scenarios:
        assert_alike(tmp_path / scenario["name"] / "whole", tmp_path / scenario["name"] / "killed")
    assert any(times_taken_up(tmp_path / scenario["name"] / "killed") for scenario in scenarios)


def test_a_search_that_was_interrupted_in_a_trial_goes_on_and_chooses_alike(tmp_path, monkeypatch):
    images = tmp_path / "noise"
    rng = np.random.default_rng(0)
    for number in range(36):
        path = images / ("train" if number < 24 else "test") / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)

    def run(name: str) -> tk.Result:
        return tk.adapt(
            "timm/test_resnet", images, pretrained=False, image_size=32, mode="search", norm="keep", train=SHORT,
            progress=False, cache=tmp_path / "bank", out=tmp_path / name,
        )  # fmt: skip

    whole = run("whole")
    assert whole.decision.reasons[0].startswith("Tried in ")
    with interrupted(monkeypatch), pytest.raises(KeyboardInterrupt):
        run("killed")
    killed = run("killed")
    assert list((tmp_path / "killed" / "training").glob("*/curves/*-after-*"))
    assert killed.decision.strategy == whole.decision.strategy
    expected = [
        {option.strategy + option.stage: option.expected_accuracy for option in (d.expected, *d.alternatives)}
        for d in (whole.decision, killed.decision)
    ]
    assert expected[0] == expected[1]  # what the trials said
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
