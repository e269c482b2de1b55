"""Supervised selection and weighting of the joined stages' features, in closed form, with unbiased cross-validation.

Every feature of the joined stages gets a weight, then the least relevant ones are dropped:

    stage     the share of the targets' variance that its own probe explains, leave-one-out
    feature   sqrt(F - 1), F the ratio of its variance between classes to that within classes; 0 for F <= 1
    relevance norm over classes of the feature's weights in the joined probe, times its own weight; the given share of
              features with the highest relevance is kept

Weights and relevance use the labels, so holding images back only from the final fit would be too optimistic. Reported
results are cross-validated with the complete selection repeated inside each training fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from transferkit.core.errors import DataError
from transferkit.core.limits import N_SPLITS
from transferkit.measure.curves import stratified_sample
from transferkit.measure.scaled_rows import Chunks, scale_rows
from transferkit.measure.target_scores import ResampledScore, resample_score, standardise_targets
from transferkit.measure.threads import in_parallel
from transferkit.records import Folds

__all__ = ["SELECTION_IMAGES", "SHARES", "Selection", "select_features"]

Array = npt.NDArray[np.floating[Any]]
Single = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

SHARES = (0.1, 0.5, 1.0)
"""Shares of the features to try. On 27 draws of ten tasks smaller ones were never chosen: the weights do the work."""

PENALTIES = (0.3, 1.5, 8.0)
"""Penalties to try with each: the features have the total variance of the joined stages, so the best is near 1, and
accuracy hardly changes within a factor of 2."""

MIDDLE = 1
"""Index of the penalty used to rank features."""

SELECTION_IMAGES = 1500
"""Maximum images used for selection, beyond which a stratified sample is used: time grows with the cube."""

FLOOR = 1e-3
"""Minimum share of explained variance of a stage: one that is useless alone may help others."""

CONSTANT = 1e-12
"""Total variance above which the kept features are not constant, as for a single image or equal images."""

RANK = 1e-4
"""Singular value of the targets, over the largest one, below which they depend on each other."""

PURE = 1e-6
"""Minimum share of a feature's variance within classes: keeps F finite."""


