"""The curves of a run, kept while it is trained: by epoch, and by equal numbers of batches for runs of few epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from transferkit.doctor.curve_reading import FEWEST
from transferkit.doctor.curves import Curves

__all__ = ["RunCurves"]

MOST_PARTS = 64
"""Means of losses that are kept: when there are more, neighbours are joined and a mean has twice the batches."""

SHOWN = 12
"""Most values of a curve by batches: fewer means over more batches are less noisy."""

STEADY = 4
"""Batches below which the mean of their losses is mostly noise."""


class RunCurves:
    """Training losses by epoch and by batch, and what was measured on held-back images after each epoch.

    Attributes:
        epochs: (training loss, held-back loss, held-back accuracy) of each epoch with a training loss; None for what is
            not known.
        observed: Whether the loss of any batch was seen.

    Example:
        >>> kept = RunCurves()
        >>> for step in range(40):
        ...     kept.observe(torch.tensor(2.0 - step / 40))
        ...     kept.end_batch()
        >>> kept.end_epoch(None, 0.5)
        >>> found = kept.curves(classes=10)
        >>> len(found.train_loss), found.batches
        (10, 4)
    """

    def __init__(self) -> None:
        self.epochs = list[tuple[float, float | None, float | None]]()
        self.observed = False
        self._epoch_sum: torch.Tensor | float = 0.0
        self._epoch_count = 0
        self._step_sum: torch.Tensor | float = 0.0
        self._step_count, self._in_part = 0, 0
        self._part_size = 1
        self._parts = list[float]()

    def observe(self, loss: torch.Tensor | float) -> None:
        """Note the loss of a batch."""
        self.observed = True
        loss = loss.float() if isinstance(loss, torch.Tensor) else loss  # sums in half precision come to a standstill
        self._epoch_sum, self._epoch_count = self._epoch_sum + loss, self._epoch_count + 1
        self._step_sum, self._step_count = self._step_sum + loss, self._step_count + 1

    def end_batch(self) -> None:
        """A batch is done."""
        self._in_part += 1
        if self._in_part < self._part_size:
            return
        if self._step_count:
            self._parts.append(float(self._step_sum) / self._step_count)
        self._step_sum, self._step_count, self._in_part = 0.0, 0, 0
        if len(self._parts) == MOST_PARTS:
            self._parts, self._part_size = _joined(self._parts, 2), 2 * self._part_size

    def end_epoch(
        self, held_back_loss: float | None, held_back_accuracy: float | None, *, train_loss: float | None = None
    ) -> None:
        """An epoch is done; one without a step (in which an average's statistics are measured) is none.

        Args:
            held_back_loss, held_back_accuracy: Measured after it; None if they were not. Percent are made a share.
            train_loss: Mean of the epoch, for a run whose batches cannot be observed.
        """
        if self._epoch_count:
            loss: float | None = float(self._epoch_sum) / self._epoch_count
        else:
            loss = None if self.observed else train_loss
        self._epoch_sum, self._epoch_count = 0.0, 0
        if loss is not None:
            self.epochs.append((loss, held_back_loss, held_back_accuracy))

    def curves(self, *, classes: int | None = None, held_back_images: float | None = None) -> Curves:
        """By epoch; of fewer than five epochs by batches, if there are enough of them."""
        joined = math.ceil(max(STEADY / self._part_size, len(self._parts) / SHOWN))
        parts = _joined(self._parts, joined)
        if len(self.epochs) < FEWEST <= len(parts):
            return Curves(train_loss=parts, classes=classes, batches=joined * self._part_size)
        train, held_back, accuracy = zip(*self.epochs, strict=True) if self.epochs else ((), (), ())
        percent = [100.0 if one is not None and one > 1 else 1.0 for one in accuracy]
        scale = max(percent, default=1.0)
        return Curves(
            train_loss=train,
            held_back_loss=_known(held_back),
            held_back_accuracy=_known([None if one is None else one / scale for one in accuracy], highest=1.0),
            classes=classes,
            held_back_images=held_back_images,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from, at the end of an epoch."""
        return {
            "epochs": [list(one) for one in self.epochs],
            "observed": self.observed,
            "parts": list(self._parts),
            "size": self._part_size,
            "open": [float(self._step_sum), self._step_count, self._in_part],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.epochs = [(train, loss, accuracy) for train, loss, accuracy in state["epochs"]]
        self.observed, self._parts, self._part_size = state["observed"], list(state["parts"]), state["size"]
        self._step_sum, self._step_count, self._in_part = state["open"]


def _joined(parts: list[float], count: int) -> list[float]:
    """Means over so many successive ones; an incomplete last one is left out."""
    whole = len(parts) - len(parts) % count
    return [math.fsum(parts[start : start + count]) / count for start in range(0, whole, count)]


def _known(values: Any, *, highest: float = math.inf) -> tuple[float, ...]:
    """NaN where there is no value; empty without any, or with one beyond what it can be."""
    found = tuple(math.nan if one is None else one for one in values)
    if all(math.isnan(one) for one in found) or any(not math.isnan(one) and one > highest for one in found):
        return ()
    return found
