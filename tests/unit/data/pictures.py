"""Pictures that are like no other, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Writer = Callable[..., Path]


def noise(seed: int, side: int = 24) -> Image.Image:
    """A picture like no other: 6 x 6 random patches, enlarged."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.NEAREST)
