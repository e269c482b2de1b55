"""Image folders as people lay them out: splits above or below classes, classes called like splits, our own output."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.data.pictures import Writer, noise
from transferkit.core.errors import DataError
from transferkit.data import Data, open_data
from transferkit.data.predictable import predictable_images
from transferkit.records import Finding


def found(data: Data, kind: str) -> Finding:
    (one,) = [finding for finding in data.summary.findings if finding.kind == kind]
    return one


def kinds(data: Data) -> set[str]:
    return {finding.kind for finding in data.summary.findings}


def fill(write: Writer, *folders: str, count: int = 5) -> Path:
    """`count` pictures in each folder; returns the root."""
    for folder in folders:
        for index in range(count):
            path = write(f"{folder}/{index}.png")
    return path.parents[len(Path(folders[-1]).parts)]


# Our own output


def make_run(folder: Path) -> None:
    """What a finished run leaves, as far as a data set can be confused by it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"schema": 1, "evidence": {}}))
    for name in ("report.html", "log.txt", "model.safetensors"):
        (folder / name).write_bytes(b"x")


def make_killed(folder: Path) -> None:
    (folder / "training/lp_ft/fold0").mkdir(parents=True)
    (folder / "training/lp_ft/identity.json").write_text("{}")
    (folder / "training/lp_ft/fold0/last.ckpt").write_bytes(b"x")


def make_ranking(folder: Path) -> None:
    folder.mkdir()
    (folder / "ranking.json").write_text(json.dumps({"schema": 1, "ranking": {}}))


def make_marked(folder: Path) -> None:
    folder.mkdir()
    (folder / ".transferkit").touch()
    (folder / "log.txt").touch()


def make_runs(folder: Path) -> None:
    make_run(folder / "2026-01-01_10-00-00")
    make_marked(folder / "sweep")
    (folder / ".DS_Store").touch()


def make_bank(folder: Path) -> None:
    (folder / "v1/abc").mkdir(parents=True)
    (folder / "v1/abc/meta.json").write_text("{}")
    (folder / "v1/abc/1.rows").write_bytes(bytes(64))


def make_cleared_bank(folder: Path) -> None:
    (folder / "v1").mkdir(parents=True)


def make_memory_of_the_audit(folder: Path) -> None:
    folder.mkdir()
    (folder / "audit.sqlite").write_bytes(b"x")


@pytest.mark.parametrize(
    "make",
    [
        make_run,
        make_killed,
        make_ranking,
        make_marked,
        make_runs,
        make_bank,
        make_cleared_bank,
        make_memory_of_the_audit,
    ],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("split", [False, True])
def test_output_of_ours_is_no_class_and_no_split(unsplit: Path, official: Path, make, split: bool) -> None:
    root = official if split else unsplit
    before = open_data(root)
    make(root / "valid")  # a name that would be a split
    data = open_data(root, strict=True)
    assert data.items == before.items
    assert data.summary.counts == before.summary.counts
    assert found(data, "own_output").severity == "info"
    assert found(data, "own_output").items == ("valid",)


def test_the_datas_own_folder_may_be_the_runs_folder(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_data(official).items
    make_run(official)
    make_killed(official)
    monkeypatch.chdir(official)
    data = open_data(".", strict=True)
    assert data.items == before
    assert found(data, "own_output").items == ("training",)
    assert "stray_file" not in kinds(data)


def test_a_class_folder_may_be_the_runs_folder(unsplit: Path) -> None:
    before = open_data(unsplit).items
    make_run(unsplit / "cat")
    make_killed(unsplit / "cat")
    assert open_data(unsplit, strict=True).items == before


@pytest.mark.parametrize("place", [".", "cat"])
@pytest.mark.parametrize("cleared", [False, True])
def test_the_bank_may_lie_among_the_images(unsplit: Path, place: str, cleared: bool) -> None:
    before = open_data(unsplit).items
    (unsplit / place / "audit.sqlite").write_bytes(b"x")
    make_cleared_bank(unsplit / place) if cleared else make_bank(unsplit / place)
    assert open_data(unsplit, strict=True).items == before


def test_classes_called_like_shelves_are_classes(write: Writer) -> None:
    root = fill(write, "v1", "v2")
    assert open_data(root).summary.classes == ("v1", "v2")
    (root / "v3").mkdir()
    with pytest.raises(DataError, match="Class 'v3' is empty"):
        open_data(root)


def test_a_training_split_is_not_taken_for_checkpoints(write: Writer) -> None:
    root = fill(write, "training/a", "training/b", "testing/a", "testing/b")
    make_run(root)
    (root / "training/lp_ft").mkdir()
    (root / "training/lp_ft/identity.json").write_text("{}")
    with pytest.raises(DataError, match="Class 'lp_ft' is empty"):  # somebody's folder with a split's images in it
        open_data(root)
    (root / "training/lp_ft/identity.json").unlink()
    (root / "training/lp_ft").rmdir()
    assert open_data(root).summary.counts == {"train": (5, 5), "test": (5, 5)}


@pytest.mark.parametrize("name", ["result.json", "evidence.json", "ranking.json"])
def test_somebody_elses_result_is_not_ours(unsplit: Path, name: str) -> None:
    (unsplit / "bird").mkdir()
    (unsplit / "bird" / name).write_text('{"accuracy": 1}')
    with pytest.raises(DataError, match="Class 'bird' is empty"):
        open_data(unsplit)


# Classes that are called like splits, and splits below classes


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("Test", "control"),
        ("invalid", "valid"),
        ("dev", "prod", "test", "valid"),
        ("a", "test"),
    ],
    ids="-".join,
)
def test_classes_may_be_called_like_splits(write: Writer, classes: tuple[str, ...]) -> None:
    data = open_data(fill(write, *classes))
    assert set(data.summary.classes) == set(classes)
    assert data.summary.counts == {"train": (4,) * len(classes), "test": (1,) * len(classes)}
    assert found(data, "class_named_like_split").severity == "warning"


