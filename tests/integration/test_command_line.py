"""The command line as a person meets it: what it prints, leaves behind, and says when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from transferkit.cli import HELP, VERBS, main
from transferkit.data import remembered

QUICK = ["image_size=32", "progress=false", "head=ridge"]
REPOSITORY = Path(__file__).parents[2]


def fails(capsys, *arguments: str) -> str:
    """Run, expect exit code 2 and one paragraph without a traceback; return it."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "Traceback" not in said
    return said


def test_words_where_numbers_belong_are_told_all_at_once(at, stripes, capsys):
    said = fails(capsys, "adapt", "data=folder", f"data.root={stripes}", "budget=abc", "seed=1.5", "data.test=few")
    assert "budget must be > 0 seconds, or auto, got 'abc'." in said
    assert "seed must be a whole number, got 1.5." in said
    assert "data.test must be a number, got 'few'." in said
    assert not list(at.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("views=crop+pda", "Unknown view 'pda'. Closest known: pad."),
        ("geometry=[crop,pad]", "Several are averaged with views=, as in views=crop+pad."),
        ("views=null", "views must be auto, 1, or names joined by +, got None."),
    ],
)
def test_views_that_there_are_not_are_refused_before_any_folder(at, stripes, capsys, typed, said):
    assert said in fails(capsys, "adapt", "data=folder", f"data.root={stripes}", typed)
    assert not list(at.iterdir())


@pytest.mark.parametrize("typed", ["views=[PAD,crop]", "views=Pad + crop"])
def test_views_are_typed_as_a_list_or_joined(at, stripes, capsys, typed):
    main(["analyze", "data=folder", f"data.root={stripes}", "out=run", typed, "geometry=PAD", *QUICK[:2]])
    views = json.loads((at / "run" / "evidence.json").read_text(encoding="utf-8"))["evidence"]["views"]
    assert (views["geometry"], views["views"]) == ("pad", ["crop", "pad"])
    assert "averaged over 2 views of each image: crop, pad" in capsys.readouterr().out


def test_the_folder_of_the_data_may_be_where_one_works(stripes, monkeypatch, capsys):
    monkeypatch.chdir(stripes)
    for out in ([], ["out=."]):
        main(["analyze", "data=folder", "data.root=.", *out, "image_size=32", "progress=false"])
        said = capsys.readouterr().out
        assert "folder .: 3 classes, 24 train, 12 test. The data's own splits, unchanged: train, test." in said
    assert "The audit also noted: " in said  # runs/ was skipped


def test_no_test_images_are_told_and_columns_can_be_named(at, stripes, capsys):
    shutil.rmtree(stripes / "test")
    rows = [f"{path},{path.parent.name}" for path in sorted(stripes.rglob("*.png"))]
    (at / "m.csv").write_text("\n".join(["file,kind,split", *(f"{row},train" for row in rows)]), encoding="utf-8")
    said = fails(capsys, "analyze", "data=manifest", "data.path=m.csv", "image_size=32", "progress=false")
    assert "data.columns.path=file" in said
    columns = ["data.columns.path=file", "data.columns.label=kind"]
    main(["analyze", "data=manifest", "data.path=m.csv", *columns, "image_size=32", "progress=false"])
    said = capsys.readouterr().out
    assert "The data's own splits contain no test images, so " in said
    assert "pass test=0.2 (command line: data.test=0.2)" in said
    assert "Unknown setting 'data.columns.lable'. Closest known: data.columns.label" in fails(
        capsys, "analyze", "data=manifest", "data.path=m.csv", "data.columns.lable=kind"
    )


