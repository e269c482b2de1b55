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
    """Optimizer steps of the whole fit, and the first step of each phase that is reached.

    Args:
        trainer: About to fit, with its loaders attached.
        phases: At least one.

    Raises:
        OptionError: If the trainer has no end, or the length of an epoch is not known.
    """
    steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
    if steps == math.inf:
        raise OptionError("A schedule needs an end: give the trainer max_epochs or max_steps.")
    if steps < 0:  # an iterable dataset without a length
        raise OptionError(
            "The schedule needs the length of an epoch, which a stream does not have: give the trainer max_steps, or "
            "limit_train_batches."
        )
    # Without epochs there is one phase, which the freeze plan's callback checks; fast_dev_run reaches the first only.
    if epochs is None or epochs < 1 or getattr(trainer, "fast_dev_run", False):
        return int(steps), [0]
    per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    starts = [start * per_epoch for start in phase_starts(phases, epochs)]
    # If max_steps ends the run early, later phases may not be reached.
    return max(int(steps), starts[-1] + 1), starts
