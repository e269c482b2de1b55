"""Definition of a task: samples with their paths, the source folders, and a seeded generator.

Everything is drawn from `generator(name)`, so that a task does not change when another one does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 20
"""Every random generator is seeded by this number and the task's name."""

CANVAS = 96
"""Side in pixels of everything that is rendered here: the size that the project's figures use."""


STAMPS = Path("/usr/share/tuxpaint/stamps")
FASHION = Path("/usr/share/datasets/fashion-mnist")
FONTS = Path("/usr/share/fonts")
PHOTOS = Path("/usr/share/backgrounds/mate/nature")


class SourceMissing(Exception):
    """Raised if a task cannot be built here; the message says what to install or pass."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a task and its path: `split/label/name.png`."""

    split: str
    label: str
    name: str
    image: Image.Image

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/{self.name}.png"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths of the sources. Tests override them."""

    out: Path
    hand_signs: Path | None = None
    stamps: Path = STAMPS
    fashion: Path = FASHION
    fonts: Path = FONTS
    photos: Path = PHOTOS


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, and the function that makes its images.

    `samples` gets the places and a generator seeded by the task's name; `base` names the task that it is a copy of.
    """

    name: str
    about: str
    kind: str
    source: str
    licence: str
    samples: Callable[[Places, np.random.Generator], Iterator[Sample]]
    base: str | None = None


def generator(*names: str) -> np.random.Generator:
    """The random generator seeded by these names, the same on every machine."""
    return np.random.default_rng([SEED, *(zlib.crc32(name.encode()) for name in names)])