def test_adapt_then_predict_then_export(at, stripes, capsys):
    main(["adapt", "data=folder", f"data.root={stripes}", "out=run", *QUICK])
    said = capsys.readouterr().out
    assert "test accuracy 100.0 %" in said
    assert "report: run/report.html" in said.replace(f"{at}/", "")
    assert {path.name for path in (at / "run").iterdir()} == {
        ".hydra", ".transferkit", "held_back.safetensors", "log.txt", "model.safetensors", "report.html", "result.json",
    }  # fmt: skip
    recorded = json.loads((at / "run" / "result.json").read_text(encoding="utf-8"))
    assert recorded["command"].startswith("transferkit adapt data=folder")

    main(["predict", "run=run", f"images={stripes / 'test' / 'down'}", "out=answers.csv"])
    rows = list(csv.DictReader((at / "answers.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {row["label"] for row in rows} == {"down"}
    capsys.readouterr()
    main(["predict", "run=run", f"images={stripes / 'test' / 'across'}", "format=json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed[0]["label"] == "across"
    assert sum(printed[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    pytest.importorskip("onnxruntime")
    main(["export", "run=run"])
    assert (at / "run" / "model.onnx").is_file()


@pytest.mark.parametrize(("unfreeze", "stages"), [("2", ["blocks.6", "top"]), ("[blocks.5,top]", ["blocks.5", "top"])])
def test_stages_to_train_and_a_share_of_the_rate(at, stripes, unfreeze, stages):
    quickly = ["train.epochs=2", "train.folds=1", "train.lr_scale=0.05", "train.augment=none"]
    main(["adapt", "data=folder", f"data.root={stripes}", "strategy=few_layers", f"unfreeze={unfreeze}", *quickly,
          *QUICK, "out=run"])  # fmt: skip
    decision = json.loads((at / "run" / "result.json").read_text(encoding="utf-8"))["decision"]
    assert decision["tuned"] == stages
    assert decision["lr_scale"] == 0.05


def test_the_same_command_again_reads_the_bank(at, stripes, capsys, monkeypatch):
    command = ["adapt", "data=folder", f"data.root={stripes}", "out=run", *QUICK]
    monkeypatch.setattr(remembered, "SETTLED", -(10**12))
    main(command)
    assert "24 of 24 images computed" in capsys.readouterr().out
    main(command)
    assert "0 of 24 images computed" in capsys.readouterr().out
    main(["cache"])
    said = capsys.readouterr().out
    assert "tf_efficientnet_lite0" in said
    assert "audit: 36 image files remembered" in said
    main(["cache", "clear=audit"])
    main(["cache"])
    said = capsys.readouterr().out
    assert "tf_efficientnet_lite0" in said
    assert "audit: 0 image files" in said
    main(["cache", "clear=true"])
    assert "MB freed" in capsys.readouterr().out
    main(["cache"])
    assert "tf_efficientnet_lite0" not in capsys.readouterr().out


def test_analyze_decides_what_adapt_would_do_with_the_same_settings(at, stripes, capsys):
    asked = ["strategy=few_layers", "unfreeze=2", "norm=keep", "train.lr_scale=0.05", "train.batch_size=4"]
    main(["analyze", "data=folder", f"data.root={stripes}", "out=look", *QUICK[:2], *asked])
    assert "were requested as well: blocks.6, top." in capsys.readouterr().out
    decision = json.loads((at / "look" / "evidence.json").read_text(encoding="utf-8"))["decision"]
    assert (decision["strategy"], decision["tuned"]) == ("few_layers", ["blocks.6", "top"])
    assert (decision["norm"], decision["lr_scale"], decision["lr"] > 0) == ("keep", 0.05, True)


def test_analyze_prints_every_stage(at, stripes, capsys):
    main(["analyze", "data=folder", f"data.root={stripes}", "out=look", *QUICK[:2]])
    said = capsys.readouterr().out
    for stage in ("bn1", "blocks.3", "top", "joined", "knn"):
        assert stage in said
    assert json.loads((at / "look" / "evidence.json").read_text(encoding="utf-8"))["decision"]["reasons"]


def test_rank_prints_both_tables_and_leaves_a_page(at, stripes, capsys):
    models = "models=[packaged/tf_efficientnet_lite0,packaged/*lite1,timm/no_such_net]"
    command = ["rank", models, "data=folder", f"data.root={stripes}", "out=which", *QUICK[:2]]
    main(command)
    said = capsys.readouterr().out
    for part in ("best in", "logme", "published", "76.7 %", "Not ranked:", "is first"):
        assert part in said
    kept = json.loads((at / "which" / "ranking.json").read_text(encoding="utf-8"))["ranking"]
    assert [row["rank"] for row in kept["models"]] == sorted(row["rank"] for row in kept["models"])
    assert {row["name"][-5:] for row in kept["models"]} == {"lite0", "lite1"}
    assert kept["command"].startswith("transferkit rank 'models=[packaged/tf_efficientnet_lite0")
    assert all(row["images_per_second"] for row in kept["models"])
    page = (at / "which" / "ranking.html").read_text(encoding="utf-8")
    assert "Ranked first:" in page
    main([*command[:-3], "out=again", *QUICK[:2]])
    kept = json.loads((at / "again" / "ranking.json").read_text(encoding="utf-8"))["ranking"]
    assert not any(row["images_per_second"] for row in kept["models"])


def test_rank_says_what_it_does_not_take(at, stripes, capsys):
    said = fails(capsys, "rank", "model=packaged/tf_efficientnet_lite0", "data=folder", f"data.root={stripes}", "out=x")
    assert "rank takes no model; what to rank is models=[NAME,...]." in said
    said = fails(capsys, "rank", "models=none/like*", "data=folder", f"data.root={stripes}", "out=x")
    assert "matches no model of the zoo" in said
    assert list(at.iterdir()) == []


def test_a_manifest(at, stripes, capsys):
    files = sorted(stripes.glob("train/*/*.png"))
    lines = ["path,label", *(f"{file},{file.parent.name}" for file in files)]
    (at / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    main(["adapt", "data=manifest", "data.path=labels.csv", "data.test=0.25", "out=run", *QUICK])
    assert "test accuracy" in capsys.readouterr().out


def test_notes_of_the_audit_are_counted_in_one_line(at, stripes, capsys):
    from PIL import Image

    for file in sorted((stripes / "train" / "down").iterdir())[:5]:
        Image.open(file).convert("L").save(file)
    (stripes / "train" / "notes.txt").write_text("mine", encoding="utf-8")
    main(["analyze", f"data.root={stripes}", "out=look", *QUICK[:2]])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The audit also noted: ")]
    assert "5 greyscale" in line
    assert "Files next to the class folders are not read: 1" in line


def test_a_sweep_leaves_a_folder_per_value(at, stripes):
    main(["adapt", "--multirun", "data=folder", f"data.root={stripes}", "out=sweep", "seed=0,1", *QUICK])
    assert (at / "sweep" / "0" / "result.json").is_file()
    assert (at / "sweep" / "1" / "result.json").is_file()


def test_zoo_lists_and_filters(capsys):
    main(["zoo", "offline=true", "source=packaged"])
    assert "packaged/tf_efficientnet_lite2" in capsys.readouterr().out
    main(["zoo", "pattern=resnet18*", "source=torchvision"])
    assert "torchvision/resnet18" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_for_people(verb, capsys):
    main([verb, "--help"] if verb else ["--help"])
    said = capsys.readouterr().out
    assert said.startswith("transferkit")
    assert len(said.splitlines()) <= (140 if verb == "adapt" else 40)  # adapt lists every setting
    assert max(map(len, said.splitlines())) <= 120


def test_every_verb_has_help():
    assert set(HELP) == set(VERBS)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_folder(at, capsys):
    assert "There is no folder 'nowhere'" in fails(capsys, "adapt", "data=folder", "data.root=nowhere", "out=run")
    assert list(at.iterdir()) == []


def test_an_empty_class(at, stripes, capsys):
    (stripes / "train" / "void").mkdir()
    assert "void" in fails(capsys, "adapt", "data=folder", f"data.root={stripes}", "out=run", *QUICK)
    assert list(at.iterdir()) == []


def test_one_class(at, stripes, capsys):
    for name in ("across", "down"):
        for split in ("train", "test"):
            shutil.rmtree(stripes / split / name)
    said = fails(capsys, "adapt", "data=folder", f"data.root={stripes}", "out=run", *QUICK)
    assert "2 classes" in said or "one class" in said.lower()
    assert list(at.iterdir()) == []


def test_one_image_per_class(at, stripes, capsys):
    flat = stripes / "train"
    for folder in flat.iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    said = fails(capsys, "adapt", "data=folder", f"data.root={flat}", "out=run", *QUICK)
    assert "has 1 image; 2 are needed" in said
    assert list(at.iterdir()) == []


def test_one_image_per_class_with_a_test_of_its_own(at, stripes, capsys):
    for folder in (stripes / "train").iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    main(["adapt", "data=folder", f"data.root={stripes}", "out=run", "image_size=32", "progress=false"])
    assert "on 12 images" in capsys.readouterr().out


def test_an_unknown_model(at, stripes, capsys):
    said = fails(capsys, "adapt", "model=timm/resnet81", "data=folder", f"data.root={stripes}", "out=run")
    assert "resnet18" in said or "resnet101" in said
    assert list(at.iterdir()) == []


def test_a_hub_out_of_reach(at, stripes, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(at.parent / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = fails(capsys, "adapt", "model=timm/test_resnet", "data=folder", f"data.root={stripes}", "out=run")
    assert "packaged/" in said
    assert "checkpoint=" in said


def test_a_checkpoint_of_another_architecture(at, stripes, capsys):
    import timm

    weights = at.parent / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    said = fails(
        capsys, "adapt", "model=timm/test_resnet", f"checkpoint={weights}", "data=folder", f"data.root={stripes}",
        "out=run",
    )  # fmt: skip
    assert "blocks.0" in said
    assert "conv1.weight" in said or "missing" in said.lower()
    assert list(at.iterdir()) == []


def test_a_cache_that_is_a_file(at, stripes, capsys):
    blocked = at.parent / "blocked"
    blocked.write_text("x")
    command = ["adapt", "data=folder", f"data.root={stripes}", "out=run", f"cache={blocked}", *QUICK]
    said = fails(capsys, *command)
    assert "feature bank" in said
    assert "cache=DIR" in said
    assert list(at.iterdir()) == []


def test_a_disk_that_fills_up_while_the_bank_is_written(at, stripes, capsys, monkeypatch, own_cache):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = fails(capsys, "adapt", "data=folder", f"data.root={stripes}", "out=run", *QUICK)
    assert "No space left on device" in said
    assert "cache=DIR" in said
    assert list(at.iterdir()) == []
    assert not list(own_cache.rglob("*.partial"))
    assert not list(own_cache.rglob("*.rows"))


def test_ctrl_c_leaves_nothing_half_written(at, stripes, own_cache):
    """A real process, a real signal, in the middle of the frozen pass."""
    script = (
        "import os, time, transferkit.data.opened as o, transferkit.cli as c\n"
        "whole = o.Data.pixels\n"
        "def slow(self, index, preprocessing):\n"
        "    os.write(1, b'reading\\n'); time.sleep(0.2); return whole(self, index, preprocessing)\n"
        "o.Data.pixels = slow\n"
        f"c.main(['adapt', 'data=folder', 'data.root={stripes}', 'out=run', 'image_size=32', 'batch_size=4'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=at,
        env=environment,
    )  # fmt: skip
    assert process.stdout.readline().strip() == "reading"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert list(at.iterdir()) == []
    assert not list(own_cache.rglob("*partial"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adpt"], "Closest known: adapt"),
        (["adapt", "imagesize=9"], "Closest known: image_size"),
        (["adapt", "data=floder"], "Closest known: folder"),
        (["adapt", "data=folder"], "needs data.root="),
        (["adapt", "data=folder", "data.rot=x"], "Closest known: data.root"),
        (["adapt", "folder"], "is not a setting"),
        (["adapt", "strategy=lp-ft"], "Unknown strategy 'lp-ft'"),
        (["adapt", "strategy=lora", "unfreeze=2"], "strategy=lora does not accept it"),
        (["adapt", "strategy=few_layers", "unfreeze=1.5"], "whole number k for the last k stages, got 1.5"),
        (["adapt", "strategy=few_layers", "unfreeze=[block.5]", "image_size=32"], "Closest known: blocks.5"),
        (["adapt", "strategy=surgical", "unfreeze=top,blocks.5"], "A list has brackets: unfreeze=[top,blocks.5]"),
        (["adapt", "unfreez=2"], "Closest known: unfreeze"),
        (["adapt", "strategy=linear_probe", "train.lr=0.1"], "so train.lr=0.1 would do nothing"),
        (["adapt", "strategy=lp_ft", "budget=auto"], "strategy=lp_ft does not choose that way"),
        (["adapt", "budget=0"], "budget must be > 0 seconds, or auto, got 0"),
        (["adapt", "budget=10m"], "budget must be > 0 seconds, or auto, got '10m'"),
        (["adapt", "budget=Auto"], "budget must be > 0 seconds, or auto, got 'Auto'"),
        (["adapt", "train.lr_scale=tenth"], "train.lr_scale must be a number, got 'tenth'"),
        (["adapt", "train.lr=0.1", "train.lr_scale=0.1"], "leave one of them out"),
        (["adapt", "mode=evidnce", "image_size=32"], "Closest known: evidence"),
        (["adapt", "image_size=4"], "a whole number of 8 or more, got 4"),
        (["analyze", "similarity=2"], "similarity must be in [0, 1], got 2"),
        (["predict", "run=nowhere", "images=x.jpg"], "no finished run"),
        (["predict", "run=x"], "needs images="),
        (["predict", "runn=x"], "Closest known: run"),
        (["zoo", "pattern=nothing_like_it"], "No backbone matches"),
        (["zoo", "source=tim"], "Closest known: timm"),
    ],
)
def test_mistyped_settings_are_met_with_the_closest(arguments, expected, at, capsys):
    assert expected in fails(capsys, *arguments, *(["out=run"] if arguments[0] in ("adapt", "analyze") else []))
    assert list(at.iterdir()) == []


def test_a_failed_run_takes_nothing_from_a_folder_that_was_there(at, capsys):
    (at / "run").mkdir()
    for name in ("log.txt", "notes.txt"):
        (at / "run" / name).write_text("mine", encoding="utf-8")
    fails(capsys, "adapt", "data=folder", "data.root=nowhere", "out=run")
    assert (at / "run" / "log.txt").read_text(encoding="utf-8").startswith("mine")
    assert (at / "run" / "notes.txt").exists()


def test_debug_shows_the_traceback(at, capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "data=folder", "data.root=nowhere", "out=run", "debug=true"])
    assert "Traceback" in capsys.readouterr().err
