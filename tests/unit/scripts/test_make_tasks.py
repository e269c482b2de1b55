"""The regret benchmark's tasks: what the script promises, on tiny sources of this test's own."""

from __future__ import annotations

import doctest
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import make_tasks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from regret_tasks import corrupted, drawn, pictures, text
from regret_tasks.task import CANVAS, Places, Sample, Task, generator
from scipy import ndimage


def noise(seed: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def toy_task(images: Callable[[np.random.Generator], Iterator[Sample]], name: str = "toy") -> Task:
    return Task(
        name=name,
        about="A toy.",
        kind="synthetic",
        source="this test",
        licence="none",
        samples=lambda _, rng: images(rng),
    )


def four_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for number, split in enumerate(("train", "train", "test", "test")):
        image = noise(int(rng.integers(1000)) * 10 + number)
        yield Sample(split=split, label="ab"[number % 2], name=f"{number}", image=image)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def write_stamps(root: Path) -> None:
    """Two folders of pictures with an alpha channel; each thing comes in variants, and some of them mirrored."""
    for folder in ("animals", "tools"):
        (root / folder).mkdir(parents=True)
        for number, thing in enumerate(["cat", "dog", "hen", "owl", "rat", "yak", "emu", "fox"]):
            for variant, suffix in enumerate(("", "2", "-baby", "_mirror")):
                image = noise(100 * (folder == "tools") + 10 * number + variant).convert("RGBA")
                image.save(root / folder / f"{thing}{suffix}.png")


def test_the_examples_in_the_docstrings_hold() -> None:
    assert all(doctest.testmod(module).failed == 0 for module in (pictures, text, drawn, corrupted))


def test_a_task_made_twice_is_the_same_to_the_byte(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make_tasks.build(toy_task(four_samples), Places(out=tmp_path / folder))
    assert contents(tmp_path / "one" / "toy") == contents(tmp_path / "two" / "toy")


def test_tasks_of_different_names_draw_different_numbers() -> None:
    assert generator("a").integers(1 << 60) != generator("b").integers(1 << 60)
    assert generator("a").integers(1 << 60) == generator("a").integers(1 << 60)


def test_the_card_counts_the_files(tmp_path: Path) -> None:
    make_tasks.build(toy_task(four_samples), Places(out=tmp_path))
    card = json.loads((tmp_path / "toy" / "task.json").read_text(encoding="utf-8"))
    assert (card["train"], card["test"], card["classes"]) == (2, 2, ["a", "b"])
    assert len(list((tmp_path / "toy").glob("*/*/*.png"))) == 4
    assert card["per_class"] == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}


def test_a_picture_that_comes_again_is_left_out_and_counted(tmp_path: Path) -> None:
    def with_repeat(rng: np.random.Generator) -> Iterator[Sample]:
        for split, name, seed in (("train", "x", 1), ("test", "y", 1), ("test", "z", 2)):
            yield Sample(split=split, label="a", name=name, image=noise(seed))

    card = make_tasks.build(toy_task(with_repeat), Places(out=tmp_path))
    assert (card["train"], card["test"], card["repeats_left_out"]) == (1, 1, 1)


def test_a_finished_task_is_left_alone_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, places = toy_task(four_samples), Places(out=tmp_path)
    make_tasks.make_tasks([task], places, force=False)
    kept = next((tmp_path / "toy").rglob("*.png"))
    kept.unlink()
    make_tasks.make_tasks([task], places, force=False)
    assert not kept.exists()
    assert "toy: exists" in capsys.readouterr().out
    make_tasks.make_tasks([task], places, force=True)
    assert kept.exists()


def test_a_task_that_fails_halfway_leaves_nothing_behind(tmp_path: Path) -> None:
    def breaks(rng: np.random.Generator) -> Iterator[Sample]:
        yield from four_samples(rng)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        make_tasks.build(toy_task(breaks), Places(out=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("fashion", "dataset-fashion-mnist"),
        ("stamps", "tuxpaint-stamps-default"),
        ("photo_tiles", "mate-backgrounds"),
        ("scripts", "fonts-noto-core"),
        ("glyphs", "fonts-liberation"),
        ("hand_signs", "--hand-signs TAR"),
        ("stamps_blur", "'stamps', which is not finished"),
    ],
)
def test_a_missing_source_is_skipped_with_what_to_do(name: str, package: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    places = Places(out=tmp_path / "out", stamps=nowhere, fashion=nowhere, fonts=nowhere, photos=nowhere)
    skipped = make_tasks.make_tasks([make_tasks.list_tasks()[name]], places, force=False)
    assert package in skipped[name]
    assert not (tmp_path / "out" / name).exists()


def test_the_exit_code_says_that_a_task_was_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_tasks.main(["--out", str(tmp_path), "--only", "hand_signs"]) == 1
    assert "hand_signs: skipped; give the archive" in capsys.readouterr().out
    assert make_tasks.main(["--out", str(tmp_path), "--only", "digits"]) == 0
    assert "1 of 1 tasks" in capsys.readouterr().out


def test_an_unknown_name_is_an_error_with_the_closest_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_tasks.main(["--out", "x", "--only", "digit"])
    assert "Closest known: digits" in capsys.readouterr().err


def test_a_copy_brings_its_original_along() -> None:
    chosen = make_tasks.choose(make_tasks.list_tasks(), "stamps_blur")
    assert [task.name for task in chosen] == ["stamps", "stamps_blur"]


def test_digits_are_scikit_learns_split_without_overlap() -> None:
    samples = list(pictures.digits(Places(out=Path()), generator("digits")))
    names = {split: {s.name for s in samples if s.split == split} for split in ("train", "test")}
    assert len(samples) == 1797
    assert not names["train"] & names["test"]
    assert len(names["test"]) >= 500
    assert {s.image.size for s in samples} == {(32, 32)}


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 6), min_size=2), st.integers(0, 99))
def test_a_group_stays_whole_and_neither_split_is_empty(sizes: dict[str, int], seed: int) -> None:
    groups = {name: [f"{name}/{i}" for i in range(size)] for name, size in sizes.items()}
    splits = pictures.split_groups(groups, np.random.default_rng(seed))
    assert set(splits) == {member for members in groups.values() for member in members}
    assert all(len({splits[member] for member in members}) == 1 for members in groups.values())
    assert set(splits.values()) == {"train", "test"}


