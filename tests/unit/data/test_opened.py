"""Folders and the audit: what is found, what is set aside, what stops the run."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.pictures import Writer, noise
from transferkit.core.errors import DataError, OptionError
from transferkit.data import Data, open_data
from transferkit.data.inspection import in_threads
from transferkit.records import Finding, Preprocessing


def finding(data: Data, kind: str) -> Finding:
    (found,) = [finding for finding in data.summary.findings if finding.kind == kind]
    return found


def kinds(data: Data) -> set[str]:
    return {finding.kind for finding in data.summary.findings}


def test_official_splits_are_kept(official: Path) -> None:
    data = open_data(official, test=0.5)
    assert data.summary.classes == ("cat", "dog")
    assert data.summary.counts == {"train": (6, 6), "test": (2, 2)}
    assert data.summary.split_rule == "The data's own splits, unchanged: train, test."
    assert data.summary.side_quantiles == (24, 24, 24)
    assert data.items[:2] == ("train/cat/0.png", "train/cat/1.png")
    assert data.indices("test").tolist() == [12, 13, 14, 15]
    assert data.indices("val").tolist() == []
    assert data.labels.tolist() == [0] * 6 + [1] * 6 + [0, 0, 1, 1]
    assert data.content_ids.dtype == np.dtype("S32")
    assert len(set(data.content_ids.tolist())) == len(data) == 16


def test_val_is_carved_out_of_official_train_on_request(official: Path) -> None:
    data = open_data(official, val=0.34)
    assert data.summary.counts == {"train": (4, 4), "val": (2, 2), "test": (2, 2)}
    assert all(data.items[index].startswith("train/") for index in data.indices("val"))
    assert "Of train, 34% of each class is held back as val with seed 0" in data.summary.split_rule


def test_an_unsplit_folder_is_split_by_class(unsplit: Path) -> None:
    data = open_data(unsplit, val=0.1, test=0.2, seed=7)
    assert data.summary.counts == {"train": (7, 14), "val": (1, 2), "test": (2, 4)}
    assert "Split by transferkit" in data.summary.split_rule
    assert "seed 7: 10% val, 20% test" in data.summary.split_rule


def test_the_split_depends_on_the_seed_and_not_on_the_disk(unsplit: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    for path in sorted(unsplit.rglob("*.png"), reverse=True):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.parent.name / path.name)
    first, second, other = open_data(unsplit), open_data(moved), open_data(unsplit, seed=1)
    assert first.items == second.items
    assert first.splits.tolist() == second.splits.tolist() != other.splits.tolist()
    assert first.summary.content_id == second.summary.content_id != other.summary.content_id


def test_content_id_follows_the_pixels_and_the_labels(official: Path) -> None:
    before = open_data(official).summary.content_id
    noise(999).save(official / "train/cat/0.png")
    changed = open_data(official).summary.content_id
    (official / "train/cat/1.png").rename(official / "train/dog/x.png")
    assert len({before, changed, open_data(official).summary.content_id}) == 3


def test_names_sort_naturally_in_any_alphabet(write: Writer, tmp_path: Path) -> None:
    for name in ("img10", "img2", "写真", "Ωmega", "a b'c"):
        write(f"train/ネコ/{name}.png")
        write(f"train/собака/{name}.png")
    data = open_data(tmp_path / "images")
    assert data.summary.classes == ("собака", "ネコ")
    of_dogs = [Path(item).stem for item, label in zip(data.items, data.labels, strict=True) if label == 0]
    assert of_dogs.index("img2") < of_dogs.index("img10")
    assert data.image(0).size == (24, 24)


def test_links_are_followed_and_a_loop_ends(official: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    noise(5).save(elsewhere)
    (official / "train/cat/link.png").symlink_to(elsewhere)
    (official / "train/cat/loop").symlink_to(official / "train/cat", target_is_directory=True)
    assert open_data(official).summary.counts["train"] == (7, 6)


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_leads_up_makes_no_class_and_no_images(official: Path, target: str) -> None:
    before = open_data(official).summary
    for place in ("train/cat", "train", "."):
        (official / place / "up").symlink_to(target, target_is_directory=True)
    after = open_data(official).summary
    assert (after.classes, after.counts, after.findings) == (before.classes, before.counts, before.findings)


def test_system_files_are_skipped_and_others_are_counted(official: Path) -> None:
    (official / "train/cat/.DS_Store").write_bytes(b"x")
    (official / "train/cat/Thumbs.db").write_bytes(b"x")
    (official / "train/cat/notes.txt").write_text("x")
    (official / "train/readme.md").write_text("x")
    (official / "annotations").mkdir()
    data = open_data(official)
    assert finding(data, "not_an_image").items == ("train/cat/notes.txt",)
    assert finding(data, "stray_file").items == ("train/readme.md",)
    assert finding(data, "ignored_folder").items == ("annotations",)
    assert data.summary.train_images == 12


def spoil(official: Path) -> None:
    cats = official / "train/cat"
    (cats / "0.png").write_bytes(b"")
    (cats / "1.png").write_bytes(b"no image")
    (cats / "2.png").write_bytes((cats / "2.png").read_bytes()[:-40])
    Image.new("RGB", (100, 100)).save(cats / "3.png")


def test_unusable_images_are_set_aside(official: Path) -> None:
    spoil(official)
    data = open_data(official, max_pixels=9_999)
    for index, kind in enumerate(("zero_byte", "unreadable", "truncated", "oversized")):
        assert finding(data, kind).severity == "set_aside"
        assert finding(data, kind).items == (f"train/cat/{index}.png",)
    assert data.summary.counts["train"] == (2, 6)
    assert data.items[0] == "train/cat/4.png"


def test_strict_lists_all_unusable_images_at_once(official: Path) -> None:
    spoil(official)
    with pytest.raises(DataError) as caught:
        open_data(official, max_pixels=9_999, strict=True)
    message = str(caught.value)
    assert message.count("\n- ") == 4
    for index in range(4):
        assert f"train/cat/{index}.png" in message
    assert "Remedy: fetch them again or remove them" in message


def test_training_copies_of_held_back_images_are_set_aside(write: Writer, official: Path) -> None:
    shutil.copy(official / "test/cat/0.png", official / "train/cat/copy.png")
    data = open_data(official)
    assert data.summary.counts == {"train": (6, 6), "test": (2, 2)}
    found = finding(data, "duplicate_across_splits")
    assert found.severity == "set_aside"
    assert found.items == ("train/cat/copy.png",)
    assert found.message.startswith("In val or test too, exactly: 1 train image (train/cat/copy.png). The train copies")


def test_a_validation_copy_of_a_test_image_is_set_aside(write: Writer, official: Path) -> None:
    for index in range(3):
        write(f"val/cat/{index}.png")
        write(f"val/dog/{index}.png")
    shutil.copy(official / "test/dog/1.png", official / "val/dog/copy.png")
    data = open_data(official)
    assert data.summary.counts == {"train": (6, 6), "val": (3, 3), "test": (2, 2)}
    assert finding(data, "duplicate_across_splits").items == ("val/dog/copy.png",)


def test_copies_never_straddle_our_own_splits(unsplit: Path) -> None:
    for index in range(6):
        shutil.copy(unsplit / f"cat/{index}.png", unsplit / f"cat/copy{index}.png")
    for seed in range(5):
        data = open_data(unsplit, val=0.2, test=0.3, seed=seed)
        homes = {content: set(data.splits[data.content_ids == content].tolist()) for content in data.content_ids}
        assert all(len(splits) == 1 for splits in homes.values())


def test_copies_within_train_and_under_two_labels_are_told(official: Path) -> None:
    shutil.copy(official / "train/cat/0.png", official / "train/cat/copy.png")
    shutil.copy(official / "train/cat/1.png", official / "train/dog/wrong.png")
    data = open_data(official)
    assert data.summary.counts["train"] == (7, 7)
    assert finding(data, "duplicate").severity == "warning"
    assert "train/cat/0.png = train/cat/copy.png" in finding(data, "duplicate").items
    assert finding(data, "label_conflict").items == ("train/cat/1.png (cat) = train/dog/wrong.png (dog)",)


def test_near_copies_across_splits_are_told_with_their_pair(official: Path) -> None:
    Image.open(official / "test/cat/0.png").resize((48, 48)).save(official / "train/cat/larger.jpg", quality=90)
    found = finding(open_data(official), "near_duplicate")
    assert found.severity == "warning"
    assert found.items == ("train/cat/larger.jpg ~ test/cat/0.png",)


def test_different_pictures_raise_no_alarm(official: Path) -> None:
    assert not kinds(open_data(official)) & {"near_duplicate", "duplicate", "duplicate_across_splits"}


def test_conversions_are_counted(official: Path) -> None:
    Image.new("L", (9, 9), 3).save(official / "train/cat/grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(official / "train/cat/alpha.png")
    exif = Image.Exif()
    exif[274] = 6
    noise(77).save(official / "train/cat/turned.jpg", exif=exif)
    message = finding(open_data(official), "converted").message
    assert "1 greyscale, 1 rotated by EXIF, 1 transparent" in message


def test_all_class_problems_come_in_one_error(write: Writer, official: Path) -> None:
    (official / "train/bird").mkdir()
    write("test/fish/1.png")
    (official / "train/frog").mkdir()
    (official / "train/frog/1.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_data(official)
    message = str(caught.value)
    assert "Class 'bird' is empty: it has no image. Add images, or remove the class." in message
    assert "Class 'frog' is empty: no usable image, 1 set aside (the file is empty (0 bytes))." in message
    assert "Class 'fish' has 1 held-back image but none in train." in message


def test_a_class_only_in_test_is_an_error(write: Writer, official: Path) -> None:
    write("test/fish/1.png")
    with pytest.raises(DataError, match=r"Class 'fish' has 1 held-back image but none in train\. Add training"):
        open_data(official)


def test_one_image_cannot_be_split(write: Writer, unsplit: Path) -> None:
    write("bird/1.png")
    with pytest.raises(DataError, match="Class 'bird' has 1 image; 2 are needed to hold one back for testing"):
        open_data(unsplit)
    assert open_data(unsplit, test=0).summary.counts == {"train": (1, 10, 20)}


def test_small_untested_and_unequal_classes_are_warned_of(write: Writer, official: Path) -> None:
    write("train/bird/1.png")
    for index in range(6, 11):
        write(f"train/cat/{index}.png")
    data = open_data(official)
    assert finding(data, "small_class").items == ("bird",)
    assert finding(data, "untested_class").items == ("bird",)
    assert "'cat' has 11 training images and 'bird' has 1, 11 times fewer" in finding(data, "imbalance").message


def test_ten_times_is_not_yet_imbalance(write: Writer, official: Path) -> None:
    write("train/bird/1.png")
    for index in range(6, 10):
        write(f"train/cat/{index}.png")
    assert "imbalance" not in kinds(open_data(official))


def test_one_class_is_not_enough(write: Writer, tmp_path: Path) -> None:
    write("cat/1.png")
    write("cat/2.png")
    with pytest.raises(DataError, match="only one class, 'cat'; at least 2 are needed"):
        open_data(tmp_path / "images")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ((), r"There is no folder .*Expected ROOT/\{train,val,test\}/<class>/\* or ROOT/<class>/\*"),
        (("",), "contains no class folders"),
        (("cat", "dog"), "contains class folders but no image"),
        (("test/cat", "val/cat"), "contains test/, val/ but no train/"),
    ],
    ids=["missing", "empty", "no-images", "no-train"],
)
def test_folders_that_are_no_data(tmp_path: Path, make: tuple[str, ...], message: str) -> None:
    for name in make:
        (tmp_path / "images" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "images")


def test_images_without_class_folders_get_a_hint(write: Writer, tmp_path: Path) -> None:
    write("1.png")
    with pytest.raises(DataError, match="1 images are directly in it: move them into one folder per class"):
        open_data(tmp_path / "images")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 1.0}, "test is a share"),
        ({"root": "x"}, "root and columns are for manifests only"),
        ({"preprocessed": True}, "files contain pixels"),
    ],
)
def test_options_that_cannot_work(official: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        open_data(official, **options)


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"\x00")
    with pytest.raises(DataError, match=r"is a file but not a manifest; expected \.csv"):
        open_data(tmp_path / "data.zip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.xlsx",
            b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml",
            "is an Office document. .* save the sheet as CSV",
        ),
        ("m.csv.gz", b"\x1f\x8b\x08", "is a gzip file. Unpack it with gunzip"),
        ("m.csv", b"\x1f\x8b\x08", "is a gzip file, not a text table"),
        ("images.zip", b"PK\x03\x04" + bytes(60), "is a zip archive. Unpack it"),
        ("m.jsonl", b"{}", r"contains JSON; .*pandas.read_json\(FILE\)"),
        ("m.txt", b"path,label\n", "is a text file, .* rename it to .csv"),
        ("a.png", b"\x89PNG", "is one image; expected a folder of them"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / name)


def test_images_that_are_pointers_or_pages_are_called_that(tmp_path: Path, write: Writer) -> None:
    for index in range(6):
        write(f"{'ab'[index % 2]}/{index}.png")
    (tmp_path / "images/a/lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    findings = open_data(tmp_path / "images", test=0).summary.findings
    (finding,) = [found for found in findings if found.kind == "unreadable"]
    assert "the first is a Git LFS pointer" in finding.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "The path of the data is empty"),
        ("  ", "The path of the data is empty"),
        ("https://example.org/d.zip", "is a URL. Download the images"),
    ],
)
def test_texts_that_are_no_path(data: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        open_data(data)


def test_paths_in_a_mapping_say_what_to_do() -> None:
    with pytest.raises(DataError, match=r"got str. For splits in folders, pass the parent folder"):
        open_data({"train": "a/train", "test": "a/test"})


@pytest.mark.parametrize("share", ["0.2", [0.2], "none"])
def test_a_share_that_is_no_number(unsplit: Path, share: object) -> None:
    with pytest.raises(OptionError, match=r"test is a share of the images and must be in \[0, 1\), got"):
        open_data(unsplit, test=share)  # type: ignore[arg-type]


def test_something_else_altogether() -> None:
    with pytest.raises(DataError, match=r"Expected a folder, a manifest, .* got int"):
        open_data(3)


def test_an_unknown_builtin_names_the_known_one() -> None:
    with pytest.raises(DataError, match=r"Unknown built-in data 'builtin/digit'. Closest known: builtin/digits"):
        open_data("builtin/digit")


def test_pixels_and_thumbnail_show_the_image(official: Path) -> None:
    Image.new("RGB", (40, 20), (250, 0, 0)).save(official / "train/cat/0.png")
    data = open_data(official)
    wants = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")  # type: ignore[arg-type]
    pixels = data.pixels(0, wants)
    assert (pixels.shape, pixels.dtype, data.normalised) == ((3, 8, 8), np.uint8, False)
    assert pixels[:, 4, 4].tolist() == [250, 0, 0]
    picture = data.thumbnail(0, side=30)
    shown = Image.open(io.BytesIO(picture.jpeg))
    assert (shown.format, shown.size, picture.item) == ("JPEG", (30, 15), "train/cat/0.png")


def test_an_image_that_vanished_after_the_audit_is_named(official: Path) -> None:
    data = open_data(official)
    (official / "train/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png: there is no such file"):
        data.image(0)


def test_threads_keep_the_order_and_stop_on_an_error() -> None:
    assert list(in_threads(lambda value: value * 2, range(50))) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda value: 1 // value, [1, 0, 1]))
