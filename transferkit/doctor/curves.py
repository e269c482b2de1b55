"""The curves of one training run, and what follows from them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError

__all__ = ["Curves"]

EASIER = 0.85
"""Held-back loss below this share of the training loss."""

UNMOVED = 0.002
"""Relative fall below which nothing was learnt."""

STILL_FALLING = 0.25
"""Share of the whole fall in the last third of a curve from which on training was stopped too early."""

CERTAIN = 3.0
"""Deviations of single values that a fall must exceed."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of one training run, a value per epoch (or per equal number of batches) each.

    Args:
        train_loss: Mean training loss, the first from the first epoch.
        held_back_loss, held_back_accuracy: On images held back; empty if there are none, NaN after an epoch without a
            measurement, and an infinite loss where it was not finite.
        classes: K of a classifier, for the loss of guessing; None where that is not known: what is read against it is
            left out.
        held_back_images: Number of independent images behind the accuracy, for its standard error.
        batches: Number of batches of one value; None for an epoch.

    Raises:
        DataError: Curves have different lengths.
        OptionError: A number is out of range.
    """

    train_loss: Sequence[float]
    held_back_loss: Sequence[float] = ()
    held_back_accuracy: Sequence[float] = ()
    classes: int | None = None
    held_back_images: float | None = None
    batches: int | None = None

    def __post_init__(self) -> None:
        for name in ("held_back_loss", "held_back_accuracy"):
            if (length := len(getattr(self, name))) not in (0, len(self.train_loss)):
                raise DataError(f"{name} has {length} values, train_loss {len(self.train_loss)}.")
        if any(not (0 <= one <= 1 or math.isnan(one)) for one in self.held_back_accuracy):
            raise OptionError("Curves.held_back_accuracy must be in [0, 1].")
        if self.classes is not None and self.classes < 2:
            raise OptionError(f"Curves.classes must be >= 2 or None, got {self.classes!r}.")
        if self.batches is not None and self.batches < 1:
            raise OptionError(f"Curves.batches must be >= 1 or None, got {self.batches!r}.")

    @cached_property
    def losses(self) -> npt.NDArray[np.float64]:
        """(E,) training losses."""
        return np.asarray(self.train_loss, dtype=np.float64)

    @cached_property
    def smooth(self) -> npt.NDArray[np.float64]:
        """(E,) running medians of three or five: monotone curves, but for their ends, stay as they are."""
        reach = min(1 + len(self.losses) // 30, 2)
        padded = np.pad(self.losses, reach, mode="edge")
        return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)

    @property
    def noise(self) -> float:
        """Standard deviation of single training losses about their neighbours."""
        if len(self.losses) < 4:
            return 0.0
        # The second difference of independent values has a variance of 1 + 4 + 1 of theirs; of a median, / 0.6745.
        return float(np.median(np.abs(np.diff(self.losses, n=2))) / 0.6745 / math.sqrt(6))

    @property
    def guessing(self) -> float:
        """The loss of guessing, or the first one."""
        return math.log(self.classes) if self.classes is not None else float(self.losses[0])

    @property
    def end(self) -> float:
        """Training loss at the end: the median of the last tenth."""
        return float(np.median(self.losses[-max(1, len(self.losses) // 10) :]))

    @property
    def fall(self) -> float:
        """From the first to the lowest training loss, >= 0."""
        return float(self.losses[0] - self.losses.min())

    @property
    def share(self) -> str:
        """The last training loss against guessing, in words; "" where that is not known."""
        return "" if self.classes is None else f", {100 * self.end / self.guessing:.0f} % of guessing"

    @property
    def held_back(self) -> npt.NDArray[np.float64]:
        """(E,) held-back losses."""
        return np.asarray(self.held_back_loss, dtype=np.float64)

    @property
    def held_back_is_lower(self) -> bool:
        """Whether training images are much harder than held-back ones: they are mixed, or strongly augmented."""
        known = self.held_back[np.isfinite(self.held_back)]
        return bool(len(known) and known[-1] < EASIER * self.losses[-1])

    @property
    def still_falls(self) -> bool:
        """Whether much of the fall, if there is one at all, is at the end."""
        enough = max(STILL_FALLING * self.fall, CERTAIN * self.noise)
        return bool(self.fall > UNMOVED * abs(self.losses[0]) and self.last_third > enough)

    @property
    def last_third(self) -> float:
        """The fall in the last third."""
        return float(self.smooth[-1 - len(self.losses) // 3] - self.smooth[-1])

    def when(self, place: int) -> str:
        """A value's place in words: "epoch 3", or "batch 40"."""
        return f"epoch {place + 1}" if self.batches is None else f"batch {(place + 1) * self.batches}"

    def long(self, count: int) -> str:
        """So many values in words: "3 epochs", or "40 batches"."""
        return f"{count} epochs" if self.batches is None else f"{count * self.batches} batches"
