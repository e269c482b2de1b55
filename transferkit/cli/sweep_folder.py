"""A callback of Hydra's that remembers a sweep's folder, which only Hydra knows when runs start elsewhere."""

from __future__ import annotations

import shutil
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from transferkit.cli.outcomes import OUTCOMES

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["CURRENT", "SweepFolder"]

CURRENT: ContextVar[Path | None] = ContextVar("CURRENT", default=None)
"""Folder of the sweep that this process has started."""


class SweepFolder(Callback):
    """Remembers the folder, and clears it of what an interrupted sweep noted there."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Before the first run."""
        folder = Path(config.hydra.sweep.dir)
        CURRENT.set(folder)
        shutil.rmtree(folder / OUTCOMES, ignore_errors=True)