@dataclass(frozen=True)
class Selection:
    """Selected and weighted features, with cross-validated results.

    Args:
        emphasis: (D,) float64 >= 0, factor on each feature as scaled by the joined probe; 0 drops it.
        share: Share of features kept by relevance, in (0, 1].
        penalty: Ridge penalty chosen with it.
        rows: (n,) indices of the images used: all, or a stratified sample.
        folds: Which of them were held back together.
        counting: (n,) weight of each image in the results.
        scores: (n, K) scores of each image from the fit without its fold.
        joined_scores: The same for all stages joined, without weights or selection, in the same folds.
        truth: (n, T) labels or standardised numbers that the scores are of; None for classes.
    """

    emphasis: Array
    share: float
    penalty: float
    rows: Rows
    folds: Folds
    counting: npt.NDArray[np.float64]
    scores: Single
    joined_scores: Single
    truth: Array | None = None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) of these images."""
        return self.folds.labels

    @property
    def known(self) -> bool:
        """Whether anything could be held back; else all results are NaN."""
        return bool(self.counting.any())

    @property
    def kept(self) -> int:
        """Number of features kept."""
        return int(np.count_nonzero(self.emphasis))

    @property
    def accuracy(self) -> float:
        """Cross-validated accuracy, with selection inside each training fold, in [0, 1]; of labels or numbers their
        score."""
        if self.folds.targets is not None:
            return self._resampled(self.scores).score
        return self._mean(self._hits(self.scores))

    @property
    def gain(self) -> float:
        """Cross-validated accuracy minus that of the joined stages in the same folds; above 0 selection helps."""
        if self.folds.targets is not None:
            return self._resampled(self.scores).score - self._resampled(self.joined_scores).score
        return self._mean(self._hits(self.scores) - self._hits(self.joined_scores))

    @property
    def gain_error(self) -> float:
        """Standard error of the paired difference `gain`, over groups of images."""
        if self.folds.targets is not None:
            return self._resampled(self.scores).gain_error(self._resampled(self.joined_scores))
        return self.folds.standard_error(self._hits(self.scores) - self._hits(self.joined_scores), self.counting)

    @property
    def squared_error(self) -> float:
        """Cross-validated squared error per image of the one-hot target, >= 0."""
        return self._error(self.scores)

    @property
    def error_gain(self) -> float:
        """`squared_error` minus that of the joined stages in the same folds; below 0 selection helps."""
        return self._error(self.scores) - self._error(self.joined_scores)

    def _hits(self, scores: Single) -> npt.NDArray[np.float64]:
        return (scores.argmax(axis=1) == self.labels).astype(np.float64)

    def _resampled(self, scores: Single) -> ResampledScore:
        assert self.folds.targets is not None
        assert self.truth is not None
        truth = replace(self.folds.targets, values=self.truth.astype(np.float64))
        return resample_score(truth, scores, self.folds, counting=self.counting)

    def _error(self, scores: Single) -> float:
        if self.folds.targets is not None:
            assert self.truth is not None
            return self._mean(((scores - self.truth) ** 2).sum(axis=1))
        one_hot = np.eye(scores.shape[1], dtype=np.float32)[self.labels]
        return self._mean(((scores - one_hot) ** 2).sum(axis=1))

    def _mean(self, values: npt.NDArray[np.floating[Any]]) -> float:
        return float(np.average(values, weights=self.counting)) if self.known else math.nan


@dataclass(frozen=True)
class _Images:
    """Scaled features of n images with their targets."""

    values: Single  # (n, D)
    labels: npt.NDArray[np.int64]
    one_hot: Single  # (n, K)
    weights: Single  # (n,), mean near 1
    blocks: Mapping[str, slice]
    is_classes: bool = True  # else `one_hot` is of labels or numbers

    def take(self, rows: Rows) -> _Images:
        return replace(
            self,
            values=self.values[rows],
            labels=self.labels[rows],
            one_hot=self.one_hot[rows],
            weights=self.weights[rows],
        )

    @cached_property
    def roots(self) -> Single:
        return np.sqrt(self.weights)[:, None]

    @cached_property
    def total(self) -> float:
        """Sum of the weights, > 0: a fit without images, as where all are copies of one, has means of 0."""
        return max(float(self.weights.sum()), float(np.finfo(np.float32).tiny))

    @cached_property
    def base(self) -> Single:
        """(K,) weighted class shares."""
        return np.asarray(self.weights @ self.one_hot / self.total, dtype=np.float32)

    @cached_property
    def targets(self) -> Single:
        """(n, K) centred, rows scaled by the root of the weights."""
        return (self.one_hot - self.base) * self.roots

    def centred(self) -> Single:
        """(n, D) features minus their weighted mean, rows scaled by the root of the weights."""
        mean = self.weights @ self.values / self.total
        return np.asarray((self.values - mean) * self.roots, dtype=np.float32)


@dataclass(frozen=True)
class _Fit:
    """A fit to some of n images, from their Gram matrix."""

    fitted: Rows
    images: _Images  # the fitted ones

    def centre(self, gram: Single) -> tuple[Single, Single]:
        """Centred, weighted Gram matrices: (m, m) of the fitted images; (n, m) of all with them, up to row shifts."""
        share = self.images.weights / self.images.weights.sum()
        columns = gram[:, self.fitted]
        means = share @ columns[self.fitted]
        shifted = (columns - means) * self.images.roots.T
        inner = shifted[self.fitted] - (columns[self.fitted] @ share - share @ means)[:, None] * self.images.roots.T
        return inner * self.images.roots, shifted

    def scores(self, gram: Single, penalties: tuple[float, ...]) -> Iterator[tuple[Single, Single]]:
        """Yield, for each penalty, the dual solution (m, K) and its scores (n, K) for all images."""
        inner, outer = self.centre(gram)
        for penalty in penalties:
            dual = _solve(inner, self.images.targets, penalty)
            # The solution is orthogonal to the row constants that `outer` omits.
            yield dual, outer @ dual + self.images.base


def _solve(matrix: Single, right: Single, penalty: float) -> Single:
    """(matrix + penalty I)^-1 right, for a positive semi-definite matrix."""
    shifted = matrix.copy()
    shifted[np.diag_indices(len(shifted))] += np.float32(penalty)
    factor = cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False), dtype=np.float32)


def _explained(part: Single, images: _Images) -> float:
    """Share of the targets' variance explained by a stage's ridge probe at penalty 1, leave-one-out."""
    targets, share = images.targets, images.weights / images.weights.sum()
    if len(part) <= part.shape[1]:
        inverse = _solve(part @ part.T, np.eye(len(part), dtype=np.float32), 1.0)
        residual, left = inverse @ targets, np.diagonal(inverse) - share
    else:
        back = _solve(part.T @ part, np.ascontiguousarray(part.T), 1.0)
        residual = targets - part @ (back @ targets)
        left = 1 - (part * back.T).sum(axis=1) - share
    error = ((residual / np.maximum(left, PURE)[:, None]) ** 2).sum()
    without = ((targets / np.maximum(1 - share, PURE)[:, None]) ** 2).sum()
    return float(np.clip(1 - error / max(float(without), PURE), FLOOR, 1))


def _class_signal(centred: Single, images: _Images) -> Single:
    """(D,) excess of each feature's F statistic over its chance value 1, >= 0."""
    if not images.is_classes:
        return _target_signal(centred, images)
    counts = images.weights @ images.one_hot
    present = int(np.count_nonzero(counts))
    spare = len(images.labels) - present
    if present < 2 or spare < 1:
        return np.ones(centred.shape[1], dtype=np.float32)
    sums = (images.one_hot * images.roots).T @ centred
    between = (sums**2 / np.where(counts > 0, counts, 1)[:, None]).sum(axis=0)
    total = (centred**2).sum(axis=0)
    within = np.maximum(total - between, PURE * total)
    statistic = np.divide(between * spare, within * (present - 1), out=np.zeros_like(total), where=within > 0)
    excess = np.maximum(statistic - 1, 0)
    return np.asarray(excess if excess.any() else np.where(total > 0, 1, 0), dtype=np.float32)


