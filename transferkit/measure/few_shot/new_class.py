"""One more row for a linear classifier, from a few images of a new class; the other rows stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.measure.few_shot.shots import Rows
from transferkit.records import Folds

__all__ = ["NewRow", "fit_new_row"]

SHRINKAGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Added to the covariance within classes, in units of its mean variance; pretended new classes choose among them."""

PRETENDED, DRAWS = 12, 3
"""Old classes that are pretended to be new at most, and draws of their images."""

MIN_OLD = 4
"""Images of the other classes: two halves, each with a spread."""

FLOOR = 0.1
"""Smallest standard deviation of a feature within classes, as a share of the root mean square of all."""


@dataclass(frozen=True)
class NewRow:
    """What is appended to a classifier.

    Args:
        weight: (D,) float64.
        bias: float.
        expected_recall: Share of the images of old classes that were recognised when these were pretended to be new, in
            [0, 1], or of images made up around the new ones, if that is lower.
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

    The direction is that of a linear discriminant: the inverse of the shrunk covariance within classes, times what the
    mean of the new images differs from that of the old classes by. n images are off their class's mean, and no two sets
    of them by as much, so that the score is standardised on old images that the covariance has not seen. Shrinkage,
    length and bias come from old classes that are pretended to be new, each with as many images and a covariance
    without it: from the likelihood that the score beats the highest other logit on their other images and loses on
    those of the other classes, every class weighing the same. The row is the mean of two, each with the covariance of
    one half of the images.

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
        DataError: Shapes do not fit, values are not finite, there are too few old images, or no old class has two of
            them that are independent.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> old = np.concatenate([rng.normal(-4, 1, (20, 2)), rng.normal(4, 1, (20, 2))])
        >>> folds = Folds.alone(np.repeat([0, 1], 20))
        >>> row = fit_new_row(np.array([[-4.0, 4.0]]), old, folds, np.array([[-1.0, -1], [1, 1]]), np.zeros(2))
        >>> bool(row.weight[0] < 0 < row.weight[1]), bool(row.expected_recall > 0.5)
        (True, True)
    """
    new, old = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    _check(new, old, folds, weight)
    known = old @ np.asarray(weight).T + bias if old_logits is None else np.asarray(old_logits, dtype=np.float64)
    half = folds.assign_splits(2, seed=seed)
    trials = list(_pretend(old, folds, known, half, shots=len(new), rng=np.random.default_rng(seed)))
    if not trials:
        raise DataError(
            "How a class is recognised by few images is learnt from the other classes, and none has two independent "
            "images. Give more with old_images=DATA."
        )
    shrinkage, length, shift, recall = _calibrate(trials)
    # Images made up around the new ones: few are recognised where the new class lies amid an old one.
    around = (old - _class_means(old, folds.labels)[folds.labels]) * np.sqrt(1 + 1 / len(new)) + new.mean(axis=0)
    others = (around @ np.asarray(weight).T + bias).max(axis=1)
    scores, made, rows = np.zeros(len(old)), np.zeros(len(old)), []
    for fold in np.unique(half):
        rest, held = half != fold, half == fold
        direction, level = _Within(old[rest], folds.labels[rest]).discriminant(new.mean(axis=0), shrinkage, old[held])
        scores[held] = old[held] @ direction + level
        made[held] = around[held] @ direction + level
        rows.append((direction, level))
    return NewRow(
        weight=length * np.mean([direction for direction, _ in rows], axis=0),
        bias=length * float(np.mean([level for _, level in rows])) + shift,
        expected_recall=min(recall, float((length * made + shift > others).mean())),
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


class _Within:
    """Covariance of features within classes, shrunk, in the span of its images: there are fewer of them than features.

    Args:
        rows: (N, D).
        labels: (N,).
    """

    def __init__(self, rows: Rows, labels: npt.NDArray[np.int64]) -> None:
        present, counts = np.unique(labels, return_counts=True)
        means = _class_means(rows, labels)
        residuals = rows - means[labels]
        freedom = max(1, int((counts - 1).sum()))
        deviation = np.sqrt((residuals**2).sum(axis=0) / freedom)
        self.scale = np.maximum(deviation, FLOOR * float(np.sqrt((deviation**2).mean())) or 1.0)
        self.centre = means[present].mean(axis=0)
        self._residuals = residuals / self.scale / np.sqrt(freedom)
        values, self._vectors = np.linalg.eigh(self._residuals @ self._residuals.T)
        self._values = np.maximum(values, 0.0)
        self._variance = float(self._values.sum()) / rows.shape[1] or 1.0

    def discriminant(self, mean: Rows, shrinkage: float, unseen: Rows) -> tuple[Rows, float]:
        """(D,) weights and an intercept of a class with this mean, against the classes of the rows; standardised on
        unseen images of these."""
        apart, added = (mean - self.centre) / self.scale, shrinkage * self._variance
        along = self._vectors.T @ (self._residuals @ apart)
        inside = self._residuals.T @ (self._vectors @ (along / (self._values + added)))
        direction = (apart - inside) / added / self.scale
        scores = unseen @ direction
        spread = float(scores.std()) or float(np.abs(scores).max()) or 1.0
        return direction / spread, -float(scores.mean()) / spread


@dataclass(frozen=True)
class _Pretence:
    """An old class pretended to be new.

    Args:
        scores: Shrinkage -> (E,) of the images it was not made from, and of unseen ones of other classes.
        rivals: (E,) highest logit of the other classes.
        is_new: (E,) whether they are of the class.
        share: (E,) weights, the same for each class.
    """

    scores: dict[float, Rows]
    rivals: Rows
    is_new: npt.NDArray[np.bool_]
    share: Rows


def _pretend(
    old: Rows, folds: Folds, known: Rows, half: npt.NDArray[np.int64], *, shots: int, rng: np.random.Generator
) -> Iterator[_Pretence]:
    labels = folds.labels
    for fold in np.unique(half):
        for label in rng.permutation(np.unique(labels))[:PRETENDED]:
            own, others = np.flatnonzero(labels == label), labels != label
            rest, held = others & (half != fold), np.flatnonzero(others & (half == fold))
            if len(np.unique(folds.groups[own])) < 2 or not rest.any() or not len(held):
                continue
            within = _Within(old[rest], labels[rest])
            for _ in range(DRAWS):
                groups = rng.permutation(np.unique(folds.groups[own]))
                chosen = own[np.isin(folds.groups[own], groups[: min(shots, len(groups) - 1)])]
                rows = np.concatenate([held, own[~np.isin(folds.groups[own], folds.groups[chosen])]])
                mean = old[rng.permutation(chosen)[:shots]].mean(axis=0)
                scores = {}
                for shrinkage in SHRINKAGES:
                    direction, level = within.discriminant(mean, shrinkage, old[held])
                    scores[shrinkage] = old[rows] @ direction + level
                # Of an image of a new class the highest logit cannot be below the mean; without its own class's it can.
                rivals = np.maximum(np.delete(known[rows], label, axis=1).max(axis=1), known[rows].mean(axis=1))
                yield _Pretence(
                    scores,
                    rivals,
                    labels[rows] == label,
                    1 / np.bincount(labels[rows])[labels[rows]],
                )


def _calibrate(trials: Sequence[_Pretence]) -> tuple[float, float, float, float]:
    """Shrinkage, length and shift of the score that make it likeliest to win where it should, and how often it does."""
    rivals = np.concatenate([trial.rivals for trial in trials])
    is_new = np.concatenate([trial.is_new for trial in trials])
    share = np.concatenate([trial.share for trial in trials])
    fits = {}
    for shrinkage in SHRINKAGES:
        score = np.concatenate([trial.scores[shrinkage] for trial in trials])
        fits[shrinkage] = (*_fit_line(score, rivals, is_new, share / share.sum()), score)
    best = min(fits, key=lambda shrinkage: fits[shrinkage][2])
    length, shift, _, score = fits[best]
    recognised = length * score + shift > rivals
    return best, length, shift, float(np.average(recognised[is_new], weights=share[is_new]))


def _fit_line(score: Rows, rivals: Rows, is_new: npt.NDArray[np.bool_], share: Rows) -> tuple[float, float, float]:
    """Length and shift of a score, and the negative log-likelihood of its wins and losses against the rivals."""

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        length = np.exp(point[0])
        signed = np.where(is_new, 1.0, -1.0) * (length * score + point[1] - rivals)
        slope = share * np.where(is_new, -1.0, 1.0) / (1 + np.exp(np.clip(signed, -500, 500)))
        value = float(share @ np.logaddexp(0, -signed))
        return value, np.array([float(slope @ score) * length, float(slope.sum())])

    start = np.array([np.log(max(float(rivals.std()), 1e-3)), float(rivals.mean())])
    from scipy.optimize import minimize  # here: importing transferkit stays light

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(start[0] - 5, start[0] + 5), (None, None)])
    return float(np.exp(found.x[0])), float(found.x[1]), float(found.fun)
