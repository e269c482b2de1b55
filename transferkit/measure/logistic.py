"""Multinomial logistic regression on the joined features, with regularisation chosen on held-back images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.core.limits import N_SPLITS
from transferkit.measure.curves import stratified_sample
from transferkit.measure.quality import log_loss
from transferkit.measure.ridge import principal_coordinates
from transferkit.measure.scaled_rows import Array, Chunks
from transferkit.records import Folds

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = ["LogisticHead", "fit_logistic"]

STRENGTHS = (3.0, 30.0)
"""Inverse penalties tried on the first fold, for features of total variance 1 per stage: on hand signs (150 and 1,402
images) and digits (1,257) the best lay between 1 and 30 by accuracy and between 10 and 100 by log loss."""

FITTED_IMAGES = 32_768
"""Maximum images fitted, beyond which a stratified sample is used: the solver holds N x 2048 numbers, 256 MB."""

FOLDED_IMAGES = 4096
"""Above this many images one held-back fold is as informative as five of fewer, at a fifth of the time."""


@dataclass(frozen=True)
class LogisticHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        strength: The chosen inverse penalty.
        fitted: Number of images it was fitted to: all, or `FITTED_IMAGES` of them.
        held_back: (M,) indices of the images whose probabilities follow.
        counting: (M,) weight of each of them in estimates.
        probabilities: (M, K) from fits without them.
    """

    weight: Array
    bias: Array
    strength: float
    fitted: int
    held_back: npt.NDArray[np.int64]
    counting: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.floating]


def fit_logistic(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    weights: npt.NDArray[np.float64] | None = None,
    folds: Folds | None = None,
    emphasis: Array | None = None,
    seed: int = 0,
) -> LogisticHead:
    """Fit on all images; choose the strength by log loss on the first held-back fold.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int; every class in [0, K) has at least 2 images in different groups.
        blocks: Stage name -> its columns.
        weights: (N,) > 0; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others.
        emphasis: (D,) >= 0, a further factor of each scaled feature. If it was fitted to the same labels, the
            held-back probabilities are too optimistic.
        seed: Of the folds, and of the sample where there are more than `FITTED_IMAGES`.

    Raises:
        OptionError: If a class has fewer than 2 images in different groups.
    """
    folds = Folds.alone(labels) if folds is None else folds
    smallest = int(folds.groups_per_class.min())
    if smallest < 2:
        what = "images" if len(np.unique(folds.groups)) == len(folds) else "groups of images"
        raise OptionError(f"A logistic head needs 2 {what} per class to hold one back, got {smallest}. Use head=ridge.")
    coordinates = principal_coordinates(chunks, len(labels), blocks, rows=_sampled(labels, seed), emphasis=emphasis)
    rows = coordinates.rows
    problem = _Problem(
        coordinates.values,
        labels[rows],
        np.ones(len(rows)) if weights is None else weights[rows],
        folds.take(rows),
    )
    splits = problem.splits(seed)
    first, *others = range(int(splits.max()) + 1 if len(rows) <= FOLDED_IMAGES else 1)
    trials = {strength: problem.predict(splits, first, strength) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: problem.loss(trials[strength], splits, first))
    probabilities = np.concatenate([trials[best], *(problem.predict(splits, split, best) for split in others)])
    held_back = np.concatenate([np.flatnonzero(splits == split) for split in (first, *others)])
    final = problem.fit(np.arange(len(rows)), best)
    weight, bias = final.coef_.astype(np.float64), final.intercept_.astype(np.float64)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    counting = problem.folds.counting(splits)[held_back]
    return LogisticHead(*coordinates.to_raw(weight, bias), best, len(rows), rows[held_back], counting, probabilities)


def _sampled(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64] | None:
    """Rows to fit to; None for all."""
    if len(labels) <= FITTED_IMAGES:
        return None
    return stratified_sample(labels, FITTED_IMAGES, np.random.default_rng(seed))


@dataclass(frozen=True)
class _Problem:
    """Coordinates of n images, with their folds."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    folds: Folds

    def splits(self, seed: int) -> npt.NDArray[np.int64]:
        """(n,) the split in which each image is held back."""
        splits = self.folds.assign_splits(min(N_SPLITS, int(self.folds.groups_per_class.min())), seed=seed)
        return np.unique(splits, return_inverse=True)[1].reshape(-1)

    def fit(self, rows: npt.NDArray[np.int64], strength: float) -> LogisticRegression:
        """A model of these images."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        return model.fit(self.values[rows], self.labels[rows], sample_weight=self.weights[rows])

    def predict(self, splits: npt.NDArray[np.int64], split: int, strength: float) -> npt.NDArray[np.floating]:
        """(m, K) probabilities for a split's images, from a fit to the others; 0 for classes missing in the fit."""
        held = splits == split
        model = self.fit(np.flatnonzero(~held), strength)
        predicted = model.predict_proba(self.values[held])
        probabilities = np.zeros((len(predicted), int(self.labels.max()) + 1), dtype=predicted.dtype)
        probabilities[:, model.classes_] = predicted
        return probabilities

    def loss(self, probabilities: npt.NDArray[np.floating], splits: npt.NDArray[np.int64], split: int) -> float:
        """Log loss on the images of a split that have weight."""
        held = splits == split
        counting = self.folds.counting(splits)[held]
        return log_loss(probabilities, self.labels[held], counting if counting.any() else None)
