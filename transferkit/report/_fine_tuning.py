"""Facts of a fine-tuning run that several sections and charts mention: its phases, its best epoch, what was kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from transferkit.core.intervals import wilson_interval
from transferkit.records import Candidate, Epoch, RunRecord, TrainingRecord
from transferkit.report._words import plural

__all__ = [
    "EpochRange",
    "find_best_epoch",
    "find_phases",
    "find_probe",
    "held_back_interval",
    "is_fine_tuning",
    "name_held_back",
    "name_kept",
]


@dataclass(frozen=True, kw_only=True)
class EpochRange:
    """Consecutive epochs under one set of rules.

    Args:
        name: The phase's name.
        first, last: Its epochs, counted from 1.
    """

    name: str
    first: int
    last: int

    @property
    def span(self) -> str:
        """Its epochs in words."""
        return f"epoch {self.first}" if self.first == self.last else f"epochs {self.first} to {self.last}"


def find_phases(epochs: Iterable[Epoch]) -> tuple[EpochRange, ...]:
    """The phases in the order in which they ran."""
    runs = []
    for name, members in itertools.groupby(epochs, key=lambda epoch: epoch.phase):
        numbers = [epoch.number + 1 for epoch in members]
        runs.append(EpochRange(name=name, first=numbers[0], last=numbers[-1]))
    return tuple(runs)


def find_best_epoch(training: TrainingRecord) -> Epoch | None:
    """The best epoch; None if no images were held back to measure it on, or no loss of theirs was finite."""
    epoch = next((epoch for epoch in training.epochs if epoch.number == training.best_epoch), None)
    if epoch is None or (epoch.val_loss is None and epoch.val_accuracy is None):
        return None
    return epoch if epoch.val_loss is None or math.isfinite(epoch.val_loss) else None


def is_fine_tuning(record: RunRecord) -> bool:
    """Whether the decision was to train by gradients, whatever was kept in the end."""
    return record.training is not None or record.decision.lr > 0


def held_back_interval(one: Candidate, images: int) -> tuple[float, float]:
    """95 % Wilson interval of a candidate's accuracy, or its own of another score; of zero width if the number of
    images is not known."""
    if one.low is not None and one.high is not None:
        return one.low, one.high
    if not images or one.measure != "accuracy":
        return one.accuracy, one.accuracy
    return wilson_interval(round(one.accuracy * images), images)


def find_probe(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate without any fine-tuning."""
    return next((one for one in candidates if one.weight == 0), None)


def name_held_back(images: int) -> str:
    """The images held back from fine-tuning.

    Example:
        >>> name_held_back(1), name_held_back(280), name_held_back(0)
        ('1 held-back image', '280 held-back images', 'held-back images')
    """
    return plural(images, "held-back image") if images else "held-back images"


def name_kept(kept: Candidate) -> str:
    """What is returned: "probe", "fine-tuned" or "average"."""
    return "probe" if kept.weight == 0 else "fine-tuned" if kept.weight == 1 else "average"
