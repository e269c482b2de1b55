"""Multinomial logistic regression on the joined features, its strength chosen on held-back images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.measure.curves import stratified_sample
from transferkit.measure.quality import log_loss
from transferkit.measure.ridge import principal_coordinates
from transferkit.measure.scaled_rows import Array, Chunks
from transferkit.records import N_SPLITS, Folds

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = ["LogisticHead", "fit_logistic"]

STRENGTHS = (3.0, 30.0)
"""Inverse penalties tried on the first fold, for features of total variance 1 per stage: on hand signs (150 and 1,402
images) and digits (1,257) the best lay between 1 and 30 by accuracy and between 10 and 100 by log loss."""

FITTED_IMAGES = 32_768
"""Above this many images a stratified sample of them is fitted: the solver holds N x 2048 numbers, 256 MB."""

FOLDED_IMAGES = 4096
"""Above this many images one held-back fold tells as much as five told below it, at a fifth of the time."""


@dataclass(frozen=True)
class LogisticHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        strength: The inverse penalty chosen.
        fitted: Images that it was fitted to: all, or `FITTED_IMAGES` of them.
        held_back: (M,) indices of the images whose probabilities follow.
        counting: (M,) what each of them counts in what is measured on them.
        probabilities: (M, K) from fits that had not seen them.
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
        labels: (N,) int; every class in [0, K) has 2 images or more that can be held back from each other.
        blocks: Stage name -> its columns.
        weights: (N,) > 0; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others.
        emphasis: (D,) >= 0, a further factor of each scaled feature. If it was learnt from the same labels, the
            held-back probabilities flatter.
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
    parts = problem.parts(seed)
    first, *others = range(int(parts.max()) + 1 if len(rows) <= FOLDED_IMAGES else 1)
    trials = {strength: problem.answer(parts, first, strength) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: problem.loss(trials[strength], parts, first))
    probabilities = np.concatenate([trials[best], *(problem.answer(parts, part, best) for part in others)])
    held_back = np.concatenate([np.flatnonzero(parts == part) for part in (first, *others)])
    final = problem.fit(np.arange(len(rows)), best)
    weight, bias = final.coef_.astype(np.float64), final.intercept_.astype(np.float64)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    counting = problem.folds.counting(parts)[held_back]
    return LogisticHead(*coordinates.to_raw(weight, bias), best, len(rows), rows[held_back], counting, probabilities)


def _sampled(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64] | None:
    """Rows to fit to; None for all."""
    if len(labels) <= FITTED_IMAGES:
        return None
    return stratified_sample(labels, FITTED_IMAGES, np.random.default_rng(seed))


@dataclass(frozen=True)
class _Problem:
    """Coordinates of n images, and who is held back with whom."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    folds: Folds

    def parts(self, seed: int) -> npt.NDArray[np.int64]:
        """(n,) the fold that each image is held back in."""
        parts = self.folds.assign_splits(min(N_SPLITS, int(self.folds.groups_per_class.min())), seed=seed)
        return np.unique(parts, return_inverse=True)[1].reshape(-1)

    def fit(self, rows: npt.NDArray[np.int64], strength: float) -> LogisticRegression:
        """A model of these images."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        return model.fit(self.values[rows], self.labels[rows], sample_weight=self.weights[rows])

    def answer(self, parts: npt.NDArray[np.int64], part: int, strength: float) -> npt.NDArray[np.floating]:
        """(m, K) probabilities of the images of a part, by a fit to the others; 0 for classes that it did not see."""
        held = parts == part
        model = self.fit(np.flatnonzero(~held), strength)
        answers = model.predict_proba(self.values[held])
        probabilities = np.zeros((len(answers), int(self.labels.max()) + 1), dtype=answers.dtype)
        probabilities[:, model.classes_] = answers
        return probabilities

    def loss(self, probabilities: npt.NDArray[np.floating], parts: npt.NDArray[np.int64], part: int) -> float:
        """Log loss on the images of a part that tell anything."""
        held = parts == part
        counting = self.folds.counting(parts)[held]
        return log_loss(probabilities, self.labels[held], counting if counting.any() else None)
