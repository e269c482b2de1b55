"""Multinomial logistic regression on the joined features, its strength chosen on held-back images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.errors import OptionError
from transferkit.measure.quality import log_loss
from transferkit.measure.ridge import Array, Chunks, principal_coordinates

__all__ = ["LogisticHead", "fit_logistic"]

STRENGTHS = (3.0, 30.0)
"""Inverse penalties tried on the first fold, for features of total variance 1 per stage: on hand signs (150 and 1,402
images) and digits (1,257) the best lay between 1 and 30 by accuracy and between 10 and 100 by log loss."""

FOLDS = 5
FOLDED_IMAGES = 4096
"""Above this many images one held-back fold tells as much as five told below it, at a fifth of the time."""


@dataclass(frozen=True)
class LogisticHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        strength: The inverse penalty chosen.
        held_back: (M,) indices of the images whose probabilities follow.
        probabilities: (M, K) from fits that had not seen them.
    """

    weight: Array
    bias: Array
    strength: float
    held_back: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Indices seen, indices held back."""


def _folds(labels: npt.NDArray[np.int64], seed: int) -> Iterator[Fold]:
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(np.bincount(labels).min()))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels[:, None], labels)
    for number, split in enumerate(splits):
        if number == 0 or len(labels) <= FOLDED_IMAGES:
            yield split


def fit_logistic(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    weights: npt.NDArray[np.float64] | None = None,
    emphasis: Array | None = None,
    seed: int = 0,
) -> LogisticHead:
    """Fit on all images; choose the strength by log loss on the first held-back fold.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int; every class in [0, K) has 2 images or more.
        blocks: Stage name -> its columns.
        weights: (N,) > 0; None weighs all the same.
        emphasis: (D,) >= 0, a further factor of each scaled feature. If it was learnt from the same labels, the
            held-back probabilities flatter.
        seed: Of the folds.

    Raises:
        OptionError: If a class has fewer than 2 images.
    """
    from sklearn.linear_model import LogisticRegression

    smallest = int(np.bincount(labels).min())
    if smallest < 2:
        raise OptionError(f"A logistic head needs 2 images per class to hold one back, got {smallest}. Use head=ridge.")
    weights = np.ones(len(labels)) if weights is None else weights
    coordinates = principal_coordinates(chunks, len(labels), blocks, emphasis=emphasis)

    def fit(rows: npt.NDArray[np.int64], strength: float) -> LogisticRegression:
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        return model.fit(coordinates.values[rows], labels[rows], sample_weight=weights[rows])

    def answer(fold: Fold, strength: float) -> npt.NDArray[np.float64]:
        seen, held = fold
        return fit(seen, strength).predict_proba(coordinates.values[held])

    first, *others = _folds(labels, seed)
    trials = {strength: answer(first, strength) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: log_loss(trials[strength], labels[first[1]]))
    probabilities = np.concatenate([trials[best], *(answer(fold, best) for fold in others)])
    held_back = np.concatenate([first[1], *(held for _, held in others)])
    final = fit(np.arange(len(labels)), best)
    weight, bias = final.coef_.astype(np.float64), final.intercept_.astype(np.float64)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LogisticHead(*coordinates.to_raw(weight, bias), best, held_back, probabilities)
