"""`tune` from beginning to end: real training, a study in a file, the command line, and `adapt` with what was found."""

from __future__ import annotations

import json
from functools import partial

import pytest
import yaml

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import OptionError

MODEL = "timm/test_resnet"
RATES = {"train": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "dropout": [0.0, 0.5]}}
SHORT = {"epochs": 3, "folds": 1, "augment": "none", "batch_size": 8}

tune = partial(
    tk.tune, MODEL, pretrained=False, image_size=32, views=1, strategy="few_layers", progress=False, train=SHORT
)


def test_the_best_point_is_found_by_held_back_accuracy_and_adapt_trains_with_it(stripes, tmp_path):
    found = tune(stripes, space=RATES, trials=9, out=tmp_path)
    assert [trial.stage for trial in found.trials] == ["wide"] * 3 + ["checked"] * 2 + ["narrow"] + ["finalists"] * 3
    assert [trial.epochs for trial in found.trials] == [2] * 3 + [3] * 6
    assert all(trial.state == "complete" for trial in found.trials)
    full = [trial for trial in found.trials if trial.is_full]
    assert found.best in full
    assert found.best.accuracy == max(trial.accuracy for trial in full)
    assert found.settings["train"] == {**SHORT, **{name.removeprefix("train."): value
                                                   for name, value in found.best.values.items()}}  # fmt: skip
    assert (tmp_path / "study.db").is_file()
    assert 0 < found.images < 24  # of the training images; the 12 test images are not looked at
    result = tk.adapt(
        MODEL, stripes, pretrained=False, image_size=32, views=1, progress=False, seed=0, **found.settings
    )
    assert result.record.training.candidates[-1].accuracy == pytest.approx(found.best.accuracy)


def test_the_same_search_is_not_repeated_and_gives_the_same_answer(stripes, tmp_path):
    one = tune(stripes, space=RATES, trials=4, sampler="random", out=tmp_path)
    other = tune(stripes, space=RATES, trials=4, sampler="random", out=tmp_path)
    assert one.trials == other.trials
    fresh = tune(stripes, space=RATES, trials=4, sampler="random")
    assert [(one.values, one.accuracy) for one in fresh.trials] == [(one.values, one.accuracy) for one in other.trials]


def test_a_study_of_other_images_or_settings_is_not_gone_on_with(stripes, tmp_path):
    tune(stripes, space=RATES, trials=2, sampler="random", out=tmp_path / "search")
    with pytest.raises(OptionError, match=r"trials differ from these in: train\. Their scores cannot be compared"):
        tune(stripes, space=RATES, trials=2, sampler="random", out=tmp_path / "search", train={**SHORT, "clip": 2.0})
    next((stripes / "train").rglob("*.png")).unlink()
    with pytest.raises(OptionError, match="trials differ from these in: images, image size"):
        tune(stripes, space=RATES, trials=2, sampler="random", out=tmp_path / "search", image_size=40)


@pytest.mark.parametrize("pruner", ["median", "wilcoxon"])
def test_poor_trials_are_ended_in_the_middle_of_training(stripes, pruner):
    train = {**SHORT, "folds": 4 if pruner == "wilcoxon" else 1}
    space = {"train.lr": [1e-3, 1e-3 + 1e-9, 1e-3 - 1e-9, 1e-3 + 2e-9, 1e-3 - 2e-9, 30.0, 40.0]}
    found = tune(stripes, space=space, trials=7, sampler="grid", pruner=pruner, train=train)
    states = {trial.values["train.lr"]: trial.state for trial in found.trials}
    assert len(states) == 7
    assert all(states[lr] == "complete" for lr in space["train.lr"][:2])
    assert found.best.values["train.lr"] < 1


def test_the_best_points_are_compared_on_three_folds(stripes):
    found = tune(stripes, space=RATES, trials=8, sampler="one_epoch", train={"epochs": 1, "augment": "none"})
    assert found.images == 24  # every training image is held back once


def test_two_processes_share_the_trials(stripes):
    found = tune(stripes, space=RATES, trials=4, sampler="random", workers=2)
    assert [trial.state for trial in found.trials] == ["complete"] * 4


def test_a_search_whose_time_is_over_says_so(stripes):
    found = tune(stripes, space=RATES, trials=8, seconds=1e-3)
    assert found.best is None
    assert "0 of 8 trials complete, 8 failed" in found.sentences[0]
    assert found.sentences[1] == "There was no time left for it."


