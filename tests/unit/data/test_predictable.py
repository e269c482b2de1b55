"""Whatever a person hands over for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.pictures import Writer, noise
from transferkit.data import predictable_images
from transferkit.errors import DataError

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
        (ONE.astype(np.float32), r"float values in \[2, 255\], .* divide by 255, or give them as uint8"),
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
    with pytest.raises(DataError, match="holds no image files"):
        list(predictable_images(tmp_path))
