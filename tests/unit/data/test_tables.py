"""Manifests as spreadsheets, programs and people write them."""

from __future__ import annotations

import datetime
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.unit.data.pictures import Writer
from transferkit.core.errors import DataError
from transferkit.data import Data, open_data

LABELS = ["cat", "dog"] * 6


@pytest.fixture
def names(write: Writer) -> list[str]:
    """12 pictures, relative to the folder that the manifests are in."""
    return [f"images/{write(f'{index}.png').name}" for index in range(12)]


def rows(names: list[str], labels: list[str] = LABELS) -> list[str]:
    return [f"{name},{label}" for name, label in zip(names, labels, strict=True)]


def saved(folder: Path, lines: list[str], *, encoding: str = "utf-8", name: str = "m.csv", end: str = "\n") -> Path:
    (folder / name).write_bytes(end.join([*lines, ""]).encode(encoding))
    return folder / name


def told(data: Data, kind: str) -> str:
    (one,) = [finding for finding in data.summary.findings if finding.kind == kind]
    assert one.severity == "warning"
    return one.message


FORMS: dict[str, Any] = {
    "byte order mark": lambda lines: ("utf-8-sig", lines),
    "utf-16": lambda lines: ("utf-16", lines),
    "utf-16 without a mark": lambda lines: ("utf-16-le", lines),
    "utf-16 big endian": lambda lines: ("utf-16-be", lines),
    "utf-32": lambda lines: ("utf-32", lines),
    "semicolons": lambda lines: ("utf-8", [line.replace(",", ";") for line in lines]),
    "bars": lambda lines: ("utf-8", [line.replace(",", " | ") for line in lines]),
    "tabs": lambda lines: ("utf-8", [line.replace(",", "\t") for line in lines]),
    "quotes after a space": lambda lines: (
        "utf-8",
        [lines[0], *(line.replace(",", ', "') + '" ' for line in lines[1:])],
    ),
    "quoted throughout": lambda lines: ("utf-8", ['"' + line.replace(",", '","') + '"' for line in lines]),
    "a comment first": lambda lines: ("utf-8", ["# made by hand, on a Monday", "#; and, more", *lines]),
    "a commented header": lambda lines: ("utf-8", [f"# {lines[0]}", *lines[1:]]),
    "a comment between": lambda lines: ("utf-8", [*lines[:3], "# the rest", *lines[3:]]),
    "sep=": lambda lines: ("utf-8", ["sep=;", *(line.replace(",", ";") for line in lines)]),
    "empty lines": lambda lines: ("utf-8", ["", lines[0], "", *lines[1:5], " ", ",", *lines[5:], ""]),
    "spaces around": lambda lines: ("utf-8", [line.replace(",", "  ,  ") + "  " for line in lines]),
    "capitals": lambda lines: ("utf-8", ["PATH,Label", *lines[1:]]),
    "single quotes": lambda lines: ("utf-8", ["'" + line.replace(",", "','") + "'" for line in lines]),
    "curly quotes": lambda lines: (
        "utf-8",
        [lines[0], *(line.replace(",", ",\u201c") + "\u201d" for line in lines[1:])],
    ),
    "a delimiter too many": lambda lines: ("utf-8", [lines[0], *(f"{line},," for line in lines[1:])]),
    "spaces between": lambda lines: ("utf-8", [line.replace(",", "  ") for line in lines]),
    "an unused column twice": lambda lines: ("utf-8", ["path,label,x,x", *(f"{line},1,2" for line in lines[1:])]),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(tmp_path: Path, names: list[str], form: str, end: str) -> None:
    encoding, lines = FORMS[form](["path,label", *rows(names)])
    data = open_data(saved(tmp_path, lines, encoding=encoding, end=end), test=0)
    assert data.items == tuple(names)
    assert data.summary.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1] * 6


def test_a_quotation_mark_may_follow_a_backslash(tmp_path: Path, names: list[str]) -> None:
    labels = ['"5\\" cat"', '"a \\"dog\\""'] * 6
    data = open_data(saved(tmp_path, ["path,label", *rows(names, labels)]))
    assert data.summary.classes == ('5" cat', 'a "dog"')


