"""What is said where there is no test split, and where what was requested cannot be done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch.utils.data import Dataset

from tests.unit.data.pictures import Writer, noise
from transferkit.core.errors import DataError
from transferkit.data import Data, open_data


class Pairs(Dataset[Any]):
    def __init__(self, count: int, first: int) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return noise(self.first + index), index % 2


def pairs(count: int, first: int = 0) -> Pairs:
    return Pairs(count, first)


def told(data: Data, kind: str) -> str:
    (one,) = [finding for finding in data.summary.findings if finding.kind == kind]
    return one.message if one.severity == "warning" else f"{one.severity}: {one.message}"


def fill(write: Writer, *folders: str, count: int = 10) -> Path:
    for folder in folders:
        for index in range(count):
            path = write(f"{folder}/{index}.png")
    return path.parents[len(Path(folders[-1]).parts)]


SOURCES = {
    "flat test": lambda write: fill(write, "train/a", "train/b", "test"),
    "train and val": lambda write: fill(write, "Training/a", "Training/b", "VALID/a", "VALID/b"),
    "train only": lambda write: fill(write, "train/a", "train/b"),
    "below": lambda write: fill(write, "a/train", "b/train"),
    "dict": lambda write: {"train": pairs(20)},
    "dict with val": lambda write: {"train": pairs(20), "val": pairs(20, 100)},
    "data module": lambda write: pl.LightningDataModule.from_datasets(pairs(20), batch_size=2),
}


@pytest.mark.parametrize("source", SOURCES)
def test_without_test_images_it_is_said_and_on_request_they_come_from_train(write: Writer, source: str) -> None:
    data = SOURCES[source](write)
    plain = open_data(data)
    assert "test" not in plain.summary.counts
    assert plain.summary.counts["train"] == (10, 10)
    message = told(plain, "no_test_split")
    assert "no accuracy on test images will be reported" in message
    assert "pass test=0.2 (command line: data.test=0.2)" in message
    assert "test" not in plain.summary.split_rule
    asked = open_data(data, test=0.3, seed=4)
    assert asked.summary.counts["train"] == (7, 7)
    assert asked.summary.counts["test"] == (3, 3)
    assert "Of train, 30% of each class is held back as test with seed 4" in asked.summary.split_rule
    assert "no_test_split" not in {finding.kind for finding in asked.summary.findings}


def test_unlabelled_test_images_are_told_with_what_to_do(write: Writer) -> None:
    root = fill(write, "train/a", "train/b", "test")
    message = told(open_data(root), "unlabelled_split")
    assert message.startswith("10 images are directly in test/, without a class")
    assert f"transferkit predict run=DIR images={root / 'test'}" in message


def test_val_and_test_may_both_come_from_train(write: Writer) -> None:
    data = open_data(fill(write, "train/a", "train/b"), val=0.2, test=0.3)
    assert data.summary.counts == {"train": (5, 5), "val": (2, 2), "test": (3, 3)}
    assert "20% of each class is held back as val and 30% of each class is held back as test" in data.summary.split_rule


def test_where_nothing_is_asked_for_nothing_is_held_back_and_that_is_noted(unsplit: Path) -> None:
    data = open_data(unsplit, test=0)
    assert data.summary.split_rule == "No split: every image is in train."
    assert told(data, "no_test_split").startswith("info: There is no test split, as test=0 was requested")


def test_a_test_split_of_the_datas_own_is_kept_and_that_is_said(official: Path) -> None:
    assert told(open_data(official, test=0.5), "test_not_drawn").startswith(
        "test=0.5 is not used: the data has its own"
    )
    assert not {finding.kind for finding in open_data(official).summary.findings} & {"test_not_drawn", "no_test_split"}


def test_the_default_splits_what_has_no_splits(unsplit: Path) -> None:
    assert open_data(unsplit).summary.counts == {"train": (8, 16), "test": (2, 4)}


# Groups


def grouped(write: Writer, folder: Path, groups: list[str]) -> Path:
    lines = ["path,label,group"]
    for index, group in enumerate(groups):
        lines.append(f"{write(f'{index}.png')},{'ab'[index % 2]},{group}")
    (folder / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "m.csv"


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        (["one"] * 12, "all images are in one group"),
        (["x", "y"] * 6, "every class is one group"),
    ],
)
def test_groups_that_leave_nothing_to_draw(write: Writer, tmp_path: Path, groups: list[str], why: str) -> None:
    data = open_data(grouped(write, tmp_path, groups), test=0.4)
    assert data.summary.counts == {"train": (6, 6)}
    assert "40%" not in data.summary.split_rule
    assert "No test split could be drawn." in data.summary.split_rule
    message = told(data, "no_test_split")
    assert "No test split could be drawn, although 40% was requested" in message
    assert why in message
    assert "smaller groups" in message


def test_a_share_that_groups_do_not_allow_is_told(write: Writer, tmp_path: Path) -> None:
    groups = ["x" if index < 6 else "y" for index in range(12)]
    rule = open_data(grouped(write, tmp_path, groups)).summary.split_rule
    assert "20% test (50% of the images, as groups stay together)" in rule


def test_a_class_of_one_group_has_its_reason(write: Writer, tmp_path: Path) -> None:
    groups = ["only" if index % 2 else f"g{index}" for index in range(12)]
    data = open_data(grouped(write, tmp_path, groups))
    assert "All images of such a class are of one group" in told(data, "untested_class")


def test_a_class_of_copies_only_cannot_be_held_back(write: Writer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(4):
            write(f"{name}/{index}.png", seed=len(name) + ord(name))
    data = open_data(tmp_path / "images")
    assert "every class is one group, and identical images stay together" in told(data, "no_test_split")


# Test as a copy of train


def test_test_is_a_copy_of_train(official: Path) -> None:
    shutil.rmtree(official / "test")
    shutil.copytree(official / "train", official / "test")
    with pytest.raises(DataError) as caught:
        open_data(official)
    message = str(caught.value)
    assert message.count("\n- ") == 1
    assert "All training images of 2 classes (cat, dog) are also in test, exactly: 12 images." in message
    assert "delete test/ and hold images of train back with test=0.2 (command line: data.test=0.2)" in message
    shutil.rmtree(official / "test")
    assert "test" in open_data(official, test=0.2).summary.counts


def test_both_splits_are_copies_of_train(official: Path) -> None:
    for split in ("val", "test"):
        shutil.rmtree(official / split, ignore_errors=True)
        shutil.copytree(official / "train", official / split)
    with pytest.raises(
        DataError, match=r"Are val and test copies of train\? Remove the copies from val/ and test/, or"
    ):
        open_data(official)


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_class_is_a_copy(write: Writer, official: Path, split: str) -> None:
    write(f"{split}/dog/more.png")
    shutil.copytree(official / "train/cat", official / split / "cat", dirs_exist_ok=True)
    with pytest.raises(
        DataError, match=rf"All training images of 1 class \(cat\) are also in {split}, exactly: 6 images"
    ):
        open_data(official)


def test_datasets_that_are_copies() -> None:
    with pytest.raises(DataError, match=r"also in test, exactly: 8 images.*or the training dataset only"):
        open_data({"train": pairs(8), "test": pairs(8)})


def test_a_class_that_train_spells_otherwise(official: Path) -> None:
    (official / "test/cat").rename(official / "test/Cat")
    with pytest.raises(DataError, match="Class 'Cat' has 2 held-back images but none in train. If it is 'cat', which"):
        open_data(official)
