"""Default cache folder: it holds image features and the file audit's findings, so neither is computed twice."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.core.paths import expand

__all__ = ["default_folder"]


def default_folder() -> Path:
    """`$TRANSFERKIT_CACHE`, else the user's cache folder."""
    if given := os.environ.get("TRANSFERKIT_CACHE"):
        return expand(given)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(base) / "transferkit"
