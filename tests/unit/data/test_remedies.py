"""What a message advises works when it is typed: as an argument of Python and as a setting of the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import transferkit as tk
from tests.unit.data.pictures import Writer, noise
from transferkit.cli.composition import compose_settings
from transferkit.cli.schema import arguments_of
from transferkit.core.errors import DataError, OptionError, TransferkitError
from transferkit.data import open_data
from transferkit.options import DataOptions

_SETTING = re.compile(r"data\.([a-z_.]+)=([A-Za-z0-9_.]+)")


def typed(message: str, source: str, place: Path) -> dict[str, Any]:
    """The settings that a message advises, typed on the command line: what `open_data` gets then."""
    settings = [f"data.{key}={value}" for key, value in _SETTING.findall(message)]
    assert settings, message
    where = "root" if source == "folder" else "path"
    composed = compose_settings([f"data={source}", f"data.{where}='{place}'", *settings])
    names = {"data", *(one.name for one in dataclasses.fields(DataOptions))}
    return {name: value for name, value in arguments_of(composed, tk.adapt).items() if name in names}


def complaint(data: Any, **options: Any) -> str:
    """The message of the error, or all those of the findings."""
    try:
        opened = open_data(data, **options)
    except TransferkitError as error:
        return str(error)
    return "\n".join(finding.message for finding in opened.summary.findings)


def test_max_pixels(official: Path) -> None:
    Image.new("RGB", (100, 90)).save(official / "train/cat/0.png")
    message = complaint(official, max_pixels=8_999)
    assert "pass max_pixels=9000 (command line: data.max_pixels=9000)" in message
    assert len(open_data(official, max_pixels=9000)) == 16
    assert len(open_data(**typed(message, "folder", official))) == 16


def test_max_pixels_of_a_dataset() -> None:
    class Large:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return noise(index, side=24 + index), index % 2

    assert "pass max_pixels=961 " in complaint(Large(), max_pixels=900, test=0)
    assert len(open_data(Large(), max_pixels=961)) == 8


def test_a_test_split(write: Writer, tmp_path: Path) -> None:
    for index in range(20):
        write(f"train/{'ab'[index % 2]}/{index}.png")
    root = tmp_path / "images"
    assert open_data(**typed(complaint(root), "folder", root)).summary.counts == {"train": (8, 8), "test": (2, 2)}


def test_nothing_held_back(write: Writer, unsplit: Path) -> None:
    write("bird/1.png")
    assert open_data(**typed(complaint(unsplit), "folder", unsplit)).summary.counts == {"train": (1, 10, 20)}
    message = complaint(unsplit, test=0, val=0.2)
    with pytest.raises(DataError, match="2 are needed to hold one back for validation"):
        open_data(unsplit, test=0, val=0.2)
    arguments = {**typed(message, "folder", unsplit), "test": 0.0}
    assert open_data(**arguments).summary.counts == {"train": (1, 10, 20)}


@pytest.fixture
def table(write: Writer, tmp_path: Path) -> Path:
    """A manifest with other names for its columns, and in another folder than its files start from."""
    lines = ["file,species,half"]
    lines += [
        f"{write(f'{index}.png').name},{'ab'[index % 2]},{'train' if index < 8 else 'test'}" for index in range(12)
    ]
    (tmp_path / "images" / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "images" / "m.csv"


def test_columns_one_after_the_other(table: Path) -> None:
    message, advised = "", {}
    for _ in range(2):
        message += complaint(table, columns=advised)
        advised = typed(message, "manifest", table)["columns"]
    assert advised == {"path": "file", "label": "species"}
    assert len(open_data(table, columns=advised)) == 12
    assert open_data(table, columns={**advised, "split": "half"}).summary.counts == {"train": (4, 4), "test": (2, 2)}


def test_columns_that_are_numbers(table: Path) -> None:
    table.write_text(table.read_text().replace("species", "1"))
    arguments = typed("data.columns.path=file data.columns.label=1", "manifest", table)
    assert open_data(**arguments).summary.num_classes == 2


def test_a_root(table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "m.csv"
    table.rename(moved)
    named = {"path": "file", "label": "species"}
    message = complaint(moved, columns=named)
    assert f"pass root={str(table.parent)!r} (command line: data.root={table.parent})" in message
    assert len(open_data(moved, columns=named, root=table.parent)) == 12
    message = f"data.columns.path=file data.columns.label=species {message}"
    arguments = {**typed(message, "manifest", moved), "root": str(table.parent)}
    assert len(open_data(**arguments)) == 12


def test_preprocessed_is_for_datasets_and_says_so(official: Path) -> None:
    with pytest.raises(OptionError, match="is for datasets that yield float tensors"):
        open_data(official, preprocessed=True)


@pytest.mark.parametrize("make", ["folder", "manifest", "dataset"])
def test_remedies_fit_the_kind_of_source(official: Path, table: Path, make: str) -> None:
    class Broken:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 0:
                raise FileNotFoundError("gone.png")
            return noise(index), index % 2

    (official / "train/cat/gone.png").symlink_to(official / "nowhere")
    lines = table.read_text().replace("0.png", "gone.png", 1).replace("file,species", "path,label")
    table.write_text(lines, encoding="utf-8")
    message = complaint({"folder": official, "manifest": table, "dataset": Broken()}[make])
    assert ("manifest" in message) is (make == "manifest")
    assert ("links" in message) is (make == "folder")
    assert ("dataset" in message) is (make == "dataset")


@pytest.mark.parametrize("verb", [tk.adapt, tk.analyze, tk.rank, tk.TransferDataModule.__init__])
def test_every_way_in_takes_what_messages_advise(verb: Any) -> None:
    assert {"columns", "max_pixels", "root", "test", "val", "strict"} <= set(inspect.signature(verb).parameters)
    assert inspect.signature(verb).parameters["test"].default is None


def test_the_command_lines_default_is_pythons(official: Path) -> None:
    arguments = typed("data.strict=false", "folder", official)
    assert arguments["test"] is None
    assert arguments["max_pixels"] == inspect.signature(open_data).parameters["max_pixels"].default
    assert arguments["columns"] is None


def test_max_pixels_must_be_a_number_of_pixels(official: Path) -> None:
    with pytest.raises(OptionError, match="must be >= 1, got 0"):
        open_data(official, max_pixels=0)
