"""Pictures that are like no other, and a dataset of whatever it is given, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Writer = Callable[..., Path]


def noise(seed: int, side: int = 24) -> Image.Image:
    """A picture like no other: 6 x 6 random patches, enlarged."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.NEAREST)


class Listed:
    """A map-style dataset that is no torch Dataset: what it was given, one by one."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]