def test_a_class_called_train_within_splits(write: Writer) -> None:
    data = open_data(fill(write, "train/bus", "train/train", "test/bus", "test/train"))
    assert data.summary.classes == ("bus", "train")
    assert data.summary.counts == {"train": (5, 5), "test": (5, 5)}


def test_an_empty_folder_called_train_is_an_empty_class(write: Writer) -> None:
    root = fill(write, "bus", "car")
    (root / "train").mkdir()
    with pytest.raises(DataError, match="Class 'train' is empty: it has no image"):
        open_data(root)


@pytest.mark.parametrize(
    ("places", "counts"),
    [
        (("train", "test"), {"train": (5, 5), "test": (5, 5)}),
        (("Training", "VALID", "testing"), {"train": (5, 5), "val": (5, 5), "test": (5, 5)}),
        (("train", "dev"), {"train": (5, 5), "val": (5, 5)}),
        (("train",), {"train": (5, 5)}),
    ],
)
def test_splits_may_lie_below_the_classes(
    write: Writer, places: tuple[str, ...], counts: dict[str, tuple[int, ...]]
) -> None:
    root = fill(write, *(f"{name}/{place}" for name in ("cat", "dog") for place in places))
    data = open_data(root)
    assert data.summary.classes == ("cat", "dog")
    assert data.summary.counts == counts
    assert "The splits are inside the class folders" in data.summary.split_rule
    assert "folder_in_class" not in kinds(data)


@pytest.mark.parametrize(
    "folders",
    [
        ("cat/train", "cat/test", "dog"),
        ("cat/train", "cat/test", "cat", "dog/train", "dog/test"),
        ("cat/train", "cat/extra", "dog/train", "dog/test"),
        ("cat/test", "cat", "dog"),
        ("train/a", "train/b", "bus", "car"),
        ("test/bus", "test/car", "bus", "car"),
    ],
    ids=" ".join,
)
def test_what_can_be_read_in_two_ways_is_an_error_with_both(write: Writer, folders: tuple[str, ...]) -> None:
    with pytest.raises(
        DataError, match=r"can be read in two ways: .* or .*For the first, .*for the second, .*data=man"
    ):
        open_data(fill(write, *folders))