def _target_signal(centred: Single, images: _Images) -> Single:
    """(D,) the same where features are explained by labels or numbers instead of classes, by linear regression."""
    directions, sizes, _ = np.linalg.svd(images.targets.astype(np.float64), full_matrices=False)
    basis = directions[:, sizes > RANK * max(float(sizes.max(initial=0)), PURE)].astype(np.float32)
    spare = len(centred) - 1 - basis.shape[1]
    if not basis.shape[1] or spare < 1:
        return np.ones(centred.shape[1], dtype=np.float32)
    between = ((basis.T @ centred) ** 2).sum(axis=0)
    total = (centred**2).sum(axis=0)
    within = np.maximum(total - between, PURE * total)
    statistic = np.divide(between * spare, within * basis.shape[1], out=np.zeros_like(total), where=within > 0)
    excess = np.maximum(statistic - 1, 0)
    return np.asarray(excess if excess.any() else np.where(total > 0, 1, 0), dtype=np.float32)


def _factors(centred: Single, images: _Images) -> Single:
    """(D,) factor on each scaled feature; its square is the feature's weight."""
    factors = np.sqrt(np.sqrt(_class_signal(centred, images)))
    for block in images.blocks.values():
        factors[block] *= np.float32(math.sqrt(_explained(centred[:, block], images)))
    return factors


@dataclass(frozen=True)
class _Ranked:
    """Features sorted by decreasing relevance, without those of weight 0."""

    factors: Single  # (D,)
    order: Rows  # (R,)
    variances: Array  # (R,) of the weighted features, in that order
    stages: int

    @property
    def cuts(self) -> list[int]:
        """Number of features kept for each of `SHARES`."""
        return [max(1, math.ceil(share * len(self.order))) for share in SHARES]

    def scale(self, cut: int) -> float:
        """Factor that gives the kept features the total variance of the joined stages: 1 per stage."""
        total = float(self.variances[:cut].sum())
        return self.stages / total if total > CONSTANT else 1.0

    def grams(self, values: Single) -> Iterator[Single]:
        """Yield the (n, n) Gram matrix of the kept features for each of `SHARES`; each is built on the previous."""
        gram = np.zeros((len(values), len(values)), dtype=np.float32)
        start = 0
        for cut in self.cuts:
            columns = self.order[start:cut]
            part = values[:, columns] * self.factors[columns]
            gram += part @ part.T
            start = cut
            yield gram * np.float32(self.scale(cut))

    def emphasis(self, share: float) -> Array:
        """(D,) factor on each scaled feature; 0 for dropped ones."""
        cut = self.cuts[SHARES.index(share)]
        found = np.zeros(len(self.factors))
        found[self.order[:cut]] = self.factors[self.order[:cut]] * math.sqrt(self.scale(cut))
        return found


def _rank(images: _Images, dual: Single) -> _Ranked:
    """Weight and rank the features on the images of one fit; `dual` is its solution on all stages joined."""
    centred = images.centred()
    factors = _factors(centred, images)
    relevance = np.sqrt(((centred.T @ dual) ** 2).sum(axis=1)) * factors
    variances = (centred**2).sum(axis=0, dtype=np.float64) / images.total * factors**2
    order = np.argsort(-relevance, kind="stable")[: max(1, np.count_nonzero(variances))]
    return _Ranked(factors, order, np.maximum(variances[order], np.finfo(np.float32).tiny), len(images.blocks))


@dataclass(frozen=True)
class _HeldBack:
    """Scores of every image from the fit without its fold, for every candidate."""

    candidates: npt.NDArray[np.float32]  # (F, P, n, K)
    joined: npt.NDArray[np.float32]  # (P, n, K)


