"""Torch datasets in every form they yield images, mappings, data modules, and the built-in digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from tests.unit.data.pictures import Listed, Writer, noise
from transferkit.core.errors import DataError
from transferkit.data import Data, open_data
from transferkit.records import Preprocessing

WANTS = Preprocessing(size=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


class Pairs(Dataset[Any]):
    def __init__(self, images: list[Any], labels: list[Any], classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


def pairs(count: int = 20, first: int = 0, classes: list[str] | None = None) -> Pairs:
    return Pairs([noise(first + i) for i in range(count)], [i % 2 for i in range(count)], classes)


def kinds(data: Data) -> set[str]:
    return {finding.kind for finding in data.summary.findings}


FORMS = {
    "pil": lambda image: image,
    "hwc uint8 array": np.asarray,
    "chw uint8 tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "chw float tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "chw half tensor": lambda image: (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255).double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels_and_names(form: str) -> None:
    plain, data = open_data(pairs()), open_data(Pairs([FORMS[form](noise(i)) for i in range(20)], [0, 1] * 10))
    assert data.content_ids.tolist() == plain.content_ids.tolist()
    assert data.summary.content_id == plain.summary.content_id
    assert np.array_equal(data.pixels(3, WANTS), np.asarray(noise(3)).transpose(2, 0, 1))


def test_labels_and_names_come_through_a_subset() -> None:
    data = open_data(Subset(pairs(classes=["zebra", "ant"]), range(10, 20)), test=0.2)
    assert data.summary.classes == ("zebra", "ant")
    assert data.summary.counts == {"train": (4, 4), "test": (1, 1)}
    assert data.items[0] == "image[0]"
    assert data.thread_safe is False


def test_labels_may_be_tensors_or_names() -> None:
    images = [noise(i) for i in range(12)]
    assert open_data(Pairs(images, [torch.tensor(10 - i % 2) for i in range(12)])).summary.classes == ("9", "10")
    assert open_data(Pairs(images, ["b", "a"] * 6)).summary.classes == ("a", "b")


def test_an_announced_class_without_images_is_left_out() -> None:
    data = open_data(pairs(classes=["a", "b", "c"]))
    assert data.summary.classes == ("a", "b")
    assert "unused_class" in kinds(data)


def test_a_mapping_brings_its_own_splits() -> None:
    data = open_data({"validation": pairs(4, 100), "train": pairs(12)})
    assert data.summary.counts == {"train": (6, 6), "val": (2, 2)}
    assert data.items[12] == "val[0]"


def test_a_mapping_joins_classes_by_name() -> None:
    train, test = pairs(12, classes=["a", "b"]), pairs(4, 100, classes=["b", "a"])
    data = open_data({"train": train, "test": test})
    assert data.labels[data.indices("test")].tolist() == [1, 0, 1, 0]


def test_a_leak_between_datasets_is_set_aside() -> None:
    data = open_data({"train": pairs(12), "test": pairs(4, 8)})
    assert data.summary.counts == {"train": (4, 4), "test": (2, 2)}
    assert "duplicate_across_splits" in kinds(data)


def normalised(index: int) -> torch.Tensor:
    return torch.from_numpy(np.array(noise(index))).permute(2, 0, 1).float() / 60 - 2


def test_normalised_tensors_are_refused_with_the_reason() -> None:
    dataset = Pairs([normalised(i) for i in range(12)], [0, 1] * 6)
    with pytest.raises(DataError, match=r"must not be normalised beforehand.*or pass preprocessed=True"):
        open_data(dataset)


def test_preprocessed_tensors_are_taken_as_they_are() -> None:
    data = open_data(Pairs([normalised(i) for i in range(12)], [0, 1] * 6), preprocessed=True)
    pixels = data.pixels(2, WANTS)
    assert data.normalised
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels, normalised(2).numpy())
    assert data.thumbnail(2).jpeg[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Pairs([noise(0)] * 2, [0, 1]), "expects float tensors"),
        (Pairs([torch.full((3, 8, 8), float("nan"))] * 2, [0, 1]), "NaN or infinity"),
    ],
    ids=["pil", "nan"],
)
def test_preprocessed_must_be_finite_float_tensors(dataset: Pairs, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(dataset, preprocessed=True)


def test_a_dataset_that_draws_at_random_is_warned_of() -> None:
    class Flipping(Pairs):
        reads = 0

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            Flipping.reads += 1
            image, label = super().__getitem__(index)
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if Flipping.reads > 20 else image, label

    assert "random_images" in kinds(open_data(Flipping(pairs().images, pairs().labels)))
    assert "random_images" not in kinds(open_data(pairs()))


def test_files_that_the_dataset_cannot_load_are_set_aside(tmp_path: Path) -> None:
    class Lazy(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return Image.open(self.images[index]), self.labels[index]

    paths = [tmp_path / f"{index}.png" for index in range(12)]
    for index, path in enumerate(paths):
        noise(index).save(path)
    paths[0].write_bytes(b"no image")
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    Image.new("RGB", (60, 60)).save(paths[2])
    data = open_data(Lazy(paths, [0, 1] * 6), max_pixels=3_000)
    aside = {finding.kind: finding.items for finding in data.summary.findings if finding.severity == "set_aside"}
    assert aside == {"unreadable": ("image[0]",), "truncated": ("image[1]",), "oversized": ("image[2]",)}
    assert len(data) == 9


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield noise(0), 0


class Rows(Pairs):
    def __getitem__(self, index: int) -> Any:
        return {"image": self.images[index], "label": self.labels[index]}


IMAGES = [noise(0), noise(1)]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "is an IterableDataset, which cannot be audited or split"),
        (Rows(IMAGES, [0, 1]), r"image\[0\]: expected a pair \(image, label\), got dict"),
        (Pairs([], []), r"The dataset \(Pairs\) is empty"),
        (Pairs(IMAGES, [0.5, 1]), "expected one class index or class name as label, got float"),
        (Pairs(IMAGES, [torch.zeros(5), torch.zeros(5)]), "There are 1 training images with a target"),
        (Pairs(IMAGES, [0, 2], ["a", "b"]), "label 2 is outside the 2 names"),
        (Pairs(["a.png", "b.png"], [0, 1]), "expected a PIL image, .* got str"),
        (Pairs([np.zeros((4, 4, 3), complex)] * 2, [0, 1]), "got complex128 values"),
        (Pairs([np.zeros((7, 4, 5), np.uint8)] * 2, [0, 1]), r"expected 1, 3 or 4 channels .* got shape \(7, 4, 5\)"),
        ({"test": pairs(4)}, "Expected a dataset for split 'train', got test"),
        ({"train": pairs(4), "tset": pairs(4)}, "Unknown split 'tset'. Closest known: test"),
        ({"val": pairs(4), "valid": pairs(4), "train": pairs(4)}, "Split 'val' is given twice"),
        ({"train": 3}, "Expected a map-style dataset .* got int"),
    ],
)
def test_datasets_that_cannot_be_used(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(dataset)


class Module(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(pairs(12), batch_size=2)

    def test_dataloader(self) -> Any:
        return [DataLoader(pairs(4, 100), batch_size=2)]


def test_a_data_module_is_set_up_and_read() -> None:
    module = Module()
    data = open_data(module)
    assert module.calls == ["prepare", "fit", "test"]
    assert data.summary.counts == {"train": (6, 6), "test": (2, 2)}
    assert data.summary.origin == "Module"


def test_a_data_module_made_from_datasets() -> None:
    module = pl.LightningDataModule.from_datasets(pairs(12), val_dataset=pairs(4, 100), batch_size=2)
    assert open_data(module).summary.counts == {"train": (6, 6), "val": (2, 2)}


def test_data_modules_that_cannot_be_used() -> None:
    class Two(Module):
        def train_dataloader(self) -> Any:
            return [DataLoader(pairs(4)), DataLoader(pairs(4))]

    with pytest.raises(DataError, match=r"Two\.train_dataloader\(\) returns list; expected one DataLoader"):
        open_data(Two())
    with pytest.raises(DataError, match="LightningDataModule has no train_dataloader"):
        open_data(pl.LightningDataModule())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((pairs(4), pairs(4)), r"Pass splits as a mapping: \{'train': DATASET, 'test': DATASET\}"),
        (Listed({"image": noise(0), "label": 1}), "got dict. It has the keys 'image', 'label': wrap the dataset"),
        (Listed((noise(0), 1, "x")), "got tuple. It has 3 entries: wrap the dataset"),
        (DataLoader(pairs(4)), "got DataLoader. Pass what it loads from: loader.dataset"),
        (Listed((noise(0), None), (noise(1), None)), "No image has a label. Give every image its class"),
    ],
    ids=["tuple", "dict", "three", "loader", "no labels"],
)
def test_datasets_of_another_form_say_what_to_do(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(data)


def test_what_a_dataset_raises_is_told() -> None:
    items = [(noise(index), index % 2) for index in range(8)]
    findings = open_data(Listed(*items, OSError("the disk is gone")), test=0).summary.findings
    (finding,) = [found for found in findings if found.kind == "unreadable"]
    assert "the first is OSError: the disk is gone" in finding.message


@pytest.mark.parametrize(("labels", "told"), [([-1, 0, 1], True), ([-1, 1], False), ([-2, -1, 0], False)])
def test_minus_one_may_be_a_missing_label(labels: list[int], told: bool) -> None:
    data = open_data(Listed(*((noise(index), labels[index % len(labels)]) for index in range(12))), test=0)
    assert ("missing_label_as_class" in kinds(data)) is told


def test_a_transform_of_labels_changes_no_image(write: Writer, tmp_path: Path) -> None:
    for index in range(8):
        write(f"{'ab'[index % 2]}/{index}.png")
    folder = ImageFolder(str(tmp_path / "images"), target_transform=lambda label: 1 - label)
    assert "outside_transform" not in kinds(open_data(folder, test=0))
    folder = ImageFolder(str(tmp_path / "images"), transform=lambda image: image.rotate(9))
    assert "outside_transform" in kinds(open_data(folder, test=0))


def test_digits_are_scikit_learns() -> None:
    data = open_data("builtin/digits", test=0.3)
    assert data.summary.classes == tuple("0123456789")
    assert len(data) == 1797
    assert sum(data.summary.counts["test"]) == pytest.approx(539, abs=5)
    ink = load_digits().images[5]
    assert np.abs(np.asarray(data.image(5))[..., 0] / 255 * 16 - ink).max() < 0.05
    assert not kinds(data) & {"near_duplicate", "random_images"}
