"""Lightning's two packages, and which to build on: the trainer of one refuses modules of the other."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

__all__ = ["lightning"]


@cache
def lightning() -> Any:
    """`lightning.pytorch` where that is imported already and `pytorch_lightning` is not; else `pytorch_lightning`.

    Cached: classes that are imported later must build on the same package as those before.

    Example:
        >>> lightning().__name__ in ("pytorch_lightning", "lightning.pytorch")
        True
    """
    unified = "lightning.pytorch" in sys.modules and "pytorch_lightning" not in sys.modules
    return importlib.import_module("lightning.pytorch" if unified else "pytorch_lightning")