def test_variants_of_a_stamp_share_a_split_and_mirrored_ones_are_left_out(tmp_path: Path) -> None:
    write_stamps(tmp_path)
    places = Places(out=tmp_path / "out", stamps=tmp_path)
    samples = list(pictures.stamp_task(pictures.top_folder, fewest=4)(places, generator("stamps")))
    assert len(samples) == 2 * 8 * 3
    assert not [s for s in samples if "mirror" in s.name]
    sides: dict[tuple[str, str], set[str]] = {}
    for sample in samples:
        sides.setdefault((sample.label, pictures.base_name(sample.name.split("-", 1)[1])), set()).add(sample.split)
    assert len(sides) == 16
    assert all(len(found) == 1 for found in sides.values())


def test_a_stamp_lies_on_white_without_its_empty_border() -> None:
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (100, 100, 300, 200))
    image.putpixel((100, 100), (0, 0, 0, 0))
    found = pictures.on_white(image, 160)
    assert found.size == (160, 80)
    assert found.getpixel((80, 40)) == (255, 0, 0)


def test_tiles_do_not_overlap() -> None:
    photo = Image.fromarray(np.arange(96 * 128, dtype=np.int32).reshape(96, 128))
    cut = [np.asarray(tile) for *_, tile in pictures.tiles(photo, 32)]
    assert len(cut) == 12
    assert len(np.unique(np.concatenate([tile.ravel() for tile in cut]))) == 96 * 128


