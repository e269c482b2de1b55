"""Whatever a person hands over for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from tests.unit.data.pictures import Listed, Writer, noise
from transferkit.core.errors import DataError
from transferkit.data import predictable_images

ONE = np.array(noise(1))
CHW = torch.from_numpy(ONE).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("images", "count"),
    [
        (noise(1), 1),
        (ONE, 1),
        (CHW, 1),
        (CHW.permute(1, 2, 0), 1),
        (CHW / 255, 1),
        (np.stack([ONE, ONE]), 2),
        (torch.stack([CHW, CHW, CHW]) / 255, 3),
        ([noise(1), ONE, CHW], 3),
        ((image for image in [ONE, np.stack([ONE, ONE])]), 3),
    ],
    ids=["pil", "array", "chw", "hwc", "float", "batch", "float-batch", "list", "generator"],
)
def test_every_form_shows_the_same_picture(images: Any, count: int) -> None:
    found = list(predictable_images(images))
    assert [name for name, _ in found] == [f"image {index}" for index in range(count)]
    assert all(np.array_equal(np.asarray(image), ONE) for _, image in found)


def test_grey_pictures_become_rgb() -> None:
    ((_, image),) = predictable_images(torch.full((1, 4, 6), 9, dtype=torch.uint8))
    assert (image.size, image.getpixel((0, 0))) == ((6, 4), (9, 9, 9))
    ((_, image),) = predictable_images(np.full((4, 6), 9, dtype=np.uint8))
    assert (image.size, image.getpixel((0, 0))) == ((6, 4), (9, 9, 9))


def test_paths_and_folders_keep_their_names(write: Writer, tmp_path: Path) -> None:
    paths = [write("b/10.png"), write("b/2.png"), write("a.png")]
    (tmp_path / "images/b/notes.txt").write_text("x")
    expected = [str(paths[2]), str(paths[1]), str(paths[0])]
    assert [name for name, _ in predictable_images(str(tmp_path / "images"))] == expected
    assert [name for name, _ in predictable_images(paths)] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "Expected a path, a folder, .* got int"),
        (b"abc", "got bytes"),
        ([], "the list is empty"),
        ({"a": ONE}, "got dict"),
        (ONE.astype(np.float32), r"float values in \[2, 255\], .* divide by 255, or pass them as uint8"),
        (ONE.astype(complex), "got complex128 values"),
        (CHW.float(), r"float values in \[0, 255\], expected \[0, 1\]|must not be normalised"),
        (np.zeros((3, 3, 3, 3, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \(0, 4, 3\)"),
        ("/nowhere/gone.png", "there is no such file"),
    ],
)
def test_what_is_no_picture_is_refused(images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(predictable_images(images))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no image files"):
        list(predictable_images(tmp_path))


class Streamed(IterableDataset):
    """Pairs, one after the other."""

    def __iter__(self) -> Any:
        yield from [(CHW, 0), (CHW, 1)]


PAIRS = TensorDataset(torch.stack([CHW, CHW, CHW]), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("images", "count"),
    [
        (PAIRS, 3),
        (Subset(PAIRS, [0, 2]), 2),
        (DataLoader(PAIRS, batch_size=2), 3),
        (Streamed(), 2),
        (Listed((noise(1), "cat"), (ONE, None), [CHW, torch.tensor(1)], CHW / 255), 4),
        (Listed({"image": noise(1), "label": 3}, {"img": ONE}), 2),
        ([(noise(1), 0), (ONE, np.int64(3))], 2),
        (TensorDataset(torch.stack([CHW, CHW])), 2),
    ],
    ids=["pairs", "subset", "loader", "stream", "mixed", "dicts", "list of pairs", "images alone"],
)
def test_of_datasets_the_images_are_taken_and_the_labels_left(images: Any, count: int) -> None:
    found = list(predictable_images(images))
    assert [name for name, _ in found] == [f"image {index}" for index in range(count)]
    assert all(np.array_equal(np.asarray(image), ONE) for _, image in found)


def test_what_a_dataset_cannot_read_is_passed_over_when_asked() -> None:
    images = Listed(ONE, OSError("truncated"), (3, 0), CHW)
    with pytest.raises(DataError, match="Item 1 of the dataset cannot be read: truncated"):
        list(predictable_images(images))
    found = list(predictable_images(images, on_error="skip"))
    assert [isinstance(image, DataError) for _, image in found] == [False, True, True, False]


def test_patterns_and_names_that_look_like_them(write: Writer, tmp_path: Path) -> None:
    for name in ("set[1]/a.png", "set[1]/b10.png", "set[1]/b2.png", "set[1]/deep/c.jpg", "x*.png"):
        write(name)
    base = tmp_path / "images"
    (base / "set[1]" / "notes.txt").write_text("x")
    (base / "set[1]" / ".hidden.png").write_text("x")

    def names(pattern: str, **options: Any) -> list[str]:
        return [Path(name).name for name, _ in predictable_images(str(base / pattern), **options)]

    assert names("set[1]/*.png") == ["a.png", "b2.png", "b10.png"]
    assert names("set[1]/*") == ["a.png", "b2.png", "b10.png", "c.jpg"]
    assert names("**/*.jpg") == names("set[1]/dee?") == ["c.jpg"]
    assert sorted(names("**")) == ["a.png", "b10.png", "b2.png", "c.jpg", "x*.png"]
    assert names("x*.png") == ["x*.png"]
    assert names("*/*.txt", on_error="skip") == ["notes.txt"]
    with pytest.raises(DataError, match="No image matches the pattern"):
        names("*.webp")


def test_a_file_of_two_bytes_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"xx")
    with pytest.raises(DataError, match="not an image that can be read"):
        list(predictable_images(tmp_path))
