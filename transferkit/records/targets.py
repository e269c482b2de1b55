"""What images show where it is not one class each: several labels, or numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.records._checks import require

__all__ = ["MEASURES_OF", "TARGET_TASKS", "TASK_NAMES", "Targets", "format_target", "join_labels"]

TARGET_TASKS = ("multi_label", "regression")

TASK_NAMES = ("single_label", *TARGET_TASKS)

MEASURES_OF = {"single_label": "accuracy", "multi_label": "mean average precision", "regression": "R2"}
"""Task -> name of the score that models are compared by."""

SEPARATOR = ";"
"""Between the labels of an image, where they are written as one text."""

STRATA, PER_STRATUM = 10, 5
"""Bins of a regression's targets that splits are spread over: at most so many, of at least so many images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """Several labels per image, or numbers.

    Args:
        task: "multi_label" or "regression".
        names: T names of labels or numbers.
        values: (N, T) float64, finite; 0 or 1 for labels.

    Example:
        >>> values = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
        >>> targets = Targets(task="multi_label", names=("cat", "dog"), values=values)
        >>> targets.counts.tolist(), [targets.text(row) for row in range(3)]
        ([1, 2], ['cat;dog', 'dog', ''])
    """

    task: str
    names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        require(self.task in TARGET_TASKS, f"Targets.task must be one of {', '.join(TARGET_TASKS)}, got {self.task!r}.")
        shape = self.values.shape
        require(
            len(shape) == 2 and shape[1] == len(self.names) >= 1,
            f"Targets need (N, T) values and T names, got {shape} and {len(self.names)}.",
        )
        require(bool(np.isfinite(self.values).all()), "Targets.values must be finite.")
        if self.is_labels:
            require(bool(np.isin(self.values, (0, 1)).all()), "Targets.values of labels must be 0 or 1.")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_labels(self) -> bool:
        """Whether they are labels, not numbers."""
        return self.task == "multi_label"

    @property
    def measure(self) -> str:
        """Name of the score that models are compared by."""
        return MEASURES_OF[self.task]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(T,) images with each label; of numbers, all images."""
        if self.is_labels:
            return self.values.sum(axis=0).astype(np.int64)
        return np.full(len(self.names), len(self), dtype=np.int64)

    def take(self, rows: npt.NDArray[np.integer]) -> Targets:
        """Those of some images, in the order given."""
        return replace(self, values=self.values[rows])

    def text(self, row: int) -> str:
        """The targets of an image as a person would write them."""
        if self.is_labels:
            return join_labels(self.names, self.values[row] > 0)
        return format_target(self.names, self.values[row])

    @cached_property
    def strata(self) -> npt.NDArray[np.int64]:
        """(N,) int >= 0 that splits are spread evenly over: the rarest label of each image, or a bin of its number (of
        several numbers: of their first principal component)."""
        return _rarest_label(self.values) if self.is_labels else _bins(_principal(self.values))


def join_labels(names: tuple[str, ...], on: npt.NDArray[np.bool_]) -> str:
    """The labels of an image as one text; "" for none.

    Example:
        >>> join_labels(("cat", "dog", "owl"), np.array([True, False, True]))
        'cat;owl'
    """
    return SEPARATOR.join(name for name, is_on in zip(names, on, strict=True) if is_on)


def format_target(names: tuple[str, ...], values: npt.NDArray[Any]) -> str:
    """The numbers of an image as one text, with their names where there are several.

    Example:
        >>> format_target(("age",), np.array([41.5])), format_target(("x", "y"), np.array([3.0, 0.25]))
        ('41.5', 'x 3, y 0.25')
    """
    if len(names) == 1:
        return f"{values[0]:.4g}"
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))


def _rarest_label(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    order = np.argsort(values.sum(axis=0), kind="stable")
    ordered = values[:, order] > 0
    none = len(order)
    found = np.where(ordered.any(axis=1), ordered.argmax(axis=1), none)
    return np.unique(found, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _principal(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) the direction in which standardised numbers differ most."""
    if values.shape[1] == 1 or len(values) < 2:
        return values[:, 0]
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    direction = np.linalg.eigh(scaled.T @ scaled)[1][:, -1]
    return np.asarray(scaled @ direction, dtype=np.float64)


def _bins(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    bins = max(1, min(STRATA, len(scores) // PER_STRATUM))
    edges = np.quantile(scores, np.arange(1, bins) / bins) if bins > 1 else np.empty(0)
    found = np.searchsorted(edges, scores, side="right")
    return np.unique(found, return_inverse=True)[1].reshape(-1).astype(np.int64)
