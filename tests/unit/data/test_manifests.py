"""Manifests: columns, splits, groups, places, and every way to get them wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.unit.data.pictures import Writer
from transferkit.core.errors import DataError, MissingDependencyError, OptionError
from transferkit.data import open_data

Rows = list[tuple[str, ...]]


@pytest.fixture
def rows(write: Writer) -> Rows:
    """12 images: path relative to tmp_path, label, split, group; groups of two."""
    made = []
    for index in range(12):
        path = write(f"{index}.png")
        split = "test" if index >= 8 else "train"
        made.append((f"images/{path.name}", "ab"[index % 2], split, f"person {index // 2}"))
    return made


def table(path: Path, header: tuple[str, ...], rows: Rows, delimiter: str = ",") -> Path:
    lines = [delimiter.join(row[: len(header)]) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.csv", ";"), ("m.tsv", "\t")])
def test_text_manifests(tmp_path: Path, rows: Rows, name: str, delimiter: str) -> None:
    data = open_data(table(tmp_path / name, ("path", "label", "split"), rows, delimiter))
    assert data.summary.counts == {"train": (4, 4), "test": (2, 2)}
    assert data.items[3] == "images/3.png"
    assert data.labels[:4].tolist() == [0, 1, 0, 1]


def test_a_spreadsheets_byte_order_mark_and_capitals_are_forgiven(tmp_path: Path, rows: Rows) -> None:
    path = table(tmp_path / "m.csv", ("Path", " LABEL ", "Split"), rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"train", b"Training"))
    with pytest.raises(DataError, match="no column"):  # a mark before a differently named column changes nothing
        open_data(path, columns={"path": "file"})
    assert open_data(path).summary.counts == {"train": (4, 4), "test": (2, 2)}


def test_groups_never_straddle_our_splits(tmp_path: Path, rows: Rows) -> None:
    no_split = [(path, label, group) for path, label, _, group in rows]
    data = open_data(table(tmp_path / "m.csv", ("path", "label", "group"), no_split), test=0.3)
    groups = {row[0]: row[2] for row in no_split}
    homes: dict[str, set[str]] = {}
    for item, split in zip(data.items, data.splits.tolist(), strict=True):
        homes.setdefault(groups[item], set()).add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert data.summary.counts == {"train": (4, 4), "test": (2, 2)}
    assert "groups" in data.summary.split_rule


def test_groups_that_official_splits_tear_apart_are_told(tmp_path: Path, rows: Rows) -> None:
    rows[8] = (*rows[8][:3], "person 0")
    data = open_data(table(tmp_path / "m.csv", ("path", "label", "split", "group"), rows))
    (found,) = [finding for finding in data.summary.findings if finding.kind == "group_across_splits"]
    assert found.items == ("person 0",)
    assert data.summary.counts == {"train": (4, 4), "test": (2, 2)}


def test_parquet_with_integer_labels(tmp_path: Path, rows: Rows) -> None:
    columns = {"path": [row[0] for row in rows], "label": [index % 2 for index in range(12)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    data = open_data(tmp_path / "m.parquet")
    assert data.summary.classes == ("0", "1")
    assert data.labels.tolist() == [0, 1] * 6


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'transferkit\[parquet\]'"):
        open_data(tmp_path / "m.parquet")


def test_root_and_columns(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = table(tmp_path / "elsewhere/m.csv", ("file", "species", "split"), rows)
    data = open_data(path, root=tmp_path, columns={"path": "file", "label": "species"})
    assert data.summary.train_images == 8


def test_absolute_paths(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "elsewhere").mkdir()
    absolute = [(str(tmp_path / row[0]), *row[1:]) for row in rows]
    assert len(open_data(table(tmp_path / "elsewhere/m.csv", ("path", "label", "split"), absolute))) == 12


def test_a_missing_file_is_set_aside(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / rows[0][0]).unlink()
    data = open_data(table(tmp_path / "m.csv", ("path", "label", "split"), rows))
    assert [(finding.kind, finding.items) for finding in data.summary.findings if finding.severity == "set_aside"] == [
        ("missing", ("images/0.png",))
    ]


def test_a_wrong_root_is_one_clear_error(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match=r"None of the 12 files .* exists; .* pass root=DIR if that is wrong"):
        open_data(table(tmp_path / "m.csv", ("path", "label"), rows), root=tmp_path / "no" / "where")


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("{name}", "It is in '{images}': pass root='{images}' "),
        ("images/{stem}", "That folder contains '0.png': write the exact file names, with their extension"),
        ("IMAGES/{upper}", "pass root=DIR if that is wrong"),
        ("images/{upper}", "That folder contains '0.png': write the exact file names"),
        ("C:\\Users\\me\\images\\{name}", "images/0.png': remove 'C:\\\\Users\\\\me\\\\' from the start of the paths."),
        ("/kaggle/input/images/{name}", "images/0.png': remove '/kaggle/input/' from the start of the paths."),
        ("data/images/{name}", "images/0.png': remove 'data/' from the start of the paths."),
        ("old/{name}", "0.png': remove 'old/' from the start of the paths, and pass root='{images}' "),
        ("https://example.org/{name}", "Download the images, and list their paths"),
        ("file:///x/{name}", "Write plain paths, without 'file://'"),
    ],
)
def test_where_the_images_are_instead_is_said(tmp_path: Path, rows: Rows, written: str, remedy: str) -> None:
    images = tmp_path / "images"
    moved = []
    for path, label, *_ in rows:
        name = Path(path).name
        moved.append((written.format(name=name, stem=Path(path).stem, upper=name.upper()), label))
    with pytest.raises(DataError) as caught:
        open_data(table(tmp_path / "m.csv", ("path", "label"), moved))
    assert remedy.format(images=images) in str(caught.value)


def test_a_path_may_start_from_the_home_folder(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_data(table(tmp_path / "m.csv", ("path", "label"), [(f"~/{row[0]}", row[1]) for row in rows]))) == 12


@pytest.mark.parametrize(
    ("header", "name", "ours"),
    [
        (("path", "label", "set", "id"), "set", "split"),
        (("path", "label", "split", "Patient ID"), "Patient ID", "group"),
    ],
)
def test_a_column_that_looks_like_a_split_or_a_group_is_told(
    tmp_path: Path, rows: Rows, header: tuple[str, ...], name: str, ours: str
) -> None:
    path = table(tmp_path / "m.csv", header, rows)
    (finding,) = [found for found in open_data(path).summary.findings if found.kind == "column_not_read"]
    assert f"The column {name!r} looks like a {ours} but is not used" in finding.message
    told = {found.kind for found in open_data(path, columns={ours: name}).summary.findings}
    assert "column_not_read" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "has no column 'path'; it has file, label"),
        ("path,label\n", "has no rows"),
        ("", "has no rows"),
        ("path,label\na.png\n", "rows 2 do not have the header's 2 cells"),
        ("path,label\na.png,\nb.png,x\n", r"column 'label' is empty in 1 row \(first: 2\)"),
        ("path,label,split\na.png,x,tarin\n", "column 'split' contains 'tarin'; expected train, val or test"),
        ("path,label,split\na.png,x,train\nb.png,x,\n", "column 'split' contains ''"),
        ("path,label,split\na.png,x,test\n", "has no row with train"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "m.csv")


def test_latin1_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,label\né.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        open_data(tmp_path / "m.csv")


def test_a_missing_manifest_and_an_unknown_column_name(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match="There is no manifest"):
        open_data(tmp_path / "gone.csv")
    with pytest.raises(OptionError, match=r"Unknown manifest column 'lable'. Closest known: label"):
        open_data(table(tmp_path / "m.csv", ("path", "label"), rows), columns={"lable": "x"})
