"""A linear head on raw features, with its scores on held-back images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.score_text import format_score
from transferkit.records import HeldBackScores

__all__ = ["HeadFit"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class HeadFit:
    """A linear classifier on raw features.

    Args:
        name: "ridge", "logistic" or "average".
        weight: (K, D), each column with mean 0, as logits are defined up to a constant.
        bias: (K,), with mean 0.
        rows: (M,) indices of the images that were held back.
        logits: (M, K) of these, each while it was held back, with mean 0.
        counting: (M,) weight of each of them.
        accuracy, log_loss: On these images; NaN if nothing can be held back.
        how: How they were held back, as a phrase.
        measure: What `accuracy` is; of numbers `logits` are these, and `log_loss` is their squared error in units of
            their variance.
        thresholds: K probabilities from which on labels are given; empty for classes and numbers.
        interval: 95 % interval of the score of labels or numbers; None for an accuracy.
        temperature: What its raw scores were divided by.
        unbiased: (M, K) the same without the bias that `logits` have because features were selected by all labels, NaN
            where it is unknown; None if `logits` have none.
    """

    name: str
    weight: Array
    bias: Array
    rows: npt.NDArray[np.int64]
    logits: Array
    counting: npt.NDArray[np.float64]
    accuracy: float
    log_loss: float
    how: str
    measure: str = "accuracy"
    thresholds: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    temperature: float = 1.0
    unbiased: Array | None = None

    @property
    def known(self) -> bool:
        """Whether anything could be held back."""
        return bool(self.counting.any())

    @property
    def held_back(self) -> int:
        """Number of images that its accuracy was measured on."""
        return int(np.count_nonzero(self.counting))

    def scores(self, labels: npt.NDArray[np.int64]) -> HeldBackScores:
        """Of the images that count, as a record.

        Args:
            labels: (N,) int in [0, K) of all images that the head was fitted to.
        """
        logits = self.logits if self.unbiased is None else self.unbiased
        known = (self.counting > 0) & np.isfinite(logits).all(axis=1)
        rows = self.rows[known]
        return HeldBackScores(labels=labels[rows], logits=logits[known].astype(np.float32), rows=rows)

    def __str__(self) -> str:
        if not self.known:
            return f"{self.name}, {self.measure} unknown"
        if self.measure != "accuracy":
            loss = "log loss" if self.measure != "R2" else "squared error"
            return (
                f"{self.name}, {self.measure} {format_score(self.accuracy, self.measure)} ({loss} {self.log_loss:.3f})"
            )
        return f"{self.name} {100 * self.accuracy:.1f} % (log loss {self.log_loss:.3f})"
