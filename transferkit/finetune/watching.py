"""What may watch a fit: a Lightning callback that makes a record of what it saw. Who does is passed down from above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.core.frameworks import lightning
from transferkit.records import MonitorRecord

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["FitWatch", "MakeWatch"]


class FitWatch(pl.Callback):
    """A callback that watches one fit, without changing a bit of it."""

    def record(self) -> MonitorRecord | None:
        """What was seen so far; None if nothing was, or by another process."""
        raise NotImplementedError


MakeWatch = Callable[[Path | None], FitWatch]
"""Folder for the files of one fit, or None for no files -> what watches it."""
