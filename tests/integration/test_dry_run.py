"""`dry_run=` of every verb: it says what would be done, in text and JSON, and does nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from transferkit.cli import VERBS, main
from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.data import remembered
from transferkit.records import DryRun

MODEL = "model=timm/test_resnet"
QUICK = [MODEL, "pretrained=false", "image_size=32", "progress=false"]

CALLS = {
    "adapt": ["adapt", *QUICK, "data.root={data}", "out={run}/new"],
    "analyze": ["analyze", *QUICK, "data.root={data}", "out={run}/new"],
    "rank": [
        "rank",
        "models=[timm/test_resnet,timm/test_vit]",
        "pretrained=false",
        "image_size=160",
        "data.root={data}",
    ],
    "doctor": ["doctor", *QUICK, "data.root={data}", "strategy=few_layers"],
    "doctor labels": ["doctor", "labels", *QUICK, "data.root={data}"],
    "doctor images": ["doctor", "images", *QUICK, "data.root={data}"],
    "tune": ["tune", *QUICK, "data.root={data}", "tune.trials=8", "strategy=few_layers"],
    "tune a probe": ["tune", *QUICK, "data.root={data}", "strategy=linear_probe"],
    "fewshot": ["fewshot", *QUICK, "data.root={data}", "queries=4", "out=few.html"],
    "fewshot add": ["fewshot", "add", "run={run}", "class=new", "images={data}/test/0", "out={run}-larger"],
    "zeroshot": ["zeroshot", *QUICK, "data.root={data}", "attributes={data}/../table.csv", "out={run}/new"],
    "shift": ["shift", "run={run}", "images={data}/test", "out=shifted"],
    "extract": ["extract", *QUICK, "data.root={data}", "views=1"],
    "shard": ["shard", "data.root={data}", "out=shards"],
    "predict": ["predict", "run={run}", "images={data}/test", "out=answers.csv"],
    "evaluate": ["evaluate", "run={run}", "data.root={data}/test"],
    "combine": ["combine", "runs=[{run},{run}]", "out={run}-both"],
    "export": ["export", "run={run}"],
    "zoo": ["zoo", "source=packaged"],
    "cache": ["cache"],
    "cache clear": ["cache", "clear=true"],
}
"""Verb, with a word that makes it another -> a call of it."""

WRITERS = {*CALLS} - {"doctor", "zoo", "cache", "cache clear"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made once."""
    from transferkit.api import adapt

    out = tmp_path_factory.mktemp("finished") / "run"
    arguments = {"pretrained": False, "image_size": 32, "strategy": "linear_probe", "progress": False}
    cache = out.parent / "cache"
    adapt("timm/test_resnet", "builtin/digits", test=0.9, **arguments, out=out, cache=cache, evaluate=False, views=1)
    return out


