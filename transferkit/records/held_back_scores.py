"""Logits of training images, each scored while it was held back from the fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.records._checks import require

__all__ = ["MAX_HELD_BACK", "HeldBackScores"]

MAX_HELD_BACK = 5_000
"""Most images whose scores a run keeps: the quantiles of more would not be visibly more certain."""


@dataclass(frozen=True, kw_only=True)
class HeldBackScores:
    """What the returned model says about images that were held back from its fit, with its temperature applied.

    A head in closed form is scored by leave-one-out (`Folds.together`), a fine-tuned network by the folds that chose
    its epochs. The logits are those of the returned mixture: `softmax(logits)` is comparable with what
    `Result.predict` returns for a new image. Images whose class would have been lost with them are left out.

    Args:
        labels: (M,) int64 in [0, K).
        logits: (M, K) float32, finite.
        rows: (M,) int64 indices of the images among those of the training split, in the order in which they were
            opened; where the run chose on a validation split, the N images of training are followed by those of
            validation.

    Raises:
        OptionError: If the shapes do not fit, or a value is out of range.

    Example:
        >>> import numpy as np
        >>> found = HeldBackScores(
        ...     labels=np.array([1, 0]), logits=np.array([[0, 2], [1, 0]], dtype=np.float32), rows=np.array([0, 1])
        ... )
        >>> len(found), found.accuracy
        (2, 1.0)
    """

    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        require(
            self.logits.ndim == 2 and self.labels.shape == self.rows.shape == self.logits.shape[:1],
            f"HeldBackScores needs M labels, (M, K) logits and M rows, got {self.labels.shape}, {self.logits.shape} "
            f"and {self.rows.shape}.",
        )
        require(bool(np.isfinite(self.logits).all()), "HeldBackScores.logits must be finite.")
        require(
            not len(self) or 0 <= self.labels.min() <= self.labels.max() < self.logits.shape[1],
            f"HeldBackScores.labels must be in [0, {self.logits.shape[1]}).",
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly, in [0, 1]; NaN without images."""
        return float(np.mean(self.logits.argmax(axis=1) == self.labels)) if len(self) else float("nan")

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(M, K), rows sum to 1."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        probabilities: npt.NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
        return probabilities

    def take(self, positions: npt.NDArray[np.int64]) -> HeldBackScores:
        """Some of the M images."""
        return HeldBackScores(labels=self.labels[positions], logits=self.logits[positions], rows=self.rows[positions])