@pytest.mark.parametrize(
    ("train", "test"),
    [("training_set", "test_set"), ("train2017", "val2017"), ("data-train", "data-valid"), ("Train set", "Test set")],
)
def test_folders_called_like_splits_with_more_are_no_classes(write: Writer, train: str, test: str) -> None:
    root = fill(write, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    with pytest.raises(DataError, match=r"are splits, with the classes inside \(cat, dog\); or they are") as at:
        open_data(root)
    (told,) = re.findall(r"For the first, rename (.*?); for the second", str(at.value))
    renamed = dict(re.findall(r"(?:^|, )([^,/]+)/ to (\w+)/", told))
    assert set(renamed) == {train, test}
    for old, new in renamed.items():
        (root / old).rename(root / new)
    assert open_data(root).summary.classes == ("cat", "dog")


def test_classes_that_contain_a_word_of_splits_are_classes(write: Writer) -> None:
    assert open_data(fill(write, "train_car", "test_tube", "trainer")).summary.num_classes == 3


def test_folders_of_the_same_names_below_are_told(write: Writer) -> None:
    data = open_data(fill(write, "fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"))
    message = found(data, "folder_in_class").message
    assert "All class folders contain folders of the same names (cat, dog)" in message


def test_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("a/1.npy", "b/1.npy", "b/2.dcm"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"but no images: the files in them are 2 .npy, 1 .dcm"):
        open_data(tmp_path / "d")


def test_a_class_of_damaged_images_says_why(write: Writer) -> None:
    root = fill(write, "a", "b")
    (root / "c").mkdir()
    (root / "c/0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"Class 'c' is empty: no usable image, 1 set aside \(not an image that can be"):
        open_data(root)


@pytest.mark.parametrize("folders", [("train",), ("train", "test"), ("training", "val", "dev/a")], ids=" ".join)
def test_splits_without_class_folders(write: Writer, folders: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"images are directly in .*train.*without class folders"):
        open_data(fill(write, *folders))


def test_splits_below_classes_without_train(write: Writer) -> None:
    with pytest.raises(DataError, match=r"contains test, val inside its classes, but no train"):
        open_data(fill(write, "cat/test", "cat/val", "dog/test", "dog/val"))


def test_images_beside_official_splits_are_told(write: Writer) -> None:
    root = fill(write, "train/a", "train/b", "test/a", "test/b", "unlabeled")
    (root / "annotations").mkdir()
    data = open_data(root)
    warning, note = [finding for finding in data.summary.findings if finding.kind == "ignored_folder"]
    assert (warning.severity, warning.items) == ("warning", ("unlabeled",))
    assert (note.severity, note.items) == ("info", ("annotations",))


def test_two_folders_of_one_split_are_told(write: Writer) -> None:
    data = open_data(fill(write, "train/a", "train/b", "val/a", "val/b", "valid/a"))
    assert data.summary.counts == {"train": (5, 5), "val": (10, 5)}
    assert found(data, "split_twice").items == ("val", "valid")


def test_folders_below_a_class_count_for_it_and_that_is_told(write: Writer) -> None:
    data = open_data(fill(write, "animals/cat", "animals/dog", "cars"))
    assert data.summary.classes == ("animals", "cars")
    assert found(data, "folder_in_class").severity == "warning"
    assert found(data, "folder_in_class").items == ("animals/cat", "animals/dog")


def test_composed_and_decomposed_names_are_one_class(write: Writer) -> None:
    data = open_data(fill(write, "train/caf\u00e9", "train/\u00fcber", "test/cafe\u0301", "test/u\u0308ber"))
    assert data.summary.counts == {"train": (5, 5), "test": (5, 5)}


# A level more than needed


@pytest.mark.parametrize(
    ("above", "folders"),
    [
        ("photos", ("a", "b")),
        ("photos/deep", ("train/a", "train/b", "test/a", "test/b")),
        ("dev", ("train/a", "train/b")),
    ],
)
def test_a_level_of_a_zip_file_is_looked_through(write: Writer, above: str, folders: tuple[str, ...]) -> None:
    root = fill(write, *(f"{above}/{folder}" for folder in folders))
    (root / "__MACOSX/photos").mkdir(parents=True)
    (root / "__MACOSX/photos/._1.png").write_bytes(b"x")
    (root / "LICENSE").write_text("x")
    data = open_data(root, strict=True)
    assert data.summary.classes == ("a", "b")
    assert f"The images are in {above}/." in data.summary.split_rule


def test_a_repeated_split_folder_is_looked_through(write: Writer) -> None:
    root = fill(write, "train/train/a", "train/train/b", "test/test")
    data = open_data(root, test=0)
    assert data.summary.counts == {"train": (5, 5)}
    assert found(data, "unlabelled_split").items == ("test/test",)


def test_one_class_is_not_looked_through(write: Writer) -> None:
    with pytest.raises(DataError, match="only one class, 'cat'"):
        open_data(fill(write, "cat"))


# Which files are images


def write_kinds(folder: Path) -> dict[str, str]:
    """Files of many names, with what is in them; the pictures differ."""
    kinds = {
        "photo.tga": "TGA",
        "photo.ppm": "PPM",
        "photo.qoi": "QOI",
        "photo.pcx": "PCX",
        "photo.sgi": "SGI",
        "plain": "PNG",
        "photo.data": "JPEG",
        "photo.png_large": "PNG",
        "photo.1": "BMP",
        "IMG.PNG": "PNG",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, form) in enumerate(kinds.items()):
        noise(1000 + index + sum(folder.name.encode())).save(folder / name, format=form)
    return kinds


def test_images_count_whatever_their_files_are_called(tmp_path: Path) -> None:
    root = tmp_path / "images"
    written = write_kinds(root / "cat")
    write_kinds(root / "dog")
    data = open_data(root, strict=True, test=0)
    assert {Path(item).name for item in data.items} == set(written)
    assert data.summary.counts == {"train": (len(written), len(written))}
    assert all(data.image(index).size == (24, 24) for index in range(len(data)))
    assert [Path(name).name for name, _ in predictable_images(root / "cat")] == sorted(written, key=str.casefold)


def test_other_files_in_class_folders_are_told_and_strict_stops_at_them(unsplit: Path) -> None:
    (unsplit / "cat/notes.txt").write_text("x")
    (unsplit / "cat/boxes.json").write_text("{}")
    (unsplit / "dog/README").write_text("P1 is how some pictures begin")
    tiff = unsplit / "dog/raw.nef"  # camera raw begins like a TIFF file, whose first picture is a thumbnail
    noise(9).save(tiff, format="TIFF")
    data = open_data(unsplit)
    told = found(data, "not_an_image")
    assert told.severity == "set_aside"
    assert told.items == ("cat/boxes.json", "cat/notes.txt", "dog/raw.nef", "dog/README")
    assert "4 (1 .json, 1 .txt, 1 .nef, 1 no extension;" in told.message
    with pytest.raises(DataError, match="Files in class folders that are not images are left out: 4 "):
        open_data(unsplit, strict=True)


def test_images_beside_class_folders_are_told(write: Writer, unsplit: Path) -> None:
    write("loose.png")
    assert found(open_data(unsplit), "no_class").items == ("loose.png",)
    with pytest.raises(DataError, match=r"have no class and are left out: 1 \(loose.png\)"):
        open_data(unsplit, strict=True)


def test_a_damaged_image_by_name_is_told_as_such(unsplit: Path) -> None:
    (unsplit / "cat/bad.tga").write_bytes(b"x")
    assert found(open_data(unsplit), "unreadable").items == ("cat/bad.tga",)


def test_heic_says_what_to_install(unsplit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (unsplit / "cat/phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert "pip install pillow-heif" in found(open_data(unsplit), "unreadable").message
    with pytest.raises(DataError, match="pip install pillow-heif"):
        list(predictable_images(unsplit / "cat/phone.heic"))


# Order


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("10", "2", "1"), ("1", "2", "10")),
        (("img10", "img9", "Img1"), ("Img1", "img9", "img10")),
        (("0.5", "0.25", "-1"), ("-1", "0.25", "0.5")),
        (("b", "A", "c"), ("A", "b", "c")),
    ],
)
def test_classes_come_in_natural_order(write: Writer, names: tuple[str, ...], order: tuple[str, ...]) -> None:
    assert open_data(fill(write, *names)).summary.classes == order


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_to_nowhere_is_told_with_its_remedy(unsplit: Path) -> None:
    (unsplit / "cat/gone.png").symlink_to(unsplit / "nowhere.png")
    told = found(open_data(unsplit), "missing")
    assert told.items == ("cat/gone.png",)
    assert "bring the files back, or remove the links" in told.message
    assert "manifest" not in told.message


def test_damaged_pictures_do_not_hide_a_class_from_the_layout(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (9, 9), (index, len(name), len(split))).save(
                    tmp_path / split / name / f"{index}", format="PNG"
                )
    (tmp_path / "train/a/0").write_bytes(b"")
    told = found(open_data(tmp_path), "not_an_image")  # without an extension nothing says that it was an image
    assert told.items == ("train/a/0",)