def tree(*folders: Path) -> dict[str, tuple[int, int] | None]:
    """Every path below -> size and time of its last change; folders by name alone."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for folder in folders
        for path in [folder, *folder.rglob("*")]
        if path.exists()
    }


def words_of(call: str, data: Path, run: Path) -> list[str]:
    return [word.format(data=data, run=run) for word in CALLS[call]]


@pytest.fixture
def digit_files(tmp_path):
    """{train,test}/{0,...,9}/*.png, the classes of the finished run."""
    from transferkit.data import open_data

    data, root = open_data("builtin/digits", test=0.5), tmp_path / "digits"
    for number in range(200):
        split, label = ("train", "test")[number % 2], str(int(data.labels[number]))
        (root / split / label).mkdir(parents=True, exist_ok=True)
        data.image(number).resize((32, 32)).save(root / split / label / f"{number}.png")
    rows = [f"{number},{number & 1},{number >> 1 & 1},{number >> 2 & 1},{number >> 3}" for number in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["class,one,two,four,eight", *rows]))
    return root


def test_every_verb_has_a_call():
    assert {call.split()[0] for call in CALLS} == set(VERBS)


@pytest.mark.parametrize("call", CALLS)
def test_it_says_what_would_be_done_and_does_nothing(call, at, digit_files, finished, own_cache, capsys):
    watched = (at, own_cache, finished.parent, digit_files)
    words, before = words_of(call, digit_files, finished), tree(*watched)
    main([*words, "dry_run=true"])
    text = capsys.readouterr().out
    assert "nothing is done" in text
    assert "in all: " in text
    main([*words, "dry_run=json"])
    plain = json.loads(capsys.readouterr().out)
    assert tree(*watched) == before
    plan = from_json(DryRun, plain)
    assert to_json(plan) == plain
    assert plain["schema"] == 1
    assert plan.verb == call.replace("cache clear", "cache").replace("tune a probe", "tune")
    assert shlex.split(plan.command)[:2] == ["transferkit", call.split()[0]]
    assert "dry_run" not in plan.command
    assert plan.seconds_high > plan.seconds_low >= 0
    assert plan.memory_bytes > 50 * 2**20
    assert bool(plan.files) == (call in WRITERS)


def test_the_command_of_a_plan_is_the_one_without_dry_run(at, digit_files, capsys):
    main(["adapt", *QUICK, f"data.root={digit_files}", "seed=3", "dry_run=json"])
    command = json.loads(capsys.readouterr().out)["command"]
    assert set(shlex.split(command)[2:]) == {"data=folder", *QUICK, f"data.root={digit_files}", "seed=3"}


@pytest.mark.parametrize(
    "words",
    [
        ["adapt", "strategy=lp-ft"],
        ["adapt", "data.root=nowhere"],
        ["adapt", "image_size=0", "seed=x"],
        ["adapt", "model=timm/no_such_network"],
        ["adapt", "strategy=few_layers", "unfreeze=[nowhere]", MODEL, "pretrained=false", "image_size=32"],
        ["analyze", "mode=search"],
        ["rank", "models=nothing*"],
        ["tune", "strategy=linear_probe", "tune.pruner=median"],
        ["tune", "tune.trials=3", "tune.sampler=one_epoch"],
        ["fewshot", "shots=0"],
        ["fewshot", "ways=11", "image_size=32", MODEL, "pretrained=false"],
        ["fewshot", "method=soft_means"],
        ["fewshot", "subtract"],
        ["fewshot", "add", "run=nowhere", "class=x", "images=x.jpg", "out=larger"],
        ["doctor", "labels=nowhere.csv"],
        ["doctor", "replay", "nowhere.pt"],
        ["predict", "run=nowhere", "images=x.jpg"],
        ["predict", "run=nowhere", "images=x.jpg", "out=x.txt"],
        ["predict", "images=x.jpg"],
        ["evaluate", "run=nowhere"],
        ["export", "run=nowhere", "format=tflite"],
        ["zoo", "pattern=nothing"],
        ["cache", "colour=red"],
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_as_without_it(words, at, capsys):
    said = []
    for more in ([], ["dry_run=true"]):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 2
        said.append(capsys.readouterr().err.strip().splitlines())
    assert said[0] == said[1]
    assert not list(at.iterdir())


def test_missing_images_are_an_error_as_without_it(at, finished, capsys):
    test_what_is_wrong_is_said_as_without_it(["predict", f"run={finished}", "images=x.jpg"], at, capsys)


def test_a_folder_in_use_is_refused(at, finished, capsys):
    test_what_is_wrong_is_said_as_without_it(["adapt", "image_size=64", f"out={finished}"], at, capsys)


@pytest.mark.parametrize("value", ["yes", "", "1"])
def test_it_is_true_json_or_false(value, at, capsys):
    with pytest.raises(SystemExit):
        main(["zoo", f"dry_run={value}"])
    assert f"dry_run must be true, json or false, got '{value}'." in capsys.readouterr().err


def test_false_does_the_work(at, capsys):
    main(["zoo", "source=packaged", "dry_run=false"])
    assert "packaged/tf_efficientnet_lite0" in capsys.readouterr().out


def test_flags_of_hydra_are_refused(at, capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "dry_run=true", "--cfg", "job"])
    assert "dry_run goes with no --cfg" in capsys.readouterr().err


def test_a_sweep_is_a_plan_per_run_and_their_sum(at, digit_files, own_cache, capsys):
    before = tree(at, own_cache)
    words = ["adapt", "-m", *QUICK, f"data.root={digit_files}", "views=1", "out=sweep"]
    main([*words, "strategy=linear_probe,few_layers", "dry_run=json"])
    plan = from_json(DryRun, json.loads(capsys.readouterr().out))
    assert [one.strategy for one in plan.runs] == ["linear_probe", "few_layers"]
    assert plan.seconds_high == pytest.approx(sum(one.seconds_high for one in plan.runs))
    assert plan.memory_bytes == max(one.memory_bytes for one in plan.runs)
    first, second = (next(step for step in one.steps if step.name == "frozen pass") for one in plan.runs)
    assert (first.in_bank, second.in_bank) == (0, second.images)
    assert second.disk_bytes_high == 0
    assert Path(plan.runs[1].files[0].path).parts[-3:-1] == ("sweep", "1")
    assert shlex.split(plan.command)[1:] == [*words, "strategy=linear_probe,few_layers"]
    assert tree(at, own_cache) == before


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("predict", {}, "Unknown verb 'predict'"),
        ("adapt", {"data": "builtin/digits"}, "adapt needs model."),
        ("rank", {"out": "x"}, "rank needs models and data."),
        ("adapt", {"model": "x", "data": "y", "lr": 1}, "Unknown argument of adapt 'lr'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(verb, arguments, said):
    from transferkit.api import dry_run

    with pytest.raises(OptionError, match=said):
        dry_run(verb, arguments)


def test_with_features_in_the_bank_the_decision_is_made_for_real(at, digit_files, own_cache, monkeypatch):
    from transferkit.api import adapt, dry_run

    monkeypatch.setattr(remembered, "SETTLED", -(10**12))  # the files were written just now
    arguments = {"image_size": 32, "pretrained": False, "progress": False, "seed": 1}
    call = {"model": "timm/test_resnet", "data": str(digit_files), **arguments}
    assert dry_run("adapt", call).strategy == ""
    real = adapt(**call)
    before = tree(own_cache)
    plan = dry_run("adapt", call)
    assert plan.strategy == real.decision.strategy
    passes = [step for step in plan.steps if step.name in ("frozen pass", "views") and step.is_certain]
    assert all(step.in_bank == step.images for step in passes)
    assert plan.data is not None
    assert plan.data.is_exact
    assert {name: real.evidence.data.size(name) for name in plan.data.images} == plan.data.images
    assert tree(own_cache) == before


def test_a_search_counts_its_trials(at, digit_files, capsys):
    main(["tune", *QUICK, f"data.root={digit_files}", "strategy=few_layers", "tune.trials=10", "dry_run=json"])
    plan = from_json(DryRun, json.loads(capsys.readouterr().out))
    trials = {step.name: step.what for step in plan.steps if step.name.startswith("trials")}
    assert list(trials) == ["trials wide", "trials checked", "trials narrow", "trials finalists"]
    assert trials["trials finalists"].startswith("3 trials")


def test_weights_that_are_not_here_are_not_fetched(at, digit_files, monkeypatch, capsys):
    import socket

    monkeypatch.setattr(socket, "create_connection", None)
    monkeypatch.setenv("HF_HUB_CACHE", str(at / "hub"))
    main(
        [
            "adapt",
            "model=timm/resnet10t.c3_in1k",
            "image_size=64",
            f"data.root={digit_files}",
            "views=1",
            "dry_run=true",
        ]
    )
    assert "The weights of timm/resnet10t.c3_in1k are not on this machine" in capsys.readouterr().out


def test_clearing_the_cache_says_what_would_be_freed(at, own_cache, capsys):
    from transferkit.api import analyze

    analyze("timm/test_resnet", "builtin/digits", test=0.9, pretrained=False, image_size=32, views=1, progress=False)
    main(["cache", "clear=true", "dry_run=json"])
    plan = from_json(DryRun, json.loads(capsys.readouterr().out))
    assert {one.action for one in plan.files} == {"delete"}
    assert all(Path(one.path).exists() for one in plan.files)
    main(["cache", "clear=true"])
    freed = float(capsys.readouterr().out.split()[0])
    assert sum(one.bytes for one in plan.files) / 2**20 == pytest.approx(freed, abs=0.06)
    assert not any(Path(one.path).exists() for one in plan.files)


def test_a_prepared_file_of_a_search_is_found(at, digit_files, capsys):
    folder = at / "search" / "experiment"
    folder.mkdir(parents=True)
    head = "# @package _global_\ndefaults:\n  - override /strategy: few_layers\n"
    (folder / "best.yaml").write_text(head + "train:\n  epochs: 3\n", encoding="utf-8")
    words = [f"data.root={digit_files}", "experiment=best", *QUICK, "views=1"]
    main(["adapt", "--config-dir=search", *words, "dry_run=json"])
    plan = from_json(DryRun, json.loads(capsys.readouterr().out))
    assert plan.strategy == "few_layers"
    assert "3 epochs" in next(step.what for step in plan.steps if step.name == "fine-tune")
    assert shlex.split(plan.command)[:3] == ["transferkit", "adapt", "--config-dir=search"]


def test_disk_is_what_a_run_writes(at, digit_files, tmp_path):
    from transferkit.api import adapt, dry_run

    out, cache = at / "run", tmp_path / "fresh"
    call = {"model": "timm/test_resnet", "pretrained": False, "image_size": 32, "progress": False, "cache": str(cache)}
    call |= {"data": str(digit_files), "strategy": "linear_probe", "views": 1, "geometry": "crop", "out": str(out)}
    plan = dry_run("adapt", call)
    adapt(**call)
    written = sum(path.stat().st_size for folder in (out, cache) for path in folder.rglob("*") if path.is_file())
    assert 0.8 * plan.disk_bytes_low <= written <= 1.2 * plan.disk_bytes_high
    [model] = [one for one in plan.files if one.path.endswith("model.safetensors")]
    assert model.bytes == pytest.approx((out / "model.safetensors").stat().st_size, rel=0.1)