def _cross_validate(images: _Images, fold: Rows) -> _HeldBack:
    shape = images.one_hot.shape
    candidates = np.empty((len(SHARES), len(PENALTIES), *shape), dtype=np.float32)
    joined = np.empty((len(PENALTIES), *shape), dtype=np.float32)
    gram = images.values @ images.values.T

    def hold_back(held: int) -> None:
        fitted, rest = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        fit = _Fit(fitted, images.take(fitted))
        duals = []
        for p, (dual, scores) in enumerate(fit.scores(gram, PENALTIES)):
            joined[p, rest] = scores[rest]
            duals.append(dual)
        ranked = _rank(fit.images, duals[MIDDLE])
        for f, kept in enumerate(ranked.grams(images.values)):
            for p, (_, scores) in enumerate(fit.scores(kept, PENALTIES)):
                candidates[f, p, rest] = scores[rest]

    in_parallel(hold_back, range(int(fold.max()) + 1))
    return _HeldBack(candidates, joined)


def _errors(scores: npt.NDArray[np.float32], images: _Images, counting: npt.NDArray[np.float64]) -> Array:
    """Weighted squared error of (..., n, K) scores, per image."""
    squares = ((scores - images.one_hot) ** 2).sum(axis=-1)
    return np.asarray(squares @ (images.weights * counting) / counting.sum())


def select_features(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    classes: int,
    weights: Array | None = None,
    folds: Folds | None = None,
    seed: int = 0,
) -> Selection:
    """Weight the features of all stages joined and drop useless ones; tested by 5-fold cross-validation.

    Share of features and penalty minimise the cross-validated squared error; ties go to more features.
    With n = min(N, 1500) images, D features and m = 0.8 n, about 6 n^2 D + 30 m^3 operations, times two.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int in [0, K).
        blocks: Stage name -> its columns.
        classes: K.
        weights: (N,) > 0, one per image; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others. If nothing can be
            held back, all features are kept, at the middle penalty.
        seed: Determines the folds, and the sample if there are more than 1,500 images.

    Raises:
        DataError: If there are fewer than two images.

    References:
        Evci et al., ICML 2022 (Head2Toe): all layers joined, relevance of a feature by the norm over the classes of
        its weights, the best share kept. Deviations: the relevance comes from the closed-form ridge solution instead
        of a trained group lasso; and features and stages are weighted, which is what helps: with relevance alone
        cross-validation kept nearly all features and accuracy did not change. The F statistic is Fisher's.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 40)
        >>> noise = rng.normal(size=(80, 60))
        >>> noise[:, 7] += 3 * labels
        >>> chosen = select_features(lambda: [noise.astype(np.float32)], labels, {"a": slice(0, 60)}, classes=2)
        >>> int(chosen.emphasis.argmax()), chosen.accuracy > 0.85, chosen.gain > 0
        (7, True, True)
    """
    images = len(labels)
    if images < 2:
        raise DataError(f"Feature selection needs at least 2 images, got {images}.")
    rng = np.random.default_rng(seed)
    weights = np.ones(images) if weights is None else weights / weights.mean()
    limit = max(SELECTION_IMAGES, len(np.unique(labels)))
    rows = stratified_sample(labels, limit, rng) if images > limit else np.arange(images)
    values = scale_rows(chunks, blocks, rows, weights=weights).values
    alike = (Folds.alone(labels) if folds is None else folds).take(rows)
    one_hot = _truth(alike, classes, weights[rows])
    known = _Images(
        values, labels[rows], one_hot, weights[rows].astype(np.float32), blocks, is_classes=alike.targets is None
    )
    fold = alike.assign_splits(min(N_SPLITS, len(rows)), seed=seed)
    counting = alike.counting(fold)
    held_back = _cross_validate(known, fold)
    share, penalty, joined = _best(held_back, known, counting)
    everyone = _Fit(np.arange(len(rows)), known)
    dual, _ = next(everyone.scores(values @ values.T, PENALTIES[MIDDLE : MIDDLE + 1]))
    return Selection(
        emphasis=_rank(known, dual).emphasis(SHARES[share]),
        share=SHARES[share],
        penalty=PENALTIES[penalty],
        rows=rows,
        folds=alike,
        counting=counting,
        scores=held_back.candidates[share, penalty],
        joined_scores=held_back.joined[joined],
        truth=None if alike.targets is None else one_hot,
    )


def _truth(folds: Folds, classes: int, weights: Array) -> Single:
    """(n, K) one-hot classes, or labels or standardised numbers."""
    if folds.targets is None:
        return np.eye(classes, dtype=np.float32)[folds.labels]
    return standardise_targets(folds.targets, weights)[0].astype(np.float32)


def _best(held_back: _HeldBack, images: _Images, counting: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """Indices of the share and the penalty with the lowest error, and of the penalty of the joined stages."""
    if not counting.any():
        return len(SHARES) - 1, MIDDLE, MIDDLE
    errors = _errors(held_back.candidates, images, counting)
    lowest = errors.min(axis=1)
    # Ties within single precision go to the larger share.
    share = int(np.flatnonzero(lowest <= lowest.min() * (1 + PURE))[-1])
    return share, int(errors[share].argmin()), int(_errors(held_back.joined, images, counting).argmin())