def test_the_points_of_a_linear_probe_are_tried_once_each_and_adapt_fits_the_best(stripes):
    data = {"pretrained": False, "image_size": 32, "views": 1, "progress": False}
    found = tk.tune(MODEL, stripes, strategy="linear_probe", trials=1000, **data)
    points = [tuple(trial.values.values()) for trial in found.trials]
    assert len(set(points)) == len(points) == len(found.space["stage"].split(" or ")) * 3
    assert found.sampler == "grid"
    assert {trial.state for trial in found.trials} == {"complete"}
    assert found.images == 24
    result = tk.adapt(MODEL, stripes, **data, **found.settings)
    assert result.decision.held_back == 24
    assert (result.decision.strategy, result.decision.stage) == ("linear_probe", found.best.values["stage"])
    assert f"{found.best.values['head']} {100 * found.best.accuracy:.1f} %" in " ".join(result.decision.reasons)


def test_of_a_probe_what_is_given_is_not_searched(stripes):
    data = {"pretrained": False, "image_size": 32, "views": 1, "progress": False}
    found = tk.tune(MODEL, stripes, strategy="linear_probe", stage="joined", **data)
    assert list(found.space) == ["head"]
    with pytest.raises(OptionError, match="Everything that could be searched is set"):
        tk.tune(MODEL, stripes, strategy="linear_probe", stage="joined", head="ridge", **data)


def test_the_default_space_leaves_out_what_is_set(stripes):
    found = tune(stripes, trials=1, sampler="random")
    assert "train.batch_size" not in found.space
    assert list(found.space)[:2] == ["train.lr", "train.momentum"]
    assert "unfreeze" in found.space


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "linear_probe", "train": None, "pruner": "median"}, "solved for, without epochs that a pruner"),
        ({"strategy": "linear_probe", "train": None, "sampler": "one_epoch"}, "solved for, without epochs"),
        (
            {"strategy": "linear_probe", "train": None, "space": {"train.lr": [0.1, 0.2]}},
            "Unknown hyperparameter of a linear probe 'train.lr'. Known: head, stage",
        ),
        ({"strategy": "norm_only", "train": {"layer_decay": 0.5}}, "layer_decay has no effect with strategy=norm_only"),
        ({"space": {"train.lrr": [1, 2]}}, "Unknown hyperparameter 'train.lrr'. Closest known: train.lr"),
        ({"space": {"train.lr": [-1.0, 2.0]}}, "lr must be > 0"),
        ({"sampler": "genetic"}, "Unknown sampler 'genetic'"),
        ({"pruner": "median", "sampler": "one_epoch"}, "compares trials that train for equally long"),
        ({"pruner": "medain", "sampler": "tpe"}, "Unknown pruner 'medain'. Closest known: median"),
        ({"trials": 0}, "trials must be >= 1, got 0"),
        ({"seconds": -1.0}, "seconds must be > 0"),
        ({"trials": 3, "sampler": "coarse_to_fine"}, "sampler=coarse_to_fine needs at least 8 trials"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(stripes, options, message):
    with pytest.raises(OptionError, match=message):
        tune(stripes, **options)


def test_the_command_line_leaves_a_file_that_trains_with_the_best_point(stripes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model=timm/test_resnet", "pretrained=false", "image_size=32", "views=1", f"data.root={stripes}"]
    space = "tune.space={train:{lr:{low:1.0e-4,high:0.1,log:true}}}"
    main(["tune", *words, "strategy=few_layers", "train.epochs=2", "train.folds=1", "tune.trials=2",
          "tune.sampler=random", space, "out=search"])  # fmt: skip
    said = capsys.readouterr().out
    assert "2 of 2 trials complete" in said
    record = json.loads((tmp_path / "search" / "tuning.json").read_text(encoding="utf-8"))
    assert len(record["trials"]) == 2
    best = yaml.safe_load((tmp_path / "search" / "experiment" / "best.yaml").read_text(encoding="utf-8"))
    assert best["train"]["lr"] in [one["values"]["train.lr"] for one in record["trials"]]
    command = said.strip().splitlines()[-1].split()
    assert command[:3] == ["transferkit", "adapt", "--config-dir=search"]
    main([*command[1:], "out=trained"])
    trained = json.loads((tmp_path / "trained" / "result.json").read_text(encoding="utf-8"))
    assert trained["decision"]["lr"] == pytest.approx(best["train"]["lr"])
    assert trained["decision"]["strategy"] == "few_layers"
    assert trained["command"].split()[:3] == command[:3]  # without its folder experiment=best is unknown


def test_other_verbs_take_no_settings_of_the_search(stripes, capsys):
    with pytest.raises(SystemExit):
        main(["adapt", f"data.root={stripes}", "tune.trials=3"])
    assert "adapt takes no tune.trials=, only transferkit tune." in capsys.readouterr().err
