"""Corrected labels reach exactly the images that they name, and whatever does not fit is said at once."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.pictures import Listed, noise
from transferkit.core.errors import DataError, OptionError
from transferkit.data import Data, open_data
from transferkit.data.corrections import read_corrections
from transferkit.records import DataSummary, LabelReview, ReviewedLabel

SUMMARY = DataSummary(origin="x", classes=("a", "b"), counts={"train": (3, 3)}, split_rule="")


def table(folder: Path, *rows: tuple[str, ...], header: tuple[str, ...] = ("path", "label", "corrected")) -> Path:
    file = folder / "corrected.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return file


def class_of(data: Data) -> dict[str, str]:
    return {item: data.summary.classes[label] for item, label in zip(data.items, data.labels, strict=True)}


def split_of(data: Data) -> dict[str, str]:
    return dict(zip(data.items, data.splits.tolist(), strict=True))


def test_labels_change_where_the_table_says_and_nowhere_else(official, tmp_path):
    file = table(
        tmp_path,
        ("train/cat/0.png", "cat", "dog"),
        ("train/cat/1.png", "cat", ""),
        ("train/dog/2.png", "dog", "drop"),
        ("test/dog/0.png", "dog", ""),
    )
    plain, data = open_data(official, progress=False), open_data(official, labels=file, progress=False)
    before, after = class_of(plain), class_of(data)
    assert set(before) - set(after) == {"train/dog/2.png"}
    assert {item for item in after if after[item] != before[item]} == {"train/cat/0.png"}
    assert after["train/cat/0.png"] == "dog"
    (finding,) = [one for one in data.summary.findings if one.kind == "labels_corrected"]
    assert finding.message == f"labels={file}: 1 label changed, 1 image removed."
    assert finding.items == ("train/cat/0.png: cat -> dog", "train/dog/2.png: dog -> drop")
    assert data.summary.counts["train"] == (5, 6)
    assert data.summary.content_id != plain.summary.content_id
    assert [(one.item, one.label, one.corrected) for one in data.corrected] == [
        ("train/cat/0.png", "cat", "dog"),
        ("train/dog/2.png", "dog", "drop"),
    ]


def test_the_test_images_are_the_same_with_and_without_corrections(unsplit, tmp_path):
    plain = open_data(unsplit, val=0.2, progress=False)
    trained = [plain.items[at] for at in plain.indices("train")]
    cats = [item for item in trained if item.startswith("cat")]
    rows = [(item, "cat", "dog") for item in cats[:3]] + [(item, "dog", "-") for item in trained[-4:]]
    data = open_data(unsplit, val=0.2, labels=table(tmp_path, *rows), progress=False)
    assert {item: split_of(plain)[item] for item in data.items} == split_of(data)
    assert len(data) == len(plain) - 4
    assert len(data.folds.labels) == len(data.groups) == len(data)


@pytest.mark.parametrize("how", ["relative", "absolute", "backslashes", "dotted"])
def test_paths_may_be_written_in_several_ways(official, tmp_path, how):
    name = {
        "relative": "train/cat/0.png",
        "absolute": str(official / "train" / "cat" / "0.png"),
        "backslashes": "train\\cat\\0.png",
        "dotted": "./train/cat/0.png",
    }[how]
    data = open_data(official, labels=table(tmp_path, (name, "cat", "dog")), progress=False)
    assert class_of(data)["train/cat/0.png"] == "dog"


def test_a_manifest_is_corrected_by_the_paths_in_it(official, tmp_path):
    names = [path.relative_to(official).as_posix() for path in sorted(official.rglob("*.png"))]
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    manifest = official / "m.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    data = open_data(manifest, labels=table(tmp_path, ("train/dog/5.png", "dog", "cat")), progress=False)
    assert class_of(data)["train/dog/5.png"] == "cat"


def test_a_dataset_is_corrected_by_index(tmp_path):
    images = Listed(*((noise(n), n % 2) for n in range(20)))
    plain = open_data(images, progress=False)
    name = plain.items[plain.indices("train")[0]]
    assert name.startswith("image[")
    label = class_of(plain)[name]
    other = {"0": "1", "1": "0"}[label]
    data = open_data(images, labels=table(tmp_path, (name, label, other)), progress=False)
    assert class_of(data)[name] == other


def test_the_label_counts_where_nothing_is_corrected_and_where_there_is_no_such_column(official, tmp_path):
    edited = table(tmp_path, ("train/cat/0.png", "dog", ""), ("train/cat/1.png", "dog", "cat"))
    assert [one.item for one in open_data(official, labels=edited, progress=False).corrected] == ["train/cat/0.png"]
    two = table(tmp_path, ("train/cat/1.png", "dog"), header=("Path", "Label"))
    assert [one.item for one in open_data(official, labels=two, progress=False).corrected] == ["train/cat/1.png"]
    short = table(tmp_path, ("train/cat/1.png",), ("train/cat/2.png", "cat", "dog"))
    assert [one.item for one in open_data(official, labels=short, progress=False).corrected] == ["train/cat/2.png"]


def test_names_that_a_spreadsheet_changed_are_understood(write, tmp_path):
    for name in ("007", "12"):
        for number in range(8):
            write(f"train/{name}/{number}.png")
    file = tmp_path / "c.csv"
    file.write_text("sep=;\npath;label;corrected\ntrain/007/1.png;7;\ntrain/007/2.png;7;12.0\n", encoding="utf-16")
    data = open_data(tmp_path / "images", labels=file, progress=False)
    assert [(one.item, one.corrected) for one in data.corrected] == [("train/007/2.png", "12")]


def test_a_table_in_another_encoding_is_told_so(write, tmp_path):
    for name in ("train/Käfer/0.png", "train/Käfer/1.png", "train/dog/0.png", "train/dog/1.png"):
        write(name)
    file = tmp_path / "c.csv"
    file.write_bytes("path;corrected\r\ntrain/dog/0.png;Käfer\r\n".encode("cp1252"))
    with pytest.raises(DataError, match="line 2: The class .* cannot be read. Is the table saved as UTF-8"):
        open_data(tmp_path / "images", labels=file, progress=False)


def test_a_class_called_drop_is_a_class(write, tmp_path):
    for name in ("drop", "puddle"):
        for number in range(6):
            write(f"train/{name}/{number}.png")
    rows = [("train/puddle/0.png", "puddle", "drop"), ("train/puddle/1.png", "puddle", "-")]
    data = open_data(tmp_path / "images", labels=table(tmp_path, *rows), progress=False)
    assert class_of(data)["train/puddle/0.png"] == "drop"
    assert [(one.item, one.corrected) for one in data.corrected][1] == ("train/puddle/1.png", "-")
    assert "train/puddle/1.png" not in data.items


def test_all_problems_are_told_at_once(official, tmp_path):
    file = table(
        tmp_path,
        ("train/cat/0.png", "cat", "dgo"),
        ("train/cat/1.png", "cat", "dog"),
        ("train/cat/1.png", "cat", "drop"),
        ("train/bird/1.png", "cat", "dog"),
        ("test/cat/0.png", "cat", "dog"),
        *((f"train/dog/{number}.png", "dog", "cat") for number in range(6)),
    )
    with pytest.raises(DataError) as raised:
        open_data(official, labels=file, progress=False)
    said = str(raised.value).splitlines()
    assert said[0] == f"The corrections in labels={file} cannot be used:"
    assert (
        "line 2: Unknown class 'dgo'. Closest known: dog. Corrections name a class of the data; drop removes" in said[1]
    )
    assert "different things of one image: 'train/cat/1.png' in lines 3 and 4" in said[2]
    assert (
        "1 path is no image of the data: 'train/bird/1.png'. Here images are called such as 'train/cat/0.png'"
        in said[3]
    )
    assert "1 row would change test images (test/cat/0.png), which keep their labels" in said[4]
    assert len(said) == 5  # a cat is left as a dog: class dog is not emptied


def test_a_class_keeps_a_training_image(official, tmp_path):
    rows = [(f"train/dog/{number}.png", "dog", "cat") for number in range(6)]
    with pytest.raises(DataError, match="no training image of class 'dog' would be left"):
        open_data(official, labels=table(tmp_path, *rows), progress=False)


def test_a_table_that_nobody_edited_is_an_error(official, tmp_path):
    with pytest.raises(DataError, match=r"no row says anything but the class .* or drop, into the column corrected"):
        open_data(official, labels=table(tmp_path, ("train/cat/0.png", "cat", "")), progress=False)
    with pytest.raises(DataError, match="2 paths are no images of the data"):
        open_data(official, labels=table(tmp_path, ("a.png", "cat", ""), ("b.png", "cat", "")), progress=False)


def test_an_image_that_is_listed_twice_is_changed_in_both_places_and_only_if_somebody_says_so(official, tmp_path):
    names = [path.relative_to(official).as_posix() for path in sorted(official.rglob("train/*/*.png"))]
    rows = [*(f"{name},{name.split('/')[1]},train" for name in names), "train/cat/0.png,dog,train"]
    manifest = official / "m.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match="no row says anything"):
        open_data(manifest, labels=table(tmp_path, ("train/cat/0.png", "dog", "")), progress=False)
    rows = [("train/cat/0.png", "cat", ""), ("train/cat/0.png", "dog", "cat")]
    data = open_data(manifest, labels=table(tmp_path, *rows), progress=False)
    (changed,) = data.corrected
    assert (changed.label, changed.corrected) == ("dog", "cat")
    assert "label_conflict" not in {one.kind for one in data.summary.findings}


def test_an_image_that_is_gone_does_no_harm_if_nothing_is_said_of_it(official, tmp_path):
    file = table(tmp_path, ("gone.png", "cat", ""), ("train/cat/0.png", "cat", "dog"))
    assert len(open_data(official, labels=file, progress=False).corrected) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column path, and no column corrected .nor label.; it is empty"),
        ("path,split\na,b\n", "has no column corrected .nor label.; its first line has path, split"),
        ("label\na\n", "has no column path; its first line has label"),
        ("path,path,label\na,b,c\n", "more than one column 'path'"),
        ("path,label\na,b,c\n", "line 2 has more cells than the header's 2"),
        ('path,label\n"a,b\n', "cannot be read as a table"),
        ("path,label\na\0,b\n", "is not a text file"),
    ],
)
def test_what_is_no_table_of_corrections_is_refused(tmp_path, content, message):
    file = tmp_path / "c.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_corrections(file)


def test_a_path_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no such file: labels="):
        read_corrections(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="is a folder, not a CSV table"):
        read_corrections(tmp_path)
    with pytest.raises(OptionError, match="must be the path of a CSV table"):
        read_corrections({"a.png": "cat"})


def test_images_that_are_open_already_cannot_be_corrected(official, tmp_path):
    opened = open_data(official, progress=False)
    with pytest.raises(OptionError, match="open already"):
        open_data(opened, labels=table(tmp_path, ("train/cat/0.png", "cat", "dog")))


def test_a_correction_that_ends_a_conflict_ends_the_warning(write, official, tmp_path):
    write("train/dog/same.png", seed=5)
    write("train/cat/same.png", seed=5)
    kinds = [one.kind for one in open_data(official, progress=False).summary.findings]
    assert "label_conflict" in kinds
    data = open_data(official, labels=table(tmp_path, ("train/cat/same.png", "cat", "drop")), progress=False)
    assert not {"label_conflict", "duplicate"} & {one.kind for one in data.summary.findings}


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CLASSES = st.text(st.sampled_from("ab,;\"'\n\r\t é写 ="), min_size=1, max_size=5).filter(str.strip)


@given(names=st.lists(NAMES, min_size=1, max_size=5, unique=True), wanted=CLASSES)
def test_any_name_survives_the_way_there_and_back(tmp_path_factory, names, wanted):
    rows = tuple(
        ReviewedLabel(item=name, split="train", label="a", suggested="b", probability=0.1, suggested_probability=0.8,
                      is_likely_error=True, corrected=wanted)
        for name in names
    )  # fmt: skip
    review = LabelReview(
        data=SUMMARY, backbone="x", images=9, left_out=0, doubtful=len(rows), likely_errors=0, rows=rows
    )
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_text(review.to_csv(), "utf-8-sig", "surrogateescape", newline="")
    assert [(one.name, one.wanted) for one in read_corrections(file).rows] == [(name, wanted) for name in names]


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes elsewhere")
def test_names_of_files_that_are_no_text_survive(write, official, tmp_path):
    odd = [b'a,b\n"c".png', b"\xff\xe9.png", b" lead.png", "写é.png".encode(), b"-=1.png"]
    folder = os.fsencode(official / "train" / "cat")
    for number, name in enumerate(odd):
        with open(os.path.join(folder, name), "wb") as opened:
            noise(900 + number).save(opened, format="PNG")
    plain = open_data(official, progress=False)
    items = [item for item in plain.items if os.fsencode(item).split(b"cat/")[-1] in odd]
    assert len(items) == len(odd)
    rows = tuple(
        ReviewedLabel(item=item, split="train", label="cat", suggested="dog", probability=0.1,
                      suggested_probability=0.8, is_likely_error=True, corrected="dog")
        for item in items
    )  # fmt: skip
    review = LabelReview(
        data=plain.summary, backbone="x", images=12, left_out=0, doubtful=len(rows), likely_errors=0, rows=rows
    )
    file = tmp_path / "c.csv"
    file.write_text(review.to_csv(), "utf-8-sig", "surrogateescape", newline="")
    after = class_of(open_data(official, labels=file, progress=False))
    assert {after[item] for item in items} == {"dog"}
    assert np.sum([name == "dog" for name in after.values()]) == 8 + len(odd)
