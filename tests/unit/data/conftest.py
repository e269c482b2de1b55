"""Small image folders whose content is known by construction."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.pictures import Writer, noise


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write("train/cat/1.png", seed=3): a distinct picture at that place."""

    def write_one(name: str, *, seed: int | None = None, root: Path = tmp_path / "images") -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name's own sum keeps pictures distinct without a counter that depends on the order of calls.
        noise(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**32 if seed is None else seed).save(path)
        return path

    return write_one


@pytest.fixture
def official(write: Writer, tmp_path: Path) -> Path:
    """train: 6 cats and 6 dogs; test: 2 and 2."""
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                write(f"{split}/{name}/{index}.png")
    return tmp_path / "images"


@pytest.fixture
def unsplit(write: Writer, tmp_path: Path) -> Path:
    """10 cats and 20 dogs."""
    for name, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            write(f"{name}/{index}.png")
    return tmp_path / "images"
