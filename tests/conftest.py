"""Small real images, and a bank of their own for every test."""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy and torch start their threads: the processes share the cores
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pytest
from PIL import Image

with suppress(ModuleNotFoundError):  # TensorBoard's
    from absl import logging as absl_logging

    # It keeps the standard error of its import, which is pytest's file, and closes it when logging is configured anew.
    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

PACKAGED = "packaged/tf_efficientnet_lite0"


CRASHES = pytest.StashKey[int]()


def pytest_configure(config):
    config.stash[CRASHES] = os.dup(2)  # pytest does not capture yet


def pytest_unconfigure(config):
    os.close(config.stash[CRASHES])


@pytest.fixture(autouse=True)
def crashes_are_told(pytestconfig):
    """Lightning's trainers take from faulthandler the signals on which it prints: later crashes would be silent."""
    faulthandler.disable()
    faulthandler.enable(pytestconfig.stash[CRASHES])
    yield
    faulthandler.disable()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's bank."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(folder))
    return folder


def draw_stripes(path: Path, *, angle: int, seed: int, side: int = 40) -> None:
    """A noisy picture of stripes: angle is what tells the classes apart."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    phase = rows if angle == 0 else columns if angle == 1 else rows + columns
    wave = 127 + 90 * np.sin(phase / 3 + rng.uniform(0, 6))
    pixels = np.clip(wave[..., None] + rng.normal(0, 15, (side, side, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def stripes(tmp_path):
    """ROOT/{train,test}/{across,down,slant}/*.png: 3 classes, 8 training and 4 test images each."""
    root = tmp_path / "stripes"
    for angle, name in enumerate(["across", "down", "slant"]):
        for number in range(12):
            split = "train" if number < 8 else "test"
            draw_stripes(root / split / name / f"{number}.png", angle=angle, seed=100 * angle + number)
    return root


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
