"""How many optimizer steps a fit has, and at which of them its phases start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.finetune.callbacks import cycle_ends, phase_starts
from transferkit.strategies import Phase

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["phase_steps"]


def phase_steps(trainer: pl.Trainer, phases: Sequence[Phase], *, cycles: int = 1) -> tuple[int, list[int], list[int]]:
    """Optimizer steps of the whole fit, the first step of each phase that is reached, and of each further cycle.

    Args:
        trainer: About to fit, with its loaders attached.
        phases: At least one.
        cycles: Of the learning rate in the last phase.

    Raises:
        OptionError: If the trainer has no end, the length of an epoch is not known, or there are more cycles than
            epochs.
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
        return int(steps), [0], []
    per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    starts = [start * per_epoch for start in phase_starts(phases, epochs)]
    # If max_steps ends the run early, later phases may not be reached.
    restarts = [(end + 1) * per_epoch for end in cycle_ends(phases, epochs, cycles)[:-1]]
    last = max(int(steps), starts[-1] + 1)
    return last, starts, [step for step in restarts if step < last]
