"""`transferkit doctor` from the command line: wrong labels found, corrected and trained on; set-ups examined."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

import transferkit as tk
from tests.conftest import PACKAGED, draw_stripes
from transferkit.cli import main
from transferkit.core.errors import DataError
from transferkit.doctor import examine_adapt, review_labels
from transferkit.options import AdaptOptions

CLASSES = ("across", "down", "slant")
PLANTED = 10
QUICK = ["image_size=32", "views=1", "geometry=crop", "progress=false"]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """ROOT/{train,test}/CLASS/NAME.png, 20 training images a class; 10 lie in the wrong class, of which their names
    speak: "down-3, true across.png"."""
    root = tmp_path / "shapes, é"
    for angle, name in enumerate(CLASSES):
        for number in range(24):
            split = "train" if number < 20 else "test"
            wrong = split == "train" and 20 * angle + number < 60 and number % 6 == 1 and (angle or number < 13)
            place = CLASSES[(angle + 1 + number % 2) % 3] if wrong else name
            seed = 100 * angle + number
            draw_stripes(root / split / place / f"{number}, true {name}.png", angle=angle, seed=seed)
    monkeypatch.chdir(tmp_path)
    return root


def truth(path: str) -> str:
    return re.search(r"true (\w+)\.png", path)[1]


def is_wrong(path: str) -> bool:
    return truth(path) != Path(path).parent.name


def wrong_in(root: Path) -> set[str]:
    return {name for path in root.rglob("train/*/*.png") if is_wrong(name := path.relative_to(root).as_posix())}


def correct(file: Path, to: Path) -> int:
    """What a person does who sees what the pictures show; returns the number of labels written."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows:
        row["corrected"] = truth(row["path"]) if is_wrong(row["path"]) else row["corrected"]
    with to.open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return sum(bool(row["corrected"]) for row in rows)


def test_planted_errors_are_found_corrected_and_trained_on(planted, capsys):
    wrong = wrong_in(planted)
    assert len(wrong) == PLANTED
    main(["doctor", "labels", f"data.root={planted}", "out=review", *QUICK])
    said = capsys.readouterr().out
    with open("review/labels.csv", encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["path"] for row in rows[: len(wrong) + 2]} >= wrong
    assert all(row["suggested"] == truth(row["path"]) for row in rows if row["path"] in wrong)
    assert {row["likely_error"] for row in rows if row["path"] in wrong} == {"yes"}
    assert all(row["corrected"] == "" for row in rows)
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]

    number = correct(Path("review/labels.csv"), Path("review/labels.csv"))
    assert number == len(wrong)
    following = shlex.split(said.splitlines()[-1])
    assert following[:2] == ["transferkit", "adapt"]
    main([*following[1:], "out=run", "head=ridge", "strategy=linear_probe"])
    said = capsys.readouterr().out
    assert f"labels=review/labels.csv: {number} labels changed" in said
    result = tk.load("run")
    assert result.evidence.data.counts["train"] == (20, 20, 20)
    assert "labels=review/labels.csv" in shlex.split(result.record.command)
    assert result.record.settings["labels"] == str(Path("review/labels.csv").absolute())
    assert result.evaluate().accuracy > 0.9

    main(["doctor", "labels", f"data.root={planted}", "out=again", "labels=review/labels.csv", *QUICK])
    assert re.search("; 0 of these are likely|None of the 60", capsys.readouterr().out)
    again = tk.analyze(PACKAGED, planted, labels="again/labels.csv", image_size=32, views=1, progress=False)
    assert again.data.counts["train"] == (20, 20, 20)  # what was corrected before is in the new table too


