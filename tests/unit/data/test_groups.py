"""Which images belong together: by the person's word, by equal content, by nearly equal content."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.pictures import noise
from transferkit.data import open_data


def smooth(seed: int, side: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=float)


def shaken(pixels: np.ndarray, seed: int) -> Image.Image:
    drawn = pixels + np.random.default_rng(seed).normal(0, 3, pixels.shape)
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


def kinds(data) -> set[str]:
    return {finding.kind for finding in data.summary.findings}


@pytest.fixture
def frames(tmp_path):
    """12 scenes with 5 frames each, six of a class."""
    for scene in range(12):
        for frame in range(5):
            path = tmp_path / "frames" / ("indoors", "outdoors")[scene % 2] / f"{scene}_{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shaken(smooth(scene), 100 * scene + frame).save(path)
    return tmp_path / "frames"


def test_frames_of_one_scene_are_one_group_without_anybody_saying_so(frames):
    data = open_data(frames, test=0.3, progress=False)
    scene = np.array([int(item.split("/")[-1].split("_")[0]) for item in data.items])
    assert len(np.unique(data.groups)) == 12
    for number in range(12):
        assert len(set(data.groups[scene == number])) == 1
        assert len(set(data.splits[scene == number])) == 1  # no scene on both sides of the split
    assert "near_duplicate_group" in kinds(data)
    assert "near_duplicate" not in kinds(data)
    assert sum(data.summary.train_groups) == len(set(scene[data.splits == "train"]))


def test_a_class_whose_images_all_look_alike_is_not_one_copy(tmp_path):
    for label, seed in (("still", 1), ("life", 2)):
        for frame in range(10):
            path = tmp_path / label / f"{frame}.png"
            path.parent.mkdir(exist_ok=True)
            (shaken(smooth(1), frame) if label == "still" else noise(50 + frame)).save(path)
            assert seed
    data = open_data(tmp_path, progress=False)
    assert len(np.unique(data.groups)) == 20
    assert data.summary.size("test") == 4
    (found,) = [finding for finding in data.summary.findings if finding.kind == "look_alikes"]
    assert found.severity == "warning"
    assert "10 images" in found.message


def test_copies_count_once_and_the_finding_says_so(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(8):
            for copy in range(3):
                noise(100 * ord(label) + number).save(tmp_path / label / f"{number}_{copy}.png")
    data = open_data(tmp_path, test=0.25, progress=False)
    folds = data.folds
    assert folds.shares.sum() == pytest.approx(16)
    assert data.summary.train_groups == (6, 6)
    (found,) = [finding for finding in data.summary.findings if finding.kind == "duplicate"]
    assert "count as one image in held-back accuracy" in found.message


def test_a_class_of_one_group_is_named_as_unmeasured(tmp_path):
    rows = []
    for number in range(20):
        noise(number).save(tmp_path / f"{number}.png")
        rare = number < 4
        rows.append((f"{number}.png", "rare" if rare else "usual", "one" if rare else str(number), "train"))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "split"), *rows])
    data = open_data(tmp_path / "list.csv", progress=False)
    assert data.summary.train_groups == (1, 16)
    assert data.summary.fewest_groups == 1
    (found,) = [finding for finding in data.summary.findings if finding.kind == "unmeasured_class"]
    assert found.items == ("rare",)
