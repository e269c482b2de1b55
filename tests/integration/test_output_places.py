"""What is written where: other people's files, finished runs and folders of images are safe from it."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import transferkit as tk
from tests.integration.test_command_line import fails
from transferkit.cli import main
from transferkit.core.errors import DataError, OptionError, RunFolderError
from transferkit.core.paths import MARKER

TINY = {"pretrained": False, "image_size": 32, "progress": False, "strategy": "linear_probe", "head": "ridge"}
TINY_WORDS = ["model=timm/test_resnet", "pretrained=false", "image_size=32", "progress=false", "strategy=linear_probe",
              "head=ridge"]  # fmt: skip


def recorded(run: Path) -> dict:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def numbers(run: Path) -> dict:
    """What must be the same when a run is done again."""
    kept = recorded(run)
    probes = [(probe["stage"], probe["method"], probe["accuracy"]) for probe in kept["evidence"]["probes"]]
    return {
        "metrics": kept["metrics"], "strategy": kept["decision"]["strategy"], "stage": kept["decision"]["stage"],
        "probes": probes, "weights": kept["evidence"]["backbone"]["weights_id"],
        "held back": kept["held_back_accuracy"],
        "data": kept["evidence"]["data"]["counts"],
    }  # fmt: skip


@pytest.fixture
def flat(stripes, at):
    """Classes of twelve images without splits, in `images`."""
    for file in sorted(stripes.glob("*/*/*.png")):
        place = at / "images" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return Path("images")


@pytest.fixture
def run(flat):
    """A finished run on `flat`."""
    tk.adapt("timm/test_resnet", flat, out="run", **TINY)
    return Path("run")


# ---- paths ---------------------------------------------------------------------------------------------------------


def test_awkward_names_all_the_way(flat, at, capsys):
    root, out, cache = "dä = (1) [2] {3} 'q' # ! & ; ~ , $x", "2025", "epoch=9-step=100"
    flat.rename(root)
    main(["adapt", f"data.root={root}", f"out={out}", f"cache={cache}", *TINY_WORDS])
    assert (at / cache / "v1").is_dir()
    said = capsys.readouterr().out
    assert f"report: {at / out / 'report.html'}" in said
    main(["predict", f"run={out}", f"images={root}/down", "out=a/b = c/true.csv"])
    assert len((at / "a" / "b = c" / "true.csv").read_text(encoding="utf-8").splitlines()) == 13
    capsys.readouterr()
    main(["cache", f"cache={cache}"])
    assert "test_resnet" in capsys.readouterr().out
    verb, *again = shlex.split(recorded(Path(out))["command"])[1:]
    before = numbers(Path(out))
    main([verb, *again])
    assert numbers(Path(out)) == before


def test_home_means_home_in_python_too(flat, at, monkeypatch):
    home = at / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.move(flat, home / "images")
    result = tk.adapt("timm/test_resnet", "~/images", source="~/images", out="~/run", cache="~/bank", **TINY)
    assert {path.name for path in home.iterdir()} == {"images", "run", "bank"}
    assert tk.load("~/run").classes == result.classes
    result.save("~/copy")
    result.report("~/page.html")
    assert len(tk.load("~/copy").predict("~/images/down")) == 12
    assert not (at / "~").exists()


@pytest.mark.parametrize("key", ["run", "images", "out"])
def test_an_empty_path_of_a_light_verb_is_an_error(key, at, capsys):
    words = {"run": "run=x", "images": "images=y", "out": "out=z.csv"} | {key: f"{key}="}
    assert f"{key}= is empty" in fails(capsys, "predict", *words.values())


# ---- places that are taken -----------------------------------------------------------------------------------------


def test_a_finished_run_of_other_settings_is_not_replaced_unasked(run, flat, at, capsys):
    before = recorded(run)
    for other in ({"seed": 1}, {"test": 0.3}, {"head": "logistic"}, {"checkpoint": None, "val": 0.1}):
        with pytest.raises(RunFolderError, match=r"run of other settings \(\w+\).*out=DIR.*overwrite=true"):
            tk.adapt("timm/test_resnet", flat, out=run, **{**TINY, **other})
    said = fails(capsys, "adapt", "data.root=images", "out=run", *TINY_WORDS, "seed=1")
    assert "run holds a finished run of other settings (seed)" in said
    assert recorded(run) == before
    assert not (run / ".hydra").exists()
    main(["adapt", "data.root=images", "out=run", *TINY_WORDS])
    assert "of the same settings, which is replaced" in capsys.readouterr().err
    main(["adapt", "data.root=images", "out=run", *TINY_WORDS, "seed=1", "overwrite=true"])
    assert recorded(run)["settings"]["seed"] == 1


def test_saving_over_another_run_is_refused_too(run, flat):
    other = tk.adapt("timm/test_resnet", flat, **{**TINY, "seed": 1})
    with pytest.raises(RunFolderError, match="run of other settings"):
        other.save(run)
    tk.load(run).save(run)
    assert recorded(other.save(run, overwrite=True))["settings"]["seed"] == 1


def test_an_analysis_is_not_replaced_by_another_unasked(flat, at, capsys):
    words = ["analyze", "data.root=images", "out=look", *TINY_WORDS]
    main(words)
    assert "was made with other settings" in fails(capsys, *words, "seed=1")
    main([*words, "cache=elsewhere"])
    assert "is replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["adapt", "out=file"], "file is a file, not a folder"),
        (["analyze", "out=file/x"], "is inside file"),
        (["rank", "out=file"], "is a file"),
        (["export", "run=none", "out=images"], "out=images is a folder"),
        (["export", "run=none", "out=m.pt"], "must end in .onnx"),
        (["export", "run=none", "out=file/m.onnx"], "is a file"),
        (["predict", "run=none", "images=images", "out=images"], "out=images is a folder"),
        (["predict", "run=none", "images=images", "out=x.txt"], "must end in .csv or .json"),
    ],
)
def test_places_that_cannot_be_written_are_known_before_any_work(words, problem, flat, at, capsys):
    (at / "file").touch()
    assert problem in fails(capsys, *words)
    assert {path.name for path in at.iterdir()} == {"images", "file"}


def test_everything_that_is_wrong_is_said_at_once(flat, at, capsys):
    said = fails(capsys, "adapt", "data.root=nowhere", "strategy=lpft", "pooling=max", "out=x")
    for problem in ("There is no folder 'nowhere'", "Unknown strategy 'lpft'", "Unknown pooling 'max'"):
        assert problem in said
    assert not (at / "x").exists()


def test_what_is_written_is_marked_while_it_is_written(flat, at, monkeypatch):
    marked = []

    def note(*_, **__):
        marked.extend(sorted(path for path in at.rglob("*") if path.is_dir() and (path / MARKER).is_file()))
        raise KeyboardInterrupt

    monkeypatch.setattr("transferkit.finetune.runner.Runner.fit", note)
    words = [word for word in TINY_WORDS if not word.startswith("strategy")]
    with pytest.raises(SystemExit):
        main(["adapt", "data.root=images", "out=run", *words, "strategy=lp_ft", "train.epochs=1", "train.folds=1"])
    assert marked == [at / "run", at / "run" / "training"]


# ---- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_is_compared_by_held_back_accuracy_and_the_best_is_evaluated_later(flat, at, capsys):
    main(["adapt", "-m", "data.root=images", "out=sweep", *TINY_WORDS, "seed=0,1"])
    said = capsys.readouterr().out
    assert "test accuracy 1" not in said
    assert "Best held back: sweep/" in said
    first = recorded(at / "sweep" / "0")
    assert first["metrics"] == {}
    assert first["held_back_accuracy"] == pytest.approx(first["evidence"]["probes"][-3]["accuracy"], abs=0.2)
    page = (at / "sweep" / "0" / "report.html").read_text(encoding="utf-8")
    assert "6 test images were not scored in this run: transferkit evaluate run=DIR" in page
    assert all((at / "sweep" / name / MARKER).is_file() for name in (".", "0", "1"))
    again = shlex.split(first["command"])[1:]
    assert {"out=sweep/0", "seed=0", "evaluate=false"} <= set(again)
    main(again)
    assert numbers(at / "sweep" / "0") == numbers(at / "sweep" / "0") | {"metrics": {}}

    main(["evaluate", "run=sweep/0"])
    whole = tk.adapt("timm/test_resnet", flat, **TINY)
    kept = recorded(at / "sweep" / "0")["metrics"]["test"]
    assert kept["accuracy"] == whole.metrics["test"].accuracy
    assert kept["images"] == 6
    page = (at / "sweep" / "0" / "report.html").read_text(encoding="utf-8")
    assert "were not scored" not in page
    assert "data:image/jpeg" in page
    capsys.readouterr()
    main(["evaluate", "run=sweep/0"])
    assert "It had been scored already" in capsys.readouterr().out


def test_all_runs_of_a_sweep_are_checked_before_the_first_starts(flat, at, capsys):
    said = fails(
        capsys, "adapt", "--multirun", "data.root=images,nowhere", "out=sweep", *TINY_WORDS[:4],
        "strategy=linear_probe,lpft", "stage=joined,tpo",
    )  # fmt: skip
    assert "7 of the 8 runs of this sweep cannot work, so none was started:" in said
    assert "- data.root=images strategy=linear_probe stage=tpo: Unknown stage 'tpo'. Closest known: top" in said
    assert "- data.root=nowhere strategy=linear_probe stage=joined: There is no folder 'nowhere'" in said
    assert not (at / "sweep").exists()


def test_a_run_that_fails_does_not_end_the_sweep(flat, at, capsys):
    (at / "bad").mkdir()
    for name in ("a", "b"):
        (at / "bad" / name).mkdir()
        (at / "bad" / name / "1.png").write_bytes(b"xx")
    with pytest.raises(SystemExit) as stopped:
        main(["adapt", "--multirun", "data.root=bad,images", "out=sweep", *TINY_WORDS])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "1 run of this sweep failed; 1 finished:\n- data.root=bad: " in said
    assert "Traceback" not in said
    assert not (at / "sweep" / "0").exists()
    assert (at / "sweep" / "1" / "result.json").is_file()


def test_a_sweep_into_a_finished_one_is_refused_as_a_whole(flat, at, capsys):
    words = ["adapt", "--multirun", "data.root=images", "out=sweep", *TINY_WORDS]
    main([*words, "seed=0,1"])
    said = fails(capsys, *words, "seed=0,2")
    assert "1 of the 2 runs" in said
    assert "sweep/1 holds a finished run of other settings (seed)" in said


# ---- evaluate ------------------------------------------------------------------------------------------------------


def test_images_that_were_trained_on_are_no_test(flat, at):
    result = tk.adapt("timm/test_resnet", flat, evaluate=False, **TINY)
    assert (dict(result.metrics), result.record.untested_images) == ({}, 6)
    shutil.copytree("images", "copy")
    with pytest.raises(DataError, match="was trained on some of these images"):
        result.evaluate("copy")
    for file in Path("copy").glob("*/*.png"):  # other pictures than those of the run
        pixels = np.random.default_rng(int(file.stem)).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        from PIL import Image

        Image.fromarray(pixels).save(file)
    assert result.evaluate("copy", split="test").images == 36
    assert result.metrics["test"].images == 36
    assert "36 test images" in result.report("page.html").read_text(encoding="utf-8")


def test_images_that_have_changed_since_are_not_split_anew(flat, at):
    result = tk.adapt("timm/test_resnet", flat, evaluate=False, **TINY)
    shutil.copy("images/down/0.png", "images/down/new.png")
    for name in ("down", "slant"):
        pixels = np.full((20, 20, 3), len(name) * 20, dtype=np.uint8)
        from PIL import Image

        Image.fromarray(pixels).save(f"images/{name}/new.png")
    with pytest.raises(DataError, match="was trained on some of these images"):
        result.evaluate()


def test_official_test_images_may_change_and_other_splits_are_asked_for_by_name(stripes, at):
    result = tk.adapt("timm/test_resnet", stripes, evaluate=False, **TINY)
    (stripes / "test" / "down" / "8.png").unlink()
    assert result.evaluate().images == 11
    with pytest.raises(DataError, match="Unknown split 'tst'. Closest known: test"):
        result.evaluate(split="tst")
    with pytest.raises(DataError, match="has no val split"):
        tk.adapt("timm/test_resnet", stripes, **TINY).evaluate(split="val")


def test_a_manifest_with_columns_of_its_own_is_opened_again_as_it_was(flat, at, capsys):
    lines = ["file,kind", *(f"{file},{file.parent.name}" for file in sorted(flat.glob("*/*.png")))]
    (at / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = ["data.columns.path=file", "data.columns.label=kind"]
    main(["adapt", "data.path=m.csv", *columns, "data.test=0.25", "evaluate=false", "out=run", *TINY_WORDS])
    assert "The 9 test images were not scored: transferkit evaluate run=" in capsys.readouterr().out
    main(["evaluate", "run=run", "cache=bank"])
    assert "on 9 images" in capsys.readouterr().out
    assert (at / "bank").is_dir()


def test_a_model_of_prepared_tensors_is_tested_on_such(at):
    rng = np.random.default_rng(0)
    values = [torch.from_numpy(rng.normal(label, 1, (3, 32, 32)).astype(np.float32)) for label in (0, 1) * 10]
    pairs = [(value, number % 2) for number, value in enumerate(values)]
    result = tk.adapt("timm/test_resnet", pairs, preprocessed=True, evaluate=False, **TINY)
    assert result.evaluate(pairs).images == 4
    with pytest.raises(DataError, match="preprocessed=True"):
        tk.adapt("timm/test_resnet", pairs, preprocessed=True, evaluate=False, **TINY).evaluate("builtin/digits")


def test_classes_that_the_model_does_not_know_are_no_test(run, flat, at):
    result = tk.load(run)
    shutil.copytree("images", "others")
    Path("others/down").rename("others/dwon")
    with pytest.raises(DataError, match="Unknown class 'dwon'. Closest known: down"):
        result.evaluate("others")


@pytest.mark.parametrize(("evaluate", "splits"), [("auto", {"test"}), (True, {"test"}), (False, set())])
def test_whether_the_test_images_are_scored_can_be_said(evaluate, splits, stripes):
    assert set(tk.adapt("timm/test_resnet", stripes, evaluate=evaluate, **TINY).metrics) == splits


def test_evaluate_takes_only_what_it_knows(stripes):
    with pytest.raises(OptionError, match="evaluate must be auto, true or false, got 'yes'"):
        tk.adapt("timm/test_resnet", stripes, evaluate="yes", **TINY)


# ---- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(flat, at):
    """Three images, the one in the middle cut off."""
    place = at / "mixed"
    place.mkdir()
    for name in ("1", "3"):
        shutil.copy(flat / "down" / f"{name}.png", place / f"{name}.png")
    (place / "2.png").write_bytes((flat / "down" / "2.png").read_bytes()[:300])
    return place


def test_predict_goes_on_at_a_bad_file_and_says_which(run, mixed, at, capsys):
    main(["predict", f"run={run}", "images=mixed", "out=new/a.csv"])
    told = capsys.readouterr()
    assert told.out == "2 images: new/a.csv\n"
    assert "1 image could not be read and was not classified:\n- " in told.err
    rows = list(csv.DictReader((at / "new" / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert [bool(row["label"]) for row in rows] == [True, False, True]
    assert "cut off or damaged" in rows[1]["error"]
    assert (rows[0]["error"], rows[1]["p(down)"]) == ("", "")
    main(["predict", f"run={run}", "images=mixed", "format=json"])
    printed = json.loads(capsys.readouterr().out)
    assert [sorted(row) for row in printed][1] == ["error", "item"]


def test_no_image_answered_is_an_error_and_no_file(run, at, capsys):
    (at / "empty.png").touch()
    for images in ("gone.jpg", "[gone.jpg,empty.png]", "*.webp", "empty.png"):
        assert "No image could be read:\n- " in fails(capsys, "predict", f"run={run}", f"images={images}", "out=a.csv")
    assert not (at / "a.csv").exists()


def test_a_clean_table_has_the_columns_of_always(run, flat):
    answers = tk.load(run).predict(flat / "down")
    assert answers.failures == ()
    assert answers.to_csv().splitlines()[0] == "item,label,confidence,p(across),p(down),p(slant)"


def test_skipping_is_asked_for_in_python(run, mixed):
    result = tk.load(run)
    with pytest.raises(DataError, match="cut off"):
        result.predict(mixed)
    answers = result.predict([mixed, "gone.png", np.zeros(4, np.uint8)], on_error="skip")
    assert len(answers) == len(answers.labels) == 2
    assert [failure.position for failure in answers.failures] == [1, 3, 4]
    assert "gone.png" in answers.failures[1].item
    with pytest.raises(OptionError, match="Unknown on_error 'ignore'"):
        result.predict(mixed, on_error="ignore")


def test_lists_patterns_and_names_with_commas(run, flat, at, capsys):
    shutil.copy(flat / "down" / "1.png", at / "a,b [1].png")
    shutil.copy(flat / "down" / "2.png", at / "[x].png")

    def items(images: str) -> list[str]:
        main(["predict", f"run={run}", f"images={images}", "format=json"])
        return [row["item"] for row in json.loads(capsys.readouterr().out)]

    assert items("a,b [1].png") == ["a,b [1].png"]
    assert items("['a,b [1].png', images/down/3.png]") == ["a,b [1].png", "images/down/3.png"]
    assert items("[x].png") == ["[x].png"]
    assert len(items("images/*/1*.png")) == 9
    assert len(items("images/**")) == len(items("images/**/*.png")) == len(items("images")) == 36


# ---- how to run this again -----------------------------------------------------------------------------------------


def test_the_quoted_call_does_the_same_again(flat, at):
    for number, arguments in enumerate(
        [
            {"val": 0.2, "test": 0.25, "class_weight": "balanced", "pooling": "avg", "seed": 3, "out": "a b"},
            {"head": "logistic", "stage": -1, "image_size": 64, "similarity": 0.5, "checkpoint": "w.pt",
             "pretrained": True, "out": "it's"},
            {"strategy": "few_layers", "unfreeze": 1, "train": tk.Recipe(epochs=1, folds=1, augment="none"),
             "norm": "frozen", "trainer": {"log_every_n_steps": 1}, "out": "tuned", "resume": False},
        ]
    ):  # fmt: skip
        if number == 1:
            import timm

            torch.manual_seed(0)
            torch.save(timm.create_model("test_resnet").state_dict(), "w.pt")
        result = tk.adapt("timm/test_resnet", flat, **{**TINY, **arguments})
        out = Path(arguments["out"])
        before = numbers(out)
        shutil.rmtree(out)
        again = eval(result.record.command, {"transferkit": tk})
        assert numbers(out) == before
        assert again.record.command == result.record.command


def test_the_quoted_command_does_the_same_again(flat, at):
    manifest = [
        "path,label",
        *(f"{file.relative_to(flat)},{file.parent.name}" for file in sorted(flat.glob("*/*.png"))),
    ]
    (at / "m = 1.csv").write_text("\n".join(manifest), encoding="utf-8")
    main(["adapt", "data.path=m = 1.csv", "data.root=images", "data.test=0.25", "data.val=0.2", "out=one",
          "class_weight=balanced", *TINY_WORDS])  # fmt: skip
    before = numbers(at / "one")
    verb, *words = shlex.split(recorded(at / "one")["command"])[1:]
    shutil.rmtree("one")
    main([verb, *words])
    assert numbers(at / "one") == before


def test_what_the_report_quotes_is_run_in_a_fresh_python(flat, at):
    tk.adapt("timm/test_resnet", flat, **TINY, out="a", preprocessing=None, device=torch.device("cpu"),
             seed=np.int64(3), budget=None)  # fmt: skip
    shown = html.unescape(re.search(r"<pre><code>(.*?)</code>", (at / "a/report.html").read_text("utf-8"), re.S)[1])
    before = numbers(at / "a")
    shutil.rmtree("a")
    exec(shown, {})
    assert numbers(at / "a") == before
    assert f"<code>{at}</code>: relative paths start there" in (at / "a/report.html").read_text("utf-8")


@pytest.mark.parametrize("out", ["a b", "it's"])
def test_the_command_that_scores_the_test_images_can_be_pasted(flat, at, capsys, out):
    main(["adapt", "data.root=images", "evaluate=false", "train=null", f"out={out}", *TINY_WORDS])
    shown = capsys.readouterr().out.partition("were not scored: ")[2].splitlines()[0]
    main(shlex.split(shown)[1:])
    assert "test" in recorded(at / out)["metrics"]


def test_a_preprocessing_of_numpy_values_is_written_down(flat, at):
    grey = tuple(np.float32([0.5, 0.5, 0.5]))
    plain = tk.Preprocessing(size=32, mean=grey, std=grey, interpolation="bilinear")
    result = tk.adapt("timm/test_resnet", flat, **{**TINY, "image_size": None}, preprocessing=plain, out="a")
    assert eval(result.record.command, {"transferkit": tk}).record.settings == result.record.settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": "3"}, "seed must be a whole number, got '3'"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"max_pixels": "900"}, "max_pixels must be a whole number, got '900'"),
        ({"similarity": "0.5", "cache_limit": "1"},
         "similarity must be a number, got '0.5'. cache_limit must be a number, got '1'"),
        ({"strict": "no"}, "strict must be true or false, got 'no'"),
    ],
)  # fmt: skip
def test_what_is_no_number_or_no_flag_is_an_error_before_any_work(at, arguments, said):
    with pytest.raises(OptionError, match=said):
        tk.adapt("timm/test_resnet", "builtin/digits", **{**TINY, **arguments})


def test_a_word_that_is_no_flag_is_not_taken_for_true(flat, at, capsys):
    said = fails(capsys, "adapt", "data.root=images", *TINY_WORDS, "pretrained=no", "out=a")
    assert "pretrained must be true or false, got 'no'" in said
    assert "seed must be in [0, 2^63)" in fails(capsys, "adapt", "data.root=images", *TINY_WORDS, "seed=-1", "out=a")


class Twelve(Dataset):
    """Images of two classes."""

    classes = ("dark", "light")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        return np.full((16, 16, 3), 20 * index, dtype=np.uint8), int(index > 5)


def test_what_cannot_be_written_down_is_said_to_be_a_stand_in():
    result = tk.adapt("timm/test_resnet", Twelve(), **TINY)
    call = result.record.command
    assert call.startswith("transferkit.adapt('timm/test_resnet', <Twelve>, strategy='linear_probe', image_size=32")
    assert call.endswith(
        "seed=0, head='ridge', pretrained=False, progress=False)  # replace <Twelve> with your own object"
    )
    assert len(result.predict(Twelve())) == 12
    with pytest.raises(DataError, match="The run does not name its images by a path"):
        tk.adapt("timm/test_resnet", Twelve(), **TINY, evaluate=False).evaluate()
    assert tk.adapt("timm/test_resnet", Twelve(), **TINY, evaluate=False).evaluate(Twelve()).images == 2


def test_the_size_that_a_refused_image_exceeds_can_be_raised(run, flat, capsys):
    image = next((flat / "down").iterdir())
    said = fails(capsys, "predict", f"run={run}", f"images={image}", "max_pixels=100")
    assert "max_pixels is 100" in said
    main(["predict", f"run={run}", f"images={image}", "max_pixels=100000"])
    assert "down" in capsys.readouterr().out
