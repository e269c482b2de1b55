"""What a task is: samples with a place to go, the folders they come from, and a generator of one's own.

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
"""Every random draw derives from this number and the name of what is drawn."""

CANVAS = 96
"""Side in pixels of everything that is rendered here: the size that the project's figures use."""


STAMPS = Path("/usr/share/tuxpaint/stamps")
FASHION = Path("/usr/share/datasets/fashion-mnist")
FONTS = Path("/usr/share/fonts")
PHOTOS = Path("/usr/share/backgrounds/mate/nature")


class SourceMissing(Exception):
    """A task cannot be built here; the message says what to install or to give."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a task and where it goes: `split/label/name.png`."""

    split: str
    label: str
    name: str
    image: Image.Image

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/{self.name}.png"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the sources are. Tests point these at folders of their own."""

    out: Path
    hand_signs: Path | None = None
    stamps: Path = STAMPS
    fashion: Path = FASHION
    fonts: Path = FONTS
    photos: Path = PHOTOS


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task is, and how to make its images.

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
    """The random generator that belongs to these names, the same on every machine."""
    return np.random.default_rng([SEED, *(zlib.crc32(name.encode()) for name in names)])