def test_labels_that_look_like_several_are_told(tmp_path: Path, names: list[str]) -> None:
    labels = ["cat", "dog", "cat|dog"] * 4
    message = told(open_data(saved(tmp_path, ["path,label", *rows(names, labels)])), "several_labels")
    assert "several classes in one: 'cat|dog'" in message
    plain = open_data(saved(tmp_path, ["path,label", *rows(names, ["A", "A+"] * 6)]))
    assert "several_labels" not in {finding.kind for finding in plain.summary.findings}


def test_a_quoted_line_break_stays_one(tmp_path: Path, names: list[str]) -> None:
    labels = ['"black\ncat"', "dog"] * 6
    assert open_data(saved(tmp_path, ["path,label", *rows(names, labels)])).summary.classes == ("black\ncat", "dog")


@pytest.mark.parametrize("name", ["m.tsv", "m.csv"])
def test_commas_in_a_tsv_are_text(tmp_path: Path, names: list[str], name: str) -> None:
    lines = ["path\tlabel", *(f"{name}\tcat, {'grey' if k % 2 else 'red'}" for k, name in enumerate(names))]
    assert open_data(saved(tmp_path, lines, name=name)).summary.classes == ("cat, grey", "cat, red")


def test_windows_separators_and_other_unicode_are_found(tmp_path: Path, write: Writer) -> None:
    for index in range(6):
        write(f"sub/caf\u00e9{index}.png")
    written = [rf"images\sub\{unicodedata.normalize('NFD', 'café')}{index}.png" for index in range(6)]
    data = open_data(saved(tmp_path, ["path,label", *rows(written, LABELS[:6])]), strict=True)
    assert data.items == tuple(written)


@pytest.mark.parametrize(
    ("labels", "pair"),
    [
        (["1", "1.0"], "'1' (6) / '1.0' (6)"),
        (["Cat", "cat"], "'Cat' (6) / 'cat' (6)"),
        (["hot dog", "hot_dog"], "'hot dog' (6) / 'hot_dog' (6)"),
        (["01", "1"], "'01' (6) / '1' (6)"),
    ],
)
def test_classes_that_may_be_one_are_told(tmp_path: Path, names: list[str], labels: list[str], pair: str) -> None:
    data = open_data(saved(tmp_path, ["path,label", *rows(names, labels * 6)]), test=0)
    assert len(data.summary.classes) == 2
    assert pair in told(data, "alike_classes")


def test_classes_of_a_folder_that_may_be_one_are_told(write: Writer, tmp_path: Path) -> None:
    for name in ("Cat", "cat", "dog"):
        for index in range(4):
            write(f"{name}/{index}.png")
    assert "'Cat' (4) / 'cat' (4)" in told(open_data(tmp_path / "images"), "alike_classes")


def test_one_spelling_of_unicode_and_no_space_at_the_ends(tmp_path: Path, names: list[str]) -> None:
    table = pyarrow.table({"path": names, "label": ["caf\u00e9", "cafe\u0301 ", " tea"] * 4})
    parquet.write_table(table, tmp_path / "m.parquet")
    data = open_data(tmp_path / "m.parquet")
    assert data.summary.classes == ("caf\u00e9", "tea")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1.0, 2.0, 10.0], ("1", "2", "10")),
        ([0.5, 0.25, 3.0], ("0.25", "0.5", "3")),
        ([True, False, True], ("False", "True")),
        ([b"b", b"a", b"c"], ("a", "b", "c")),
        ([datetime.date(2026, 1, day) for day in (3, 2, 1)], ("2026-01-01", "2026-01-02", "2026-01-03")),
    ],
)
def test_parquet_labels_of_other_types(
    tmp_path: Path, names: list[str], labels: list[Any], classes: tuple[str, ...]
) -> None:
    parquet.write_table(pyarrow.table({"path": names, "label": labels * 4}), tmp_path / "m.parquet")
    assert open_data(tmp_path / "m.parquet").summary.classes == classes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, float("nan"), 2.0], r"column 'label' is empty in 4 rows \(first: 2, 5, 8, 11\)"),
        (["a", None, "b"], r"column 'label' is empty in 4 rows \(first: 2, 5, 8, 11\)"),
        ([["a"], ["b"], []], "column 'label' contains lists or records; expected one text or number per row"),
        ([{"x": 1}, {"x": 2}, {"x": 3}], "column 'label' contains lists or records"),
    ],
)
def test_parquet_labels_that_are_none(tmp_path: Path, names: list[str], labels: list[Any], message: str) -> None:
    parquet.write_table(pyarrow.table({"path": names, "label": labels * 4}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "m.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"path,label\na.png,x\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"m.parquet' cannot be read as a Parquet file: .* or save the table as CSV"):
        open_data(tmp_path / "m.parquet")


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "#N/A"])
def test_missing_values_are_no_class(tmp_path: Path, names: list[str], word: str) -> None:
    with pytest.raises(DataError, match=r"column 'label' is empty in 6 rows \(first: 2, 4, 6, 8, 10\): fill it in, or"):
        open_data(saved(tmp_path, ["path,label", *rows(names, [word, "dog"] * 6)]))


