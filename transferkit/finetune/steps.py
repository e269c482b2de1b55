"""How many optimizer steps a fit has, and at which of them its phases start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.finetune.callbacks import phase_starts
from transferkit.strategies import Phase

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["phase_steps"]


def phase_steps(trainer: pl.Trainer, phases: Sequence[Phase]) -> tuple[int, list[int]]:
    """Optimizer steps of the whole fit, and the first step of each phase that it comes to.

    Args:
        trainer: That is about to fit, its loaders at hand.
        phases: At least one.

    Raises:
        OptionError: If the trainer has no end, or the length of an epoch is not known.
    """
    steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
    if steps == math.inf:
        raise OptionError("Without an end there is no schedule: give the trainer max_epochs or max_steps.")
    if steps < 0:  # Lightning counts epochs, but nobody knows how long one is
        raise OptionError(
            "A stream does not tell how long an epoch is, and the schedule must know: give the trainer max_steps, "
            "or limit_train_batches."
        )
    # Without epochs there is one phase: the freeze plan's callback sees to that. A trial run comes to one only.
    if epochs is None or epochs < 1 or getattr(trainer, "fast_dev_run", False):
        return int(steps), [0]
    per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    starts = [start * per_epoch for start in phase_starts(phases, epochs)]
    # Where steps end the run, phases may be left that it never comes to.
    return max(int(steps), starts[-1] + 1), starts
