"""Labels and class names of datasets, in every form that datasets give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder

from tests.unit.data.pictures import Writer, noise
from transferkit.core.errors import DataError
from transferkit.data import Data, open_data


class Items(Dataset[Any]):
    def __init__(self, labels: list[Any], *, first: int = 0, **attributes: Any) -> None:
        self.labels, self.first = labels, first
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return noise(self.first + index), self.labels[index]


def names_of(data: Data) -> list[str]:
    return [data.summary.classes[label] for label in data.labels]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1], ["0", "1"]),
        ([np.int64(3), np.uint8(10)], ["3", "10"]),
        ([torch.tensor(2), torch.tensor([5])], ["2", "5"]),
        ([True, False], ["True", "False"]),
        ([np.bool_(True), torch.tensor(False)], ["True", "False"]),
        ([np.str_("b"), np.array("a")], ["b", "a"]),
        ([b"b", np.bytes_(b"a")], ["b", "a"]),
        (["caf\u00e9", "cafe\u0301s"], ["caf\u00e9", "caf\u00e9s"]),
        ([[0, 1, 0], (1, 0, 0)], ["1", "0"]),
        ([torch.eye(3)[2], np.eye(3)[0]], ["2", "0"]),
        ([torch.tensor([False, True]), torch.tensor([True, False])], ["1", "0"]),
        (["10", "9"], ["10", "9"]),
    ],
)
def test_every_form_of_label(labels: list[Any], names: list[str]) -> None:
    data = open_data(Items(labels * 4), test=0)
    assert names_of(data) == names * 4
    assert all(type(name) is str for name in data.summary.classes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.5], "got float 0.5.*task='regression'"),
        ([torch.tensor(1.0), torch.tensor(2.0)], r"got float 1.0\. For class indices, return int\(label\)"),
        ([[1, 1, 0], [0, 1, 0]], "Label '1' is on every training image"),
        ([[], []], "got 0 values"),
        ([torch.eye(3), torch.eye(3)], "got 3 values"),
        ([b"\xff", b"a"], "are not UTF-8 text"),
        ([{"a": 1}, {"a": 2}], "got dict"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(Items(labels * 4))


@pytest.mark.parametrize("missing", [None, float("nan"), np.array(np.nan), torch.tensor(float("nan"))])
def test_items_without_a_label_are_counted(missing: Any) -> None:
    data = open_data(Items([0, 1, missing] * 4), test=0)
    (told,) = [finding for finding in data.summary.findings if finding.kind == "unlabelled"]
    assert (told.severity, len(told.items)) == ("set_aside", 4)
    assert "Left out, as they have no label: 4 images (image[2], image[5], image[8], image[11])" in told.message
    assert data.summary.counts == {"train": (4, 4)}
    with pytest.raises(DataError, match="Left out, as they have no label: 4 images"):
        open_data(Items([0, 1, missing] * 4), strict=True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"classes": ["zebra", "ant"]},
        {"classes": {"ant": 1, "zebra": 0}},
        {"classes": {1: "ant", 0: "zebra"}},
        {"classes": {np.int64(1): "ant", np.int64(0): "zebra"}},
        {"classes": np.array(["zebra", "ant"])},
        {"class_to_idx": {"ant": 1, "zebra": 0}},
        {"classes": 2, "class_to_idx": {"ant": 1, "zebra": 0}},
    ],
)
def test_every_form_of_class_names(attributes: dict[str, Any]) -> None:
    data = open_data(Items([0, 1] * 4, **attributes), test=0)
    assert data.summary.classes == ("zebra", "ant")
    assert names_of(data) == ["zebra", "ant"] * 4


def test_numbers_need_not_start_at_zero() -> None:
    data = open_data(Items([1, 7] * 4, classes={7: "seven", 1: "one"}), test=0)
    assert names_of(data) == ["one", "seven"] * 4
    with pytest.raises(DataError, match="label 0 is outside the 2 names"):
        open_data(Items([0, 1] * 4, classes={7: "seven", 1: "one"}))


def test_two_names_of_one_number_are_both_told() -> None:
    assert open_data(Items([0, 1] * 4, classes={"cat": 0, "kitten": 0, "dog": 1})).summary.classes == (
        "cat, kitten",
        "dog",
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"ant", "zebra"}, r"Items.classes is a set, which does not define the index of each class"),
        ("ab", "Items.classes is a str, which does not define"),
        ({"ant": "x", "zebra": "y"}, r"is a dict of neither \{name: index\} nor \{index: name\}"),
        (0.5, "Items.classes is float 0.5; expected a list of names"),
    ],
)
def test_class_names_without_an_order(classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(Items([0, 1] * 4, classes=classes))


# Datasets made of others


def folder_of(write: Writer, root: str, *names: str) -> ImageFolder:
    for name in names:
        for index in range(4):
            path = write(f"{root}/{name}/{index}.png")
    return ImageFolder(str(path.parents[1]))


def test_joined_folders_keep_their_names(write: Writer) -> None:
    joined = ConcatDataset([folder_of(write, "one", "cat", "dog"), folder_of(write, "two", "cat", "dog", "eel")])
    data = open_data(joined, test=0)
    assert data.summary.classes == ("cat", "dog", "eel")
    assert names_of(data) == ["cat"] * 4 + ["dog"] * 4 + ["cat"] * 4 + ["dog"] * 4 + ["eel"] * 4


def test_names_come_through_any_nesting(write: Writer) -> None:
    one, two = folder_of(write, "one", "cat", "dog"), folder_of(write, "two", "cat", "dog")
    nested = ConcatDataset([Subset(ConcatDataset([one, Subset(two, range(8))]), range(16)), Subset(one, [])])
    train, test = random_split(nested, [10, 6], generator=torch.Generator().manual_seed(0))
    data = open_data({"train": train, "test": test})
    assert data.summary.classes == ("cat", "dog")
    expected = [["cat", "dog"][label] for part in (train, test) for _, label in part]
    assert names_of(data) == expected


def test_joined_folders_that_disagree_are_an_error(write: Writer) -> None:
    joined = ConcatDataset([folder_of(write, "one", "cat", "dog"), folder_of(write, "two", "ant", "bee")])
    with pytest.raises(
        DataError, match="disagree: label 0 is 'cat' in one and 'ant' in another. Use the same class indices"
    ):
        open_data(Subset(joined, range(16)))


# Lightning data modules


class WithoutStage(pl.LightningDataModule):
    calls = 0

    def setup(self) -> None:  # type: ignore[override]
        self.calls += 1
        self.train, self.held = Items([0, 1] * 6), Items([0, 1] * 2, first=50)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=2)

    def test_dataloader(self) -> Any:
        return DataLoader(self.held, batch_size=2)


class WithDefault(WithoutStage):
    def setup(self, stage: str | None = None) -> None:  # type: ignore[override]
        super().setup()


class WithAnything(WithoutStage):
    def setup(self, *_: Any, **__: Any) -> None:
        super().setup()


@pytest.mark.parametrize(("module", "calls"), [(WithoutStage, 1), (WithDefault, 2), (WithAnything, 2)])
def test_setup_in_every_form(module: type[WithoutStage], calls: int) -> None:
    made = module()
    assert open_data(made).summary.counts == {"train": (6, 6), "test": (2, 2)}
    assert made.calls == calls
