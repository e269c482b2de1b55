"""Shift between a run's training images and new ones, from files to a cured run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from tests.conftest import PACKAGED, draw_stripes
from transferkit.cli import main
from transferkit.core.errors import DataError, OptionError, RunFolderError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One bank for all tests here: the training images are the same."""
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    for angle, name in enumerate(("rows", "columns", "slant")):
        for at in range(16):
            draw_stripes(folder / "data" / name / f"{at}.png", angle=angle, seed=100 * angle + at)
    tk.adapt(PACKAGED, folder / "data", image_size=32, views=1, geometry="crop", strategy="linear_probe", test=0.0,
             progress=False, cache=cache, out=folder / "run")  # fmt: skip
    return folder / "run"


@pytest.fixture
def others(tmp_path):
    """New images of the same kind, a name that is not ASCII among them."""
    for at in range(24):
        draw_stripes(tmp_path / "new images" / f"bild ü {at}.png", angle=at % 3, seed=1000 + at)
    return tmp_path / "new images"


def two_classes(folder):
    """Other images, in class folders."""
    for name in "ab":
        for at in range(4):
            draw_stripes(folder.parent / "other" / name / f"{at}.png", angle=0, seed=5000 + at + 10 * (name == "b"))
    return folder.parent / "other"


def test_new_images_of_the_same_kind(run, others, cache):
    found = tk.measure_shift(run, others, progress=False, cache=cache, remedy="auto")
    assert found.record.kind == "none"
    assert found.record.remedy is None
    assert found.record.estimate.accuracy == found.record.estimate.held_back
    assert found.result.model is not None
    assert "no shift found" in found.record.sentences[0]


def test_darker_noisy_images_are_told_by_the_stages(run, others, cache, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for path in others.iterdir():
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        Image.fromarray((0.4 * pixels + rng.normal(0, 30, pixels.shape)).clip(0, 255).astype(np.uint8)).save(path)
    (others / "broken.png").write_text("no image")
    out = tmp_path / "shifted"
    main(["shift", f"run={run}", f"images={others}", f"out={out}", "remedy=auto", f"cache={cache}"])
    said = capsys.readouterr()
    assert "the images look different" in said.out
    assert "1 image could not be read" in said.err
    plain = json.loads((out / "shift.json").read_text("utf-8"))
    assert plain["kind"] == "images"
    assert min(stage["adjusted"] for stage in plain["stages"]) <= 0.05
    assert len(plain["remedies"]) == 6
    assert "estimated accuracy" in (out / "shift.html").read_text("utf-8")
    used = [one["name"] for one in plain["remedies"] if one["used"]]
    assert (out / "result.json").is_file() == bool(used)
    with pytest.raises(SystemExit):
        main(["shift", f"run={run}", f"images={others}", f"out={out}"])
    assert "overwrite=true" in capsys.readouterr().err


def test_a_single_image_is_never_a_shift(run, others, cache):
    record = tk.measure_shift(run, next(others.iterdir()), progress=False, cache=cache, remedy="auto").record
    assert (record.kind, record.images, record.remedy) == ("none", 1, None)
    assert "Shift was not tested" in record.sentences[-1]


def test_a_single_class_is_a_matter_of_proportions(run, tmp_path, cache):
    pictures = []
    for at in range(24):
        draw_stripes(tmp_path / "one" / f"{at}.png", angle=0, seed=3000 + at)
        pictures.append(Image.open(tmp_path / "one" / f"{at}.png"))
    record = tk.measure_shift(run, pictures, progress=False, cache=cache, remedy="norm_statistics").record
    assert record.kind == "classes"
    assert record.remedy is None


def test_what_cannot_work_says_why(run, others, cache):
    with pytest.raises(OptionError, match="Unknown remedy 'magic'"):
        tk.measure_shift(run, others, remedy="magic")
    with pytest.raises(OptionError, match="alpha must be in"):
        tk.measure_shift(run, others, alpha=0.9)
    with pytest.raises(DataError):
        tk.measure_shift(run, others.parent / "nowhere", progress=False, cache=cache)
    with pytest.raises(RunFolderError, match="no finished run"):
        tk.measure_shift(others, others)
    with pytest.raises(DataError, match="no longer those that the run was trained on"):
        tk.measure_shift(run, others, data=two_classes(others), progress=False, cache=cache)


def test_the_plan_costs_nothing_and_help_is_there(run, others, cache, tmp_path, capsys):
    main(["shift", f"run={run}", f"images={others}", "dry_run=true"])
    assert "compare" in capsys.readouterr().out
    main(["shift", "--help"])
    assert "norm_statistics" in capsys.readouterr().out