@pytest.mark.parametrize("word", ["None", "NA", "null"])
def test_words_that_may_be_missing_values_are_told(tmp_path: Path, names: list[str], word: str) -> None:
    data = open_data(saved(tmp_path, ["path,label", *rows(names, [word, "dog"] * 6)]), test=0)
    assert f"look like missing labels: {word!r} (6 images)" in told(data, "missing_label_as_class")


def many(tmp_path: Path, write: Writer, labels: list[str]) -> Path:
    lines = [f"{write(f'{index}.png')},{label}" for index, label in enumerate(labels)]
    return saved(tmp_path, ["path,label", *lines])


@pytest.mark.parametrize(
    "labels", [[f"{30 + k / 7:.3f}" for k in range(40)], [str(k * k) for k in range(40)]], ids=["decimals", "integers"]
)
def test_numbers_as_labels_are_one_sentence_that_names_regression(
    tmp_path: Path, write: Writer, labels: list[str]
) -> None:
    file = many(tmp_path, write, labels)
    with pytest.raises(DataError) as caught:
        open_data(file)
    message = str(caught.value)
    assert message.count("\n- ") == 1
    assert "40 of 40 classes have 1 image" in message
    assert "task='regression'" in message
    assert "look like numbers to predict" in told(open_data(file, test=0), "numeric_labels")


def test_a_label_for_every_image_is_one_sentence(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(DataError) as caught:
        open_data(many(tmp_path, write, [f"photo {index}" for index in range(30)]))
    message = str(caught.value)
    assert message.count("\n- ") == 1
    assert "Nearly every image has a different label" in message
    assert "data.columns.label=NAME" in message


def test_few_numbers_are_classes(tmp_path: Path, write: Writer) -> None:
    data = open_data(many(tmp_path, write, [str(index % 25) for index in range(100)]))
    assert "numeric_labels" not in {finding.kind for finding in data.summary.findings}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\na.png,x,y\n", "more than one column 'label'. Rename all but one of them"),
        ("path,Label,LABEL\na.png,x,y\n", r"has the columns 'Label', 'LABEL'. Choose one: .*data.columns.label=Label"),
        ("images/0.png,cat\nimages/1.png,dog\n", "The first line is already an image: add a header line"),
        ("file,species\na.png,x\n", r"columns=\{'path': 'file'\} \(command line: data.columns.path=file\)"),
        ('path,label\na.png,"x\nb.png,y\nc.png,z\n', r"line 2 opens a cell that continues on other lines|do not have"),
        ("My images,\npath,label\na.png,x\n", "The column names are in line 2: remove the lines above it"),
        ("path\na.png\n", "has no column 'label'; it has path. Add a column 'label': expected the class of"),
        ("path,cat,dog\na.png,0,1\nb.png,1,0\n", r"cat, dog look like one class each.*\['cat', 'dog'\]\].idxmax"),
        ("image file,species\na.png,x\n", r"\(command line: 'data.columns.path=image file'\)"),
        ('{"path": "a.png", "label": "x"}\n', "contains JSON. Convert it to CSV"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html>\n", "is a web page, downloaded instead of the file"),
        ("# only a comment\n", "has no rows"),
        ("path,label\n# nothing\n", "has no rows"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, names: list[str], text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "m.csv")


def test_bytes_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label\n" * 9 + bytes(3) + b"x" * 90)
    with pytest.raises(DataError, match="is not a text file"):
        open_data(tmp_path / "m.csv")


def test_rows_are_named_by_their_line(tmp_path: Path, names: list[str]) -> None:
    lines = ["# note", "path,label", *rows(names)[:2], "", f"{names[2]},"]
    with pytest.raises(DataError, match=r"empty in 1 row \(first: 6\)"):
        open_data(saved(tmp_path, lines))
