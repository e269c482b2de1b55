"""A few labelled rows, the shots, and the checks that every few-shot method starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = ["Rows", "Shots"]

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shots:
    """The labelled images of a few-shot task.

    Args:
        rows: (n, D) float, finite.
        labels: (n,) int in [0, K), each of them at least once.

    Raises:
        DataError: Shapes do not fit, values are not finite, or a class below the largest has no image.

    Example:
        >>> Shots(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.array([0, 1, 1])).means.tolist()
        [[0.0, 1.0], [3.0, 4.0]]
    """

    rows: Rows
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.labels.shape != (len(self.rows),):
            raise DataError(f"Shots need (n, D) rows and n labels, got {self.rows.shape} and {self.labels.shape}.")
        if not np.isfinite(self.rows).all():
            raise DataError("Features of the shots must be finite. Leave out the images with NaN or infinite values.")
        if not len(self.labels) or self.labels.min() < 0 or (np.bincount(self.labels) == 0).any():
            raise DataError("Every class in [0, K) needs at least one shot.")

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(K,) shots of each class."""
        return np.asarray(np.bincount(self.labels), dtype=np.int64)

    @property
    def means(self) -> Rows:
        """(K, D) mean of each class."""
        return self.one_hot.T @ self.rows / self.counts[:, None]

    @property
    def one_hot(self) -> Rows:
        """(n, K) 1 where an image is of a class."""
        return np.eye(int(self.labels.max()) + 1)[self.labels]

    def check_queries(self, queries: npt.NDArray[Any]) -> Rows:
        """Queries in double precision.

        Args:
            queries: (Q, D) float.

        Raises:
            DataError: Their width is not D, or they are not finite.
        """
        wide = np.asarray(queries, dtype=np.float64)
        if wide.ndim != 2 or wide.shape[1] != self.rows.shape[1]:
            raise DataError(f"Queries must be (Q, {self.rows.shape[1]}), as the shots are, got {wide.shape}.")
        if not np.isfinite(wide).all():
            raise DataError("Features of the queries must be finite. Leave out the images with NaN or infinite values.")
        return wide
