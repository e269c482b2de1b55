"""Several labels per image, or numbers, from manifests and datasets."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import DataError, OptionError
from transferkit.data import open_data

CAT, DOG = np.arange(40) % 2, np.arange(40) % 5 == 0


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)

    def write(header, rows):
        with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / "m.csv"

    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"{number} ü.png")
    return write


def names(number):
    return ";".join(name for name, on in (("cat", CAT[number]), ("dög", DOG[number])) if on)


def opened(file, **options):
    return open_data(file, progress=False, **options)


@pytest.mark.parametrize("separator", [";", "|", ","])
def test_labels_are_separated_by_a_sign(manifest, separator):
    file = manifest(["path", "label"], [(f"{n} ü.png", names(n).replace(";", separator)) for n in range(40)])
    data = opened(file, task="multi_label")
    assert data.summary.classes == ("cat", "dög")
    assert data.summary.task == "multi_label"
    assert data.targets.values.sum(axis=0).tolist() == [20, 8]
    assert (data.targets.values.sum(axis=1) == 0).sum() == 16  # without any label
    assert data.summary.size("train") + data.summary.size("test") == 40
    assert sum(data.summary.counts[split][0] for split in data.summary.counts) == 20


def test_columns_of_0_and_1_are_labels_and_others_are_numbers(manifest):
    rows = [(f"{n} ü.png", int(CAT[n]), "yes" if DOG[n] else "no", 0.5 * n, n**2) for n in range(40)]
    file = manifest(["path", "cat", "dog", "x", "y"], rows)
    assert opened(file, columns={"label": ["cat", "dog"]}).summary.task == "multi_label"
    data = opened(file, columns={"label": ["x", "y"]})
    assert data.summary.task == "regression"
    assert data.targets.values[:, 0].tolist() == [0.5 * n for n in range(40)]
    assert opened(file, columns={"label": ["x", "cat"]}).summary.task == "regression"
    assert opened(file, columns={"label": "y"}, task="regression").summary.classes == ("y",)
    assert data.folds.take(np.array([3])).targets.values.tolist() == [[1.5, 9.0]]


def test_test_images_are_of_all_sizes_of_the_number(manifest):
    data = opened(manifest(["path", "label"], [(f"{n} ü.png", n) for n in range(40)]), task="regression")
    held = data.targets.values[data.indices("test"), 0]
    assert held.min() < 10
    assert held.max() > 30


def test_an_image_without_its_number_is_set_aside(manifest):
    file = manifest(["path", "label"], [(f"{n} ü.png", "" if n in (3, 4) else n) for n in range(40)])
    data = opened(file, task="regression")
    assert len(data) == 38
    (found,) = [one for one in data.summary.findings if one.kind == "unlabelled"]
    assert found.items == ("3 ü.png", "4 ü.png")
    with pytest.raises(DataError, match="a number is missing"):
        opened(file, task="regression", strict=True)


@pytest.mark.parametrize(
    ("cells", "options", "match"),
    [
        ([2], {"columns": {"label": ["label"]}, "task": "multi_label"}, "expected 0 or 1"),
        (["1,5"], {"task": "regression"}, "a point instead of the comma"),
        (["inf"], {"task": "regression"}, "leave the cell empty"),
        (["cat"], {"task": "regression"}, "task=multi_label"),
        ([7] * 40, {"task": "regression"}, "is 7 on every training image"),
        (["cat"] * 40, {"task": "multi_label"}, "'cat' is on every training image"),
        ([""] * 40, {"task": "multi_label"}, "No image has a label"),
        ([""] * 40, {"task": "regression"}, "No usable image"),
    ],
)
def test_what_cannot_be_learned_is_said(manifest, cells, options, match):
    filled = [cells[n] if n < len(cells) else n % 2 for n in range(40)]
    file = manifest(["path", "label"], [(f"{n} ü.png", filled[n]) for n in range(40)])
    with pytest.raises(DataError, match=match):
        opened(file, **options)


def test_a_label_of_held_back_images_alone_is_an_error(manifest):
    rows = [(f"{n} ü.png", "test" if n > 30 else "train", "new" if n > 30 else names(n)) for n in range(40)]
    with pytest.raises(DataError, match="'new' is on no training image, but on 9 held-back images"):
        opened(manifest(["path", "split", "label"], rows), task="multi_label")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "multilabel"}, "Closest known: multi_label"),
        ({"task": "single_label", "columns": {"label": ["cat"]}}, "takes one column"),
        ({"columns": {"label": []}}, "a list of different names"),
        ({"columns": {"label": ["cat", "cat"]}}, "a list of different names"),
    ],
)
def test_options_that_cannot_be(manifest, options, match):
    file = manifest(["path", "cat"], [(f"{n} ü.png", CAT[n]) for n in range(40)])
    with pytest.raises(OptionError, match=match):
        opened(file, **options)


def test_a_folder_and_built_in_digits_have_one_class_per_image(stripes):
    for source in (stripes, "builtin/digits"):
        with pytest.raises(OptionError, match="one class per image"):
            opened(source, task="multi_label")


class Pairs:
    """A dataset of noise with these targets."""

    def __init__(self, targets, classes=None):
        self.targets = targets
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)), self.targets[index]


HOT = np.stack([CAT, DOG], axis=1)


def test_vectors_that_are_not_one_hot_are_labels_and_floats_are_numbers():
    data = opened(Pairs(HOT, ["cat", "dog"]))
    assert data.summary.task == "multi_label"
    assert data.summary.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.targets.values, HOT)
    assert opened(Pairs(HOT * 1.5)).summary.task == "regression"
    assert opened(Pairs([np.eye(2, dtype=int)[n % 2] for n in range(40)])).summary.task == "single_label"


def test_lists_of_names_or_class_numbers_are_labels_if_asked_for():
    by_name = [["cat"] * int(CAT[n]) + ["dog"] * int(DOG[n]) for n in range(40)]
    by_number = [[0] * int(CAT[n]) + [1] * int(DOG[n]) for n in range(40)]
    one = opened(Pairs(by_name), task="multi_label")
    other = opened(Pairs(by_number, ["cat", "dog"]), task="multi_label")
    np.testing.assert_array_equal(one.targets.values, HOT)
    np.testing.assert_array_equal(other.targets.values, HOT)


def test_a_float_alone_says_which_task_it_may_be():
    with pytest.raises(DataError, match="task='regression'"):
        opened(Pairs([0.5 * n for n in range(40)]))
    assert opened(Pairs([0.5 * n for n in range(40)]), task="regression").summary.size("train") == 32
