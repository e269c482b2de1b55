"""One more row for a linear classifier, from a few images of a new class; the other rows stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.measure.few_shot.shots import Rows
from transferkit.records import Folds

__all__ = ["NewRow", "fit_new_row"]

MADE_UP = 400
"""Images made up around the new ones, at most."""

PENALTY = 0.1
"""Of the ridge that finds the direction, in units of the mean variance of a feature times the images."""

MIN_OLD = 4
"""Images of the other classes: two halves, each with a spread."""

FLOOR = 1e-3
"""Smallest standard deviation of a feature, as a share of the mean one."""


@dataclass(frozen=True)
class NewRow:
    """What is appended to a classifier.

    Args:
        weight: (D,) float64.
        bias: float.
        expected_recall: Share of images made up around the new ones that are recognised, in [0, 1].
        old_scores: (N,) the new class's logit of each old image, by a row that was fitted without it.
    """

    weight: npt.NDArray[np.float64]
    bias: float
    expected_recall: float
    old_scores: npt.NDArray[np.float64]


def fit_new_row(
    new: npt.NDArray[Any],
    old: npt.NDArray[Any],
    folds: Folds,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    *,
    old_logits: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> NewRow:
    """Weights and bias of a new class beside classes whose rows are fixed.

    Images of the new class are made up: the mean of the new ones plus what an image of another class differs from its
    class mean by, times sqrt(1 + 1/n), as the mean of n images is off itself. A ridge regression tells these from the
    old images. Its length and bias are then fitted by the likelihood of the whole classifier on images that the
    regression has not seen, old and made up, every class weighing the same: so the new class neither swallows the
    others nor is never the answer.

    Args:
        new: (n, D) features of the new class, n >= 1.
        old: (N, D) of the other classes' images, N >= 4.
        folds: Their labels, in [0, K), and groups.
        weight: (K, D) of the classifier.
        bias: (K,).
        old_logits: (N, K) of the old images from fits without them; None: the classifier's own, which are surer than
            those of new images if it was fitted to these.
        seed: Of the images that are made up.

    Raises:
        DataError: Shapes do not fit, values are not finite, or there are too few old images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> old = np.concatenate([rng.normal(-4, 1, (20, 2)), rng.normal(4, 1, (20, 2))])
        >>> folds = Folds.alone(np.repeat([0, 1], 20))
        >>> row = fit_new_row(np.array([[-4.0, 4.0]]), old, folds, np.array([[-1.0, -1], [1, 1]]), np.zeros(2))
        >>> bool(row.weight[0] < 0 < row.weight[1]), bool(row.expected_recall > 0.9)
        (True, True)
    """
    new, old = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    _check(new, old, folds, weight)
    rng = np.random.default_rng(seed)
    residuals = old - _class_means(old, folds.labels)[folds.labels]
    deviation = residuals.std(axis=0)
    scale = np.maximum(deviation, FLOOR * float(deviation.mean()) or 1.0)
    spread = residuals * np.sqrt(1 + 1 / len(new))
    known = old @ np.asarray(weight).T + bias if old_logits is None else np.asarray(old_logits, dtype=np.float64)
    half = folds.assign_splits(2, seed=seed)
    scores, made, made_scores = np.zeros(len(old)), list[Rows](), list[Rows]()
    for fold in np.unique(half):
        rest, held = np.flatnonzero(half != fold), np.flatnonzero(half == fold)
        around = new.mean(axis=0) + _some(spread[rest], rng)
        direction, level = _direction(old[rest], around, folds.labels[rest], scale)
        scores[held] = old[held] @ direction + level
        made.append(new.mean(axis=0) + _some(spread[held], rng))
        made_scores.append(made[-1] @ direction + level)
    made_up, made_score = np.concatenate(made), np.concatenate(made_scores)
    logits = np.concatenate([known, made_up @ np.asarray(weight).T + bias])
    labels = np.concatenate([folds.labels, np.full(len(made_up), len(weight))])
    length, shift = _calibrate(logits, np.concatenate([scores, made_score]), labels)
    recognised = length * made_score + shift > logits[len(old) :].max(axis=1)
    final, level = _direction(old, new.mean(axis=0) + _some(spread, rng), folds.labels, scale)
    return NewRow(
        weight=length * final,
        bias=length * level + shift,
        expected_recall=float(recognised.mean()),
        old_scores=length * scores + shift,
    )


def _check(new: Rows, old: Rows, folds: Folds, weight: npt.NDArray[Any]) -> None:
    width = np.shape(weight)[1]
    if new.ndim != 2 or old.ndim != 2 or {new.shape[1], old.shape[1]} != {width} or len(old) != len(folds):
        raise DataError(f"A new row needs (n, {width}) and (N, {width}) features, got {new.shape} and {old.shape}.")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise DataError("Features must be finite. Leave out the images with NaN or infinite values.")
    if not len(new):
        raise DataError("A new class needs one image at least.")
    if len(np.unique(folds.groups)) < MIN_OLD:
        raise DataError(
            f"To add a class, {MIN_OLD} independent images of the other classes are needed, got "
            f"{len(np.unique(folds.groups))}. Give more with old_images=DATA."
        )


def _class_means(rows: Rows, labels: npt.NDArray[np.int64]) -> Rows:
    """(max + 1, D); classes without an image are zero."""
    counts = np.bincount(labels)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / np.maximum(counts, 1)[:, None]


def _some(rows: Rows, rng: np.random.Generator) -> Rows:
    return rows[rng.permutation(len(rows))[:MADE_UP]]


def _direction(old: Rows, made: Rows, labels: npt.NDArray[np.int64], scale: Rows) -> tuple[Rows, float]:
    """Ridge regression of 1 on images of the new class, 0 on the others, classes weighing the same.

    Returns:
        (D,) weights and an intercept.
    """
    rows = np.concatenate([old, made]) / scale
    target = np.repeat([0.0, 1.0], [len(old), len(made)])
    counts = np.bincount(labels)
    share = np.concatenate([1 / counts[labels], np.full(len(made), 1 / len(made))])
    share /= share.sum()
    centre, level = share @ rows, float(share @ target)
    root = np.sqrt(share)[:, None]
    scaled = (rows - centre) * root
    # The dual form: there are fewer images than features.
    gram = scaled @ scaled.T
    solved = np.linalg.solve(gram + PENALTY * float(np.trace(gram)) / len(gram) * np.eye(len(gram)),
                             (target - level) * root[:, 0])  # fmt: skip
    weight = scaled.T @ solved
    return weight / scale, level - float(centre @ weight)


def _calibrate(logits: Rows, score: Rows, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Length and shift of the new class's score that make all labels likeliest, classes weighing the same."""
    counts = np.bincount(labels, minlength=logits.shape[1] + 1)
    share = 1 / counts[labels]
    share = share / share.sum()
    is_new = labels == logits.shape[1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    # Log-sum-exp of the old logits, and how they stand to it.
    others = np.log(np.exp(shifted).sum(axis=1)) + logits.max(axis=1)
    middle, spread = float(score.mean()), float(score.std()) or 1.0
    unit = (score - middle) / spread

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margin = np.exp(point[0]) * unit + point[1] - others
        signed = np.where(is_new, margin, -margin)
        value = float(share @ np.logaddexp(0, -signed))
        slope = share * np.where(is_new, -1.0, 1.0) / (1 + np.exp(np.clip(signed, -500, 500)))
        return value, np.array([float(slope @ unit) * np.exp(point[0]), float(slope.sum())])

    start = np.array([np.log(max(float(logits.std()), 1e-3)), float(others.mean())])
    from scipy.optimize import minimize  # here: importing transferkit stays light

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(start[0] - 5, start[0] + 5), (None, None)])
    length = float(np.exp(found.x[0])) / spread
    return length, float(found.x[1]) - length * middle