def test_a_table_with_corrections_is_not_overwritten(planted, capsys):
    Path("review").mkdir()
    Path("review/labels.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "labels", f"data.root={planted}", "out=review", *QUICK])
    assert stopped.value.code == 2
    assert "may hold your corrections" in capsys.readouterr().err
    assert Path("review/labels.csv").read_text(encoding="utf-8") == "mine"


def test_a_review_lists_at_most_what_is_asked_for_and_never_test_images(planted):
    review = review_labels(PACKAGED, planted, image_size=32, views=1, limit=3, progress=False)
    assert len(review.rows) == 3 < review.doubtful
    assert review.likely_errors >= PLANTED - 1
    assert "The 3 worst are listed" in review.sentences[1]
    assert review.command.startswith("transferkit.doctor.review_labels('packaged/tf_efficientnet_lite0', ")
    everything = review_labels(PACKAGED, planted, image_size=32, views=1, val=0.2, progress=False)
    assert {row.split for row in everything.rows} <= {"train", "val"}
    assert everything.images == 60
    assert all(one.suggested_probability > one.probability for one in everything.rows)


def test_mistakes_in_the_table_are_told_before_any_work(planted, capsys):
    Path("c.csv").write_text("file,label\na,b\n", encoding="utf-8")
    for verb in ("adapt", "analyze", "rank"):
        with pytest.raises(SystemExit):
            main([verb, f"data.root={planted}", "labels=c.csv", "out=run"])
        assert "labels=c.csv has no column path" in capsys.readouterr().err
    assert not Path("run").exists()
    with pytest.raises(DataError, match="There is no such file"):
        tk.analyze(PACKAGED, planted, labels="nowhere.csv", image_size=32)


def test_a_run_with_other_labels_is_another_run(planted, capsys):
    quick = {"image_size": 32, "views": 1, "head": "ridge", "strategy": "linear_probe", "progress": False}
    first = sorted(wrong_in(planted))[0]
    Path("c.csv").write_text(f'path,label\n"{first}",{truth(first)}\n', encoding="utf-8")
    plain = tk.adapt(PACKAGED, planted, out="run", **quick)
    with pytest.raises(tk.TransferkitError, match=r"other settings \(labels\)"):
        tk.adapt(PACKAGED, planted, out="run", labels="c.csv", **quick)
    other = tk.adapt(PACKAGED, planted, labels="c.csv", **quick)
    assert other.evidence.data.content_id != plain.evidence.data.content_id
    assert "labels='c.csv'" in other.record.command


def test_a_healthy_set_up_exits_quietly(planted, capsys):
    main(["doctor", f"data.root={planted}", "strategy=few_layers", "unfreeze=1", *QUICK])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("adapt would train few_layers on top: ")
    assert "Healthy: 15 checks found nothing (" in said
    assert "classes, serving)." in said
    assert not Path("runs").exists()


def test_an_alarm_exits_with_one(planted, capsys):
    words = [f"data.root={planted}", "strategy=few_layers", "unfreeze=1", "train.optimizer=sgd", "train.lr=1000.0"]
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *words, *QUICK])
    assert stopped.value.code == 1
    assert "throws the network off" in capsys.readouterr().out


def test_a_probe_is_not_trained_by_gradient(planted, capsys):
    main(["doctor", f"data.root={planted}", "strategy=linear_probe", *QUICK])
    said = capsys.readouterr().out
    assert "nothing is trained by gradient" in said
    assert "Healthy: 2 checks found nothing (classes, serving)." in said