def test_hand_signs_keep_the_split_that_the_archive_gives(tmp_path: Path) -> None:
    names = ("sign/train/0/a.jpg", "sign/test/1/b.jpg", "sign_small/train/0/a.jpg", "LICENSE")
    with tarfile.open(tmp_path / "signs.tar", "w") as archive:
        for seed, name in enumerate(names):
            kept = io.BytesIO()
            noise(seed).save(kept, "JPEG")
            entry = tarfile.TarInfo(name)
            entry.size = len(kept.getvalue())
            archive.addfile(entry, io.BytesIO(kept.getvalue()))
    samples = pictures.hand_signs(Places(out=tmp_path, hand_signs=tmp_path / "signs.tar"), generator("x"))
    assert sorted(sample.path for sample in samples) == ["test/1/b.png", "train/0/a.png"]


@pytest.mark.parametrize("count", range(1, 9))
def test_counting_shows_that_many_discs(count: int) -> None:
    for seed in range(5):
        pixels = np.asarray(drawn.draw_discs(count, np.random.default_rng([count, seed])), int)
        paper = pixels[0, 0]
        _, found = ndimage.label(np.abs(pixels - paper).max(axis=-1) > 30)
        assert found == count


@pytest.mark.parametrize("number", range(12))
def test_the_bar_points_where_its_class_says(number: int) -> None:
    pixels = np.asarray(drawn.draw_bar(number, np.random.default_rng(number)), int)
    extreme = (pixels.min(axis=-1) >= 254) | (pixels.max(axis=-1) <= 1)
    parts, _ = ndimage.label(extreme)
    y, x = np.nonzero(parts == np.bincount(parts[extreme]).argmax())
    # The bar's long axis is the first principal axis of its pixels.
    values, vectors = np.linalg.eigh(np.cov(np.stack([x, -y])))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    assert values[1] > 4 * values[0]
    assert abs((angle - 15 * number + 90) % 180 - 90) < 7.5


@pytest.mark.parametrize("number", range(16))
def test_the_disc_lies_in_its_cell(number: int) -> None:
    pixels = np.asarray(drawn.draw_place(number, np.random.default_rng(number)), int)
    extreme = (pixels.min(axis=-1) >= 254) | (pixels.max(axis=-1) <= 1)
    parts, _ = ndimage.label(extreme)
    y, x = np.nonzero(parts == np.bincount(parts[extreme]).argmax())
    assert (int(y.mean() // (CANVAS / 4)), int(x.mean() // (CANVAS / 4))) == divmod(number, 4)


@pytest.mark.parametrize("number", range(len(drawn.TEXTURES)))
def test_a_texture_is_no_plain_colour(number: int) -> None:
    pixels = np.asarray(drawn.draw_texture(number, np.random.default_rng(number)), float)
    assert pixels.std(axis=(0, 1)).max() > 12  # twice its noise


@pytest.mark.parametrize("corrupt", [corrupted.add_noise, corrupted.blur, corrupted.fade, corrupted.grey])
def test_a_corruption_changes_pixels_and_nothing_else(
    corrupt: Callable[[Image.Image, np.random.Generator], Image.Image], tmp_path: Path
) -> None:
    places = Places(out=tmp_path)
    make_tasks.build(toy_task(four_samples, "base"), places)
    samples = list(corrupted.corrupted("base", corrupt)(places, generator("copy")))
    originals = {path.relative_to(tmp_path / "base").as_posix(): path for path in (tmp_path / "base").rglob("*.png")}
    assert {sample.path for sample in samples} == set(originals)
    for sample in samples:
        with Image.open(originals[sample.path]) as original:
            before = original.convert(sample.image.mode)
        assert sample.image.size == before.size
        assert np.abs(np.asarray(sample.image, int) - np.asarray(before, int)).max() > 20


def test_invented_words_differ_and_so_do_the_fonts_of_train_and_test() -> None:
    words = text.invent_words(400, np.random.default_rng(3))
    assert len(set(words)) == 400
    train, test = (
        {name for family in side for name in text.expand(family.files)}
        for side in (text.TRAIN_FAMILIES, text.TEST_FAMILIES)
    )
    assert not train & test


def test_letters_of_a_script_are_what_unicode_calls_them() -> None:
    assert text.letters_of("GREEK SMALL LETTER")[:5].isalpha()
    assert "я" in text.letters_of("CYRILLIC SMALL LETTER")
    assert "ก" in text.letters_of("THAI CHARACTER")
