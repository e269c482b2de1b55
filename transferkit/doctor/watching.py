"""What `adapt` watches its fits with; Lightning is imported when the first fit begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferkit.finetune.watching import FitWatch, MakeWatch

__all__ = ["watch_fits"]


def watch_fits(every: int) -> MakeWatch | None:
    """Makes what watches a fit; None to watch none.

    Args:
        every: Steps between two that are monitored; 0 for none.
    """

    def make(folder: Path | None) -> FitWatch:
        from transferkit.doctor.callback import TrainingWatch

        return TrainingWatch(every=every, folder=folder)

    return make if every else None