def test_a_class_that_a_split_lacks_is_worth_a_note(planted):
    for path in (planted / "test" / "slant").iterdir():
        path.unlink()
    found = examine_adapt(
        PACKAGED, planted, AdaptOptions(strategy="linear_probe", image_size=32, views=1, progress=False)
    )
    assert [one.cause for one in found.diagnosis.symptoms] == ["class_missing"]
    assert found.diagnosis.healthy
    assert "1 of 3 classes have no test image: 'slant'." in found.sentences[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lables"], "Unknown thing to examine 'lables'. Closest known: labels, images."),
        (["mode=search"], "mode=search chooses a strategy by training"),
        (["-m"], "examines one set-up and takes no -m"),
        (["data.root=nowhere"], "There is no folder 'nowhere'"),
        (["labels=nowhere.csv"], "There is no such file: labels=nowhere.csv"),
        (["labels", "labels=nowhere.csv"], "There is no such file: labels=nowhere.csv"),
    ],
)
def test_mistakes_are_told_with_their_remedy(planted, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_json_of_analyze_keeps_what_was_corrected(planted):
    first = sorted(wrong_in(planted))[0]
    Path("c.csv").write_text(f'path,label\n"{first}",drop\n', encoding="utf-8")
    main(["analyze", f"data.root={planted}", "labels=c.csv", "out=run", *QUICK])
    kept = json.loads(Path("run/evidence.json").read_text(encoding="utf-8"))
    assert "labels=c.csv" in shlex.split(kept["command"])
    (found,) = [one for one in kept["evidence"]["data"]["findings"] if one["kind"] == "labels_corrected"]
    assert found["items"] == [f"{first}: {Path(first).parent.name} -> drop"]


@pytest.fixture
def leaky(planted):
    """The same, and two mirrored copies of training images: one among the test images, one with another label."""
    for name, to in (("train/down/3, true down.png", "test/down"), ("train/slant/5, true slant.png", "train/across")):
        with Image.open(planted / name) as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(180).save(planted / to / "copy.png")
    return planted


def table_of(file: str) -> list[dict[str, str]]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def write_table(file: str, rows: list[dict[str, str]]) -> None:
    with open(file, "w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_copies_are_shown_left_out_and_trained_without(leaky, capsys):
    main(["doctor", "images", f"data.root={leaky}", "out=review", *QUICK])
    said = capsys.readouterr().out
    assert re.search("^pictures: .*review/images.html$", said, flags=re.M)
    assert Path("review/images.html").read_text(encoding="utf-8").count("<img ") >= 4
    rows = table_of("review/images.csv")
    leaks = {row["path"] for row in rows if row["finding"] == "leak"}
    assert leaks >= {"train/down/3, true down.png", "test/down/copy.png"}

    gone = [row for row in rows if row["path"].startswith("train/") and row["finding"] in ("leak", "conflict")]
    for row in gone:
        row["corrected"] = "drop"
    write_table("review/images.csv", rows)
    following = shlex.split(said.splitlines()[-1])
    assert following[:2] == ["transferkit", "adapt"]
    main([*following[1:], "out=run", "head=ridge", "strategy=linear_probe"])
    number = len({row["path"] for row in gone})
    assert f"labels=review/images.csv: {number} images removed" in capsys.readouterr().out

    main(["doctor", "images", f"data.root={leaky}", "out=again", "labels=review/images.csv", *QUICK])
    assert "of another split" not in capsys.readouterr().out
    kept = [row for row in table_of("again/images.csv") if row["finding"] == "corrected before"]
    assert len(kept) == number


def test_a_review_of_images_lists_as_many_as_asked_for_and_overwrites_no_corrections(leaky, capsys):
    words = ["doctor", "images", f"data.root={leaky}", "out=review", "limit=1", *QUICK]
    main(words)
    said = capsys.readouterr().out
    assert re.search(r"The first 1 of \d+ findings are listed; limit=\d+ lists all\.", said)
    assert "limit=" not in said.splitlines()[-1]  # what adapt would not take
    assert {row["number"] for row in table_of("review/images.csv")} == {"1"}
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "images.csv is there already, and may hold your corrections" in capsys.readouterr().err
    main([*words, "overwrite=true"])


def test_a_review_of_labels_lists_as_many_as_asked_for(planted, capsys):
    main(["doctor", "labels", f"data.root={planted}", "out=review", "limit=2", *QUICK])
    assert "The 2 worst are listed" in capsys.readouterr().out
    assert len(table_of("review/labels.csv")) == 2


def test_blank_images_are_listed_though_all_are_copies_of_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        place = tmp_path / "black" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(place / f"{number}.png")
    main(["doctor", "images", "data.root=black", "out=review", *QUICK])
    assert "Note: 6 images show one flat colour, e.g. a/0.png (a)" in capsys.readouterr().out
    assert {row["finding"] for row in table_of("review/images.csv")} == {"blank"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_that_are_no_text_are_logged(leaky, capfd):
    name = os.fsencode(leaky / "train" / "down") + b"/caf\xe9.png"
    with Image.open(leaky / "train" / "slant" / "6, true slant.png") as picture, open(name, "wb") as opened:
        picture.rotate(180).save(opened, format="PNG")
    main(["doctor", "images", f"data.root={leaky}", "out=review", *QUICK])
    assert "Logging error" not in capfd.readouterr().err
    assert "caf\\udce9.png" in Path("review/images.html").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in Path("review/log.txt").read_text(encoding="utf-8")
