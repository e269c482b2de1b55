"""Several processes end where one ends that takes the same steps; one of them speaks and writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from transferkit.api import adapt
from transferkit.core.errors import OptionError
from transferkit.features import FeatureBank

SHARING = Path(__file__).with_name("sharing.py")
IMAGES, TESTED = 60, 12

STEADY = {"epochs": 4, "folds": 1, "lr": 1e-3, "optimizer": "sgd", "batch_size": 16, "flip": True, "patience": 4}
"""48 and 60 images in steps of 16 are halves of equal size; SGD does not make much of the last bits."""

VARIED = {
    "few_layers": {"augment": "light", "views": 2, "average": "ema"},
    "many_layers": {"augment": "medium", "average": "swa"},
    "lp_ft": {"augment": "light", "schedule": "plateau", "l2_sp": 0.1},
    "lora": {"augment": "none", "clip": 1.0},
}

SETTLED = {"strategy": "auto", "budget": 1000, "norm": "frozen", "train": {"epochs": 2, "folds": 1}}


@pytest.fixture
def noise(tmp_path):
    """Noise, in which the class is a slight tint: no fit is so good that there is no gradient."""
    rng, root = np.random.default_rng(0), tmp_path / "noise"
    for split, images in (("train", IMAGES // 3), ("test", TESTED // 3)):
        for tint in range(3):
            for number in range(images):
                pixels = rng.normal(128, 40, (32, 32, 3))
                pixels[..., tint] += 6
                path = root / split / f"class{tint}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


def command(images: Path, out: Path, strategy: str, *worlds: int, **options: Any) -> list[str]:
    """Processes are forked where their numbers are given; each number is a run of its own."""
    # Statistics of a batch are those of a process's own part of it, and differ with the number of processes.
    settings = {"strategy": strategy, "norm": "frozen", "train": {**STEADY, **VARIED[strategy]}, **options}
    return [str(SHARING), str(images), str(out), json.dumps(settings), *map(str, worlds)]


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SHARING.parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, start_new_session=True, **pipes)


def finish(*words: str) -> str:
    """What it prints."""
    process = start(*words)
    try:
        said, complained = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:  # one waits for another that will never come
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, complained
    return said


def training_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))["training"]


def assert_close(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for here, there in zip(training_of(one)["epochs"], training_of(other)["epochs"], strict=True):
        for measured in ("train_loss", "val_loss", "lr"):
            assert here[measured] == pytest.approx(there[measured], rel=1e-3)


def told_by(run: Path) -> list[dict[str, Any]]:
    """What each process got."""
    return [json.loads(Path(f"{run}-told-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_two_processes_that_start_together_end_where_one_does(noise, tmp_path):
    finish(*command(noise, tmp_path / "run", "few_layers", 1, 2))
    one, two = tmp_path / "run-1", tmp_path / "run-2"
    assert_close(one, two)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    first, second = told_by(two)
    assert first["accuracy"] == second["accuracy"]
    # Features and activations in three versions of the training images: no row is missing, none is twice.
    rows = sorted(shelf.images for shelf in FeatureBank(f"{two}-bank").list_shelves())
    assert rows == [IMAGES, 3 * IMAGES]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", list(VARIED)[1:])
def test_every_kind_of_strategy_ends_where_one_process_does(strategy, noise, tmp_path):
    finish(*command(noise, tmp_path / "run", strategy, 1, 2))
    assert_close(tmp_path / "run-1", tmp_path / "run-2")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_processes_that_lightning_starts_find_all_features_and_write_nothing(how, noise, tmp_path):
    trainer = {"devices": 2, "strategy": how, "accelerator": "cpu"}
    finish(*command(noise, tmp_path / "one", "few_layers"))
    finish(*command(noise, tmp_path / "two", "few_layers", trainer=trainer))
    assert_close(tmp_path / "one", tmp_path / "two")
    assert [part["computed"] for part in told_by(tmp_path / "two")] == [IMAGES, 0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["evidence", "search"])
def test_processes_decide_alike_by_clocks_of_their_own(mode, noise, tmp_path):
    words = [str(SHARING), str(noise), str(tmp_path / "run"), json.dumps(SETTLED | {"mode": mode}), "2"]
    finish(*words)
    first, second = told_by(tmp_path / "run-2")
    assert first == {**second, "computed": first["computed"]}
    assert any("Tried in" in reason for reason in first["reasons"]) == (mode == "search")


QUICK, *SLOW = VARIED


@pytest.mark.parametrize("strategy", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_weights_that_are_shared_out_end_where_whole_ones_do(strategy, noise, tmp_path):
    finish(*command(noise, tmp_path / "whole", strategy, 1))
    finish(*command(noise, tmp_path / "parts", strategy, 2, trainer={"strategy": "fsdp"}))
    assert_close(tmp_path / "whole-1", tmp_path / "parts-2")
    first, second = told_by(tmp_path / "parts-2")
    assert first["accuracy"] == second["accuracy"]


def test_a_budget_asks_for_processes_that_start_together(noise):
    with pytest.raises(OptionError, match=r"Start them together \(torchrun"):
        adapt("timm/test_resnet", noise, pretrained=False, image_size=32, budget=60, trainer={"devices": 2})


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["lightning", "torchrun"])
def test_the_command_line_speaks_once(launch, noise, tmp_path):
    out = tmp_path / "run"
    words = [
        "-m", "transferkit.cli", "adapt", "model=timm/test_resnet", "pretrained=false", "image_size=32", "data=folder",
        f"data.root={noise}", "strategy=lp_ft", "train.epochs=2", "train.folds=1", "train.lr=1e-4", f"out={out}",
        f"cache={tmp_path / 'bank'}", "debug=true",
    ]  # fmt: skip
    if launch == "lightning":
        said = finish(*words, "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    else:
        said = finish("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words)
    assert said.count("test accuracy") == said.count("report: ") == 1
    assert {path.name for path in out.iterdir()} == {
        ".hydra", ".transferkit", "held_back.safetensors", "log.txt", "model.safetensors", "report.html", "result.json",
        "training",
    }  # fmt: skip
    assert (out / "log.txt").read_text(encoding="utf-8").count("test accuracy") == 1
    command = json.loads((out / "result.json").read_text(encoding="utf-8"))["command"]
    assert command.startswith("transferkit adapt model=timm/test_resnet")
    assert "hydra" not in command


@pytest.mark.slow
@pytest.mark.parametrize(("how", "strategy"), [("ddp", "many_layers"), ("fsdp", "many_layers"), ("fsdp", "lp_ft")])
def test_processes_that_are_killed_are_taken_up_together(how, strategy, noise, tmp_path):
    """With averages and with a pull, which a checkpoint holds as well."""
    settings = {"trainer": {"strategy": how}, "train": STEADY | VARIED[strategy] | {"optimizer": "adamw"}}
    finish(*command(noise, tmp_path / "whole", strategy, 2, **settings))
    words = command(noise, tmp_path / "killed", strategy, 2, **settings)
    work = tmp_path / "killed-2" / "training" / strategy
    for name in ("fold-0", "all"):
        process = start(*words)
        while not (work / name / "last.ckpt").is_file():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(*words)
    assert list((work / "curves").glob("all-after-*"))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole-2", "killed-2"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["module", "callback"])
def test_a_trainer_of_ones_own_may_share_weights_out(what, tmp_path):
    for devices in (1, 2):
        finish(str(SHARING.with_name("own_trainer.py")), str(tmp_path / f"{devices}.pt"), str(devices), what)
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert 0.5 * one["numbers"] <= two["numbers"] < 0.52 * one["numbers"]
    for alike in ("frozen", "asking", "hooks"):
        assert one.get(alike) == two.get(alike)
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-3, atol=1e-5)
    if what == "module":
        torch.testing.assert_close(two["probabilities"], one["probabilities"], rtol=1e-3, atol=1e-5)
