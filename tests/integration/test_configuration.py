"""The files of conf/: each composes, says its command and what to expect, and the experiments run offline."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import transferkit as tk
from transferkit.cli import main
from transferkit.cli.composition import GROUPS, compose_settings, config_folder, group_choices
from transferkit.cli.launchers import check_launcher
from transferkit.cli.schema import arguments_of, known_settings
from transferkit.core.errors import OptionError, problem_of
from transferkit.strategies import STRATEGIES


def is_installed(path: Path) -> bool:
    """Whether what the file chooses is there."""
    return path.parent.name != "launcher" or problem_of(lambda: check_launcher(path.stem)) is None


FILES = sorted(path for group in GROUPS for path in (config_folder() / group).glob("*.yaml"))
OFFLINE = group_choices("experiment")


def name_of(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("file", list(filter(is_installed, FILES)), ids=name_of)
def test_a_file_composes_to_arguments_of_adapt(file):
    more = [f"data.{'path' if file.stem == 'manifest' else 'root'}=x"] if file.stem in ("folder", "manifest") else []
    settings = compose_settings([name_of(file), *more])
    arguments = arguments_of(settings, tk.adapt)
    assert {"model", "data", "strategy", "train", "trainer"} <= set(arguments)
    kept = OmegaConf.to_container(OmegaConf.load(file))
    package = (
        ""
        if "_global_" in file.read_text(encoding="utf-8")
        else {"finetune": "train."}.get(file.parent.name, f"{file.parent.name}.")
    )
    assert {f"{package}{key}" for key in kept} - {"defaults", "hydra"} <= {
        *known_settings(), *(f"trainer.{key}" for key in settings.trainer)
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_headed_by_its_command_and_what_to_expect(file):
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    command = shlex.split(lines[0].removeprefix("# "))
    assert command[:2] == ["transferkit", "tune" if file.parent.name == "tune" else "adapt"]
    if file.parent.name != "data":
        assert name_of(file) in command
        assert re.match(
            r"# Expected: ((test|held-back) accuracy \d+\.\d % .* \d{4}-\d\d-\d\d\)|not measured here: .*)$", lines[1]
        )


def test_there_is_a_file_for_every_strategy_and_all_files_have_a_home():
    assert set(group_choices("strategy")) == {"auto", *STRATEGIES}
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "hydra"}
    assert len(OFFLINE) >= 4


@pytest.mark.parametrize("name", OFFLINE)
def test_an_experiment_runs_offline(name, tmp_path, monkeypatch, capsys, bank):
    monkeypatch.chdir(tmp_path)
    quick = ["image_size=32", "geometry=crop", "views=1", "progress=false", f"cache={bank}"]
    gradient = [] if "probe" in name else ["train.epochs=1", "train.folds=1"]
    main(["adapt", f"experiment={name}", "data.test=0.9165", *quick, *gradient])
    accuracy = float(re.search(r"^test accuracy ([\d.]+) %", capsys.readouterr().out, flags=re.M)[1])
    assert accuracy > 60  # a tenth by chance
    assert (tmp_path / "runs" / name / "result.json").is_file()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return tmp_path_factory.mktemp("bank")


def test_settings_beat_the_experiment_and_the_experiment_beats_the_defaults():
    settings = compose_settings(["experiment=digits_group_norm", "norm=frozen"])
    assert (settings.strategy, settings.norm, settings.train.epochs) == ("lp_ft", "frozen", 3)
    assert compose_settings(["experiment=digits_group_norm"]).norm == "group"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone=resnet5"], "Unknown backbone 'resnet5'. Closest known: resnet50. .* model=NAME"),
        (["finetune=fast"], "Unknown way of fine-tuning 'fast'. Closest known: default"),
        (["trainer=tpu"], "Unknown trainer 'tpu'"),
        (["trainer=[x]"], "Unknown trainer"),
        (["experiment=digits"], "Unknown experiment 'digits'. Closest known: digits_"),
        (["data=digit"], "Unknown data source 'digit'. Closest known: digits"),
        (["train=5"], "train is several settings. Set one of them: train.epochs=..."),
        (["+unknown=1"], "Unknown setting 'unknown'"),
        (["train={epoch:3}"], "Unknown setting 'train.epoch'. Closest known: train.epochs"),
        (["~train"], "'~train': a setting cannot be removed. Leave it out for its default."),
        (["experiment=null"], "Unknown experiment 'None'. Known: digits_150"),
        (["++train.epoch=1"], "Unknown setting 'train.epoch'. Closest known: train.epochs"),
        (["trainer.precison=16"], "Closest known: trainer.precision.* is \\+trainer.precison=..."),
        (["geometry=null"], "^$"),
        (["mode=[evidence,rule]"], "mode must be a single name, got"),
        (["mode=evidence,rule"], r"A list has brackets: mode=\[evidence,rule\]; a run for each --multirun"),
        (["data.columns=label"], "data.columns is several settings"),
        (["seed=1.5", "train.epochs=x"], "seed must be a whole number, got 1.5. train.epochs must be a whole number"),
        (["data=folder"], "data=folder needs data.root=..."),
        (["data=manifest"], "data=manifest needs data.path=..."),
        (["data=digits", "data.root=x"], "data=digits has no data.root"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_in_plain_words(words, message):
    if message == "^$":
        assert compose_settings(words).geometry is None  # refused later, by the check of views
        return
    with pytest.raises(OptionError, match=message):
        compose_settings(words)


def test_any_other_option_of_lightnings_trainer_is_added_with_a_plus():
    settings = compose_settings(["+trainer.accumulate_grad_batches=2"])
    assert arguments_of(settings, tk.adapt)["trainer"] == {"accumulate_grad_batches": 2}
