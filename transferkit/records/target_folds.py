"""Which images are held back together, where they have several labels or numbers instead of one class each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from transferkit.records._checks import require
from transferkit.records.folds import LARGE_GROUP, LARGE_SPLITS, Folds, Indices, Weights
from transferkit.records.targets import Targets

__all__ = ["TargetFolds"]


@dataclass(frozen=True)
class TargetFolds(Folds):
    """Folds of images with several labels or with numbers: `labels` are strata, which may be held back whole.

    Args:
        labels: (N,) int; splits are spread evenly over these.
        groups, copies: As for `Folds`.
        targets: Of the N images.

    Example:
        >>> numbers = Targets(task="regression", names=("age",), values=np.arange(8.0)[:, None])
        >>> folds = TargetFolds.of(numbers)
        >>> folds.together.tolist(), folds.take(np.array([5, 2])).targets.values.ravel().tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7], [5.0, 2.0])
    """

    targets: Targets | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.targets is not None and len(self.targets) == len(self.labels),
            "TargetFolds need the targets of each image.",
        )

    @classmethod
    def of(cls, targets: Targets) -> TargetFolds:
        """Folds with every image independent."""
        positions = np.arange(len(targets), dtype=np.int64)
        return cls(targets.strata, positions, positions, targets)

    @property
    def known_targets(self) -> Targets:
        """The targets; a `TargetFolds` always has some."""
        assert self.targets is not None
        return self.targets

    def take(self, rows: npt.NDArray[np.integer]) -> TargetFolds:
        """The folds of a subset of the images, in the order given."""
        return TargetFolds(self.labels[rows], self.groups[rows], self.copies[rows], self.known_targets.take(rows))

    def numbered(self, order: Indices) -> TargetFolds:
        """The same, with `copies` numbered in this order; valid only if no image has a copy."""
        return replace(self, copies=np.argsort(order))

    def counting(self, splits: Indices) -> Weights:
        """(N,) 1 / m for each of m copies; 0 for all if everything would be held back at once."""
        return self.shares if len(np.unique(splits)) > 1 else np.zeros(len(self))

    @property
    def measurable(self) -> bool:
        """Whether there are two groups."""
        return len(np.unique(self.groups)) > 1

    @property
    def complete(self) -> bool:
        """Whether every image can be held back."""
        return self.measurable

    @cached_property
    def together(self) -> Indices:
        """(N,) int; group by group: no class shrinks when one is left out."""
        group = np.unique(self.groups, return_inverse=True)[1].reshape(-1)
        if np.bincount(group).max(initial=0) > LARGE_GROUP:
            return self.assign_splits(LARGE_SPLITS)
        return np.asarray(group, dtype=np.int64)

    def _removable(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return chosen if not chosen.all() else np.zeros_like(chosen)
