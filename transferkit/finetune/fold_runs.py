"""Probe and training run of each fold, and what their held-back images say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from transferkit.finetune.checkpoint import RunCheckpoint
from transferkit.finetune.runner import Runner
from transferkit.finetune.task import FineTuneTask
from transferkit.records import Claim, Epoch, Fold

__all__ = ["JUDGED_AT_ONCE", "FoldRun", "count_held_back", "held_back_losses", "mean_epochs", "run_fold"]

JUDGED_AT_ONCE = 64
"""Batch size for held-back images."""


@dataclass(frozen=True)
class FoldRun:
    """Probe and training run of one fold.

    Args:
        fold: Images trained on, and held back.
        probe: (M, K) its logits of those held back.
        checkpoint: What was measured of the network, and its best weights.
        claims: How its parameters were trained.
    """

    fold: Fold
    probe: npt.NDArray[np.floating]
    checkpoint: RunCheckpoint
    claims: tuple[Claim, ...]

    @property
    def seconds(self) -> float:
        """Of all its epochs."""
        return sum(epoch.seconds for epoch in self.checkpoint.epochs)


def run_fold(
    task: FineTuneTask,
    fold: Fold,
    runner: Runner,
    name: str,
    *,
    epochs: int | None = None,
    probe: npt.NDArray[np.floating] | None = None,
) -> FoldRun:
    """Train one fold, from where it was left if it was begun.

    Args:
        task, fold, runner: What is trained, on which images, by whom.
        name: Of the fit.
        epochs: To stop after; None is the recipe's, which the schedule covers in any case.
        probe: The fold's probe logits, if computed already.
    """
    module = task.network(fold.train)
    checkpoint = runner.fit(
        module,
        partial(task.batches, fold.train),
        task.feed(fold.held_back, batch_size=JUDGED_AT_ONCE, training=False),
        name=name,
        stop_after=epochs or task.recipe.epochs or 1,
    )
    return FoldRun(fold, task.probe_logits(fold) if probe is None else probe, checkpoint, module.freeze_plan.claims())


def mean_epochs(runs: Sequence[FoldRun]) -> tuple[Epoch, ...]:
    """Epochs averaged over folds, weighted by held-back images, for epochs that all folds ran; seconds are summed."""
    sizes = [len(run.fold.held_back) for run in runs]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=sizes)) if len(known) == len(sizes) else None

    return tuple(
        replace(
            same[0],
            train_loss=float(np.mean([epoch.train_loss for epoch in same])),
            seconds=sum(epoch.seconds for epoch in same),
            val_loss=mean([epoch.val_loss for epoch in same]),
            val_accuracy=mean([epoch.val_accuracy for epoch in same]),
        )
        for same in zip(*(run.checkpoint.epochs for run in runs), strict=False)
    )


def held_back_losses(runs: Sequence[FoldRun]) -> npt.NDArray[np.float64]:
    """(epochs,) mean over the folds, with inf for values that are not finite."""
    losses = np.array([epoch.val_loss for epoch in mean_epochs(runs)], dtype=np.float64)
    return np.where(np.isfinite(losses), losses, np.inf)


def count_held_back(runs: Sequence[FoldRun]) -> int:
    """Images of all folds."""
    return sum(len(run.fold.held_back) for run in runs)
