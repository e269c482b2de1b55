"""Learning curves of the ridge probe for every stage and for all joined, from one Gram matrix per stage.

A ridge fit to n of the images needs only their n x n corner of the Gram matrix G = Z Z' (Z: scaled features). With
targets Y and penalty p, and the intercept free,

    (G + p W^-1) A = Y - 1 b',   b such that 1'A = 0        scores of the rest   G[rest, n] A + 1 b'

so G is computed once per stage and each fit costs a Cholesky factorisation. Each fit is tested on the images
it was not given; a test split is never used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from transferkit.core.errors import OptionError
from transferkit.measure.leave_out import RidgePath
from transferkit.measure.scaled_rows import Chunks, scale_rows
from transferkit.measure.target_scores import resample_score, score_targets, standardise_targets
from transferkit.measure.threads import in_parallel
from transferkit.records import JOINED, CurvePoint, Folds

__all__ = ["learning_curves", "stratified_sample"]

Array = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

MAX_IMAGES = 1500
"""Maximum training images, beyond which a stratified sample is used: Gram matrices grow with the square."""

FIRST_PER_CLASS = 2
"""Images per class at the left end of a curve; with one, accuracy mostly reflects chance."""

STEP = 2.0
"""Maximum ratio of neighbouring sizes: accuracy is roughly linear in the logarithm of the size."""

FITTED_IMAGES = 1500
MIN_DRAWS, MAX_DRAWS = 3, 20
"""Number of draws per size: `FITTED_IMAGES` images in total, within these bounds, as small fits vary more and cost
less."""


@dataclass(frozen=True)
class _Draw:
    """Images of one fit, and the images it is tested on."""

    fitted: Rows
    rest: Rows


def stratified_sample(labels: npt.NDArray[np.int64], images: int, rng: np.random.Generator) -> Rows:
    """Sorted indices of a random sample that keeps class shares, with at least one image of each class.

    Args:
        labels: (N,) int >= 0.
        images: Size wanted, from the number of classes present to N.
        rng: Random generator.

    Raises:
        OptionError: If `images` is outside that range.

    Example:
        >>> labels = np.repeat([0, 1], [30, 10])
        >>> np.bincount(labels[stratified_sample(labels, 8, np.random.default_rng(0))]).tolist()
        [6, 2]
    """
    counts = np.bincount(labels)
    present = int(np.count_nonzero(counts))
    if not present <= images <= len(labels):
        raise OptionError(
            f"A stratified sample must have {present} (one per class) to {len(labels)} images, got {images}."
        )
    quota = counts * (images / len(labels))
    taken = np.maximum(np.floor(quota).astype(np.int64), counts > 0)
    while (short := images - int(taken.sum())) != 0:
        # Add an image to the class farthest below its share, or remove one from the class farthest above.
        step = 1 if short > 0 else -1
        open_ = taken < counts if short > 0 else taken > 1
        gap = np.where(open_, step * (quota - taken), -np.inf)
        taken[int(np.argmax(gap))] += step
    drawn = [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate(taken)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _sizes(labels: npt.NDArray[np.int64]) -> list[int]:
    """Geometric, from `FIRST_PER_CLASS` per class (or what there is) to half of the images."""
    present, last = len(np.unique(labels)), len(labels) // 2
    if last < present:
        return []
    first = min(FIRST_PER_CLASS * present, last)
    steps = math.ceil(math.log(last / first, STEP) - 1e-9)
    return sorted({round(size) for size in np.geomspace(first, last, steps + 1)})


def _draws(folds: Folds, size: int, rng: np.random.Generator) -> Iterator[_Draw]:
    """Random fits of that size; none if no image of another group is left to test them."""
    for _ in range(min(MAX_DRAWS, max(MIN_DRAWS, FITTED_IMAGES // size))):
        fitted = stratified_sample(folds.labels, size, rng)
        if len(np.unique(folds.groups)) < len(folds):
            fitted = _by_group(folds, np.bincount(folds.labels[fitted]), rng)
        rest = np.flatnonzero(~np.isin(folds.groups, folds.groups[fitted]))
        if len(rest):
            yield _Draw(fitted, rest)


def _by_group(folds: Folds, counts: Rows, rng: np.random.Generator) -> Rows:
    """A sample with these class counts that uses few groups, so that many are left for testing."""
    codes = np.unique(folds.groups, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((rng.permutation(int(codes.max()) + 1)[codes], folds.labels))
    ordered = folds.labels[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[place < counts[ordered]])


def _accuracy(gram: Array, one_hot: Array, folds: Folds, weights: Array, draw: _Draw, penalty: float) -> float:
    """Accuracy of a fit to some of the images on the rest of them."""
    part = gram[np.ix_(draw.fitted, draw.fitted)]
    part[np.diag_indices(len(part))] += penalty / weights[draw.fitted]
    right = np.column_stack([one_hot[draw.fitted], np.ones(len(part), dtype=one_hot.dtype)])
    solved = cho_solve(
        cho_factor(part, lower=True, overwrite_a=True, check_finite=False), right, overwrite_b=True, check_finite=False
    )
    intercept = solved[:, :-1].sum(axis=0) / solved[:, -1].sum()
    dual = solved[:, :-1] - np.outer(solved[:, -1], intercept)
    scores = gram[np.ix_(draw.rest, draw.fitted)] @ dual + intercept
    if folds.targets is not None:
        # In the units that were fitted: both scores are the same in any.
        rest = replace(folds.targets.take(draw.rest), values=one_hot[draw.rest].astype(np.float64))
        return score_targets(rest, scores, folds.shares[draw.rest])
    right = scores.argmax(axis=1) == folds.labels[draw.rest]
    return float(np.average(right, weights=folds.shares[draw.rest]))


def _complete(stage: str, path: RidgePath, folds: Folds) -> Iterator[CurvePoint]:
    """The last point, from leave-out results with nearly all images; none if unknown."""
    if path.known and path.predicted is not None and folds.targets is not None:
        found = resample_score(folds.targets, path.predicted[path.best], folds, counting=path.counting)
        if found.known:
            measure = folds.targets.measure
            yield CurvePoint(stage=stage, images=len(folds), accuracy=found.score, error=found.error, measure=measure)
    elif path.known:
        accuracy = float(path.accuracy[path.best])
        independent = folds.independent(path.right[path.best], path.counting)
        error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / independent)
        yield CurvePoint(stage=stage, images=len(folds), accuracy=accuracy, error=error)


def _measure_of(folds: Folds) -> str:
    return "accuracy" if folds.targets is None else folds.targets.measure


def _truth(folds: Folds, classes: int, weights: Array) -> Array:
    """(N, K) one-hot classes, or labels or numbers, the latter in units of their standard deviation."""
    if folds.targets is None:
        return np.eye(classes, dtype=np.float32)[folds.labels]
    return standardise_targets(folds.targets, weights)[0].astype(np.float32)


def _grams(values: npt.NDArray[np.float32], blocks: Mapping[str, slice]) -> Iterator[tuple[str, Array]]:
    """Stage -> its Gram matrix, then the sum of all: "joined"."""
    joined = np.zeros((len(values), len(values)), dtype=np.float32)
    for name, block in blocks.items():
        part = np.ascontiguousarray(values[:, block])
        gram = part @ part.T
        joined += gram
        yield name, gram
    yield JOINED, joined


def learning_curves(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    paths: Mapping[str, RidgePath],
    *,
    weights: Array | None = None,
    folds: Folds | None = None,
    seed: int = 0,
) -> tuple[CurvePoint, ...]:
    """Accuracy of the ridge probe by number of training images; higher is better, a rising curve suggests more images.

    Stratified subsets of growing size are fitted and tested on the other training images; the same subsets are used
    for all stages, so that curves can be compared point by point. The last point of each is the path's held-back one.
    About n^2 D + S R n^3 / 3 operations for n = min(N, 1500), sizes up to n / 2, S stages and R draws.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int in [0, K).
        blocks: Stage name -> its columns.
        paths: Result of `ridge_paths` on the same features: each stage's penalty and last point.
        weights: (N,) > 0, one per image; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others. A fit is tested on
            images of groups that are not in it.
        seed: Determines the subsets.

    Returns:
        The points of the first stage from few images to all, then the next stage's, then those of "joined". With
        fewer than two images per class on average, only the last point of each; none if nothing can be held back.

    References:
        Deviation from refitting at each size: the penalty is the best one for all images, and features are scaled by
        all images (neither scale uses labels).

    Example:
        >>> from transferkit.measure.ridge import ridge_paths
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> features = (rng.normal(size=(40, 2)) + 4 * labels[:, None]).astype(np.float32)
        >>> paths = ridge_paths(lambda: [features], labels, {"a": slice(0, 2)}, classes=2)
        >>> points = learning_curves(lambda: [features], labels, {"a": slice(0, 2)}, paths)
        >>> [(point.stage, point.images) for point in points][:5]
        [('a', 4), ('a', 7), ('a', 12), ('a', 20), ('a', 40)]
    """
    rng = np.random.default_rng(seed)
    images = len(labels)
    weights = np.ones(images) if weights is None else weights / weights.mean()
    # More classes than `MAX_IMAGES` would leave no room for one image of each.
    limit = max(MAX_IMAGES, len(np.unique(labels)))
    rows = stratified_sample(labels, limit, rng) if images > limit else np.arange(images)
    values = scale_rows(chunks, blocks, rows, weights=weights).values
    folds = Folds.alone(labels) if folds is None else folds
    known, shares = folds.take(rows), weights[rows].astype(np.float32)
    one_hot = _truth(known, int(labels.max()) + 1, shares)
    draws = {size: list(_draws(known, size, rng)) for size in _sizes(known.labels)}
    draws = {size: some for size, some in draws.items() if len(some) >= MIN_DRAWS}
    points: list[CurvePoint] = []
    for stage, gram in _grams(values, blocks):
        penalty = float(paths[stage].penalties[paths[stage].best])
        try_out = partial(_accuracy, gram, one_hot, known, shares, penalty=penalty)
        every = iter(in_parallel(try_out, [draw for some in draws.values() for draw in some]))
        for size, some in draws.items():
            found = np.array([next(every) for _ in some])
            found = found[np.isfinite(found)]  # of labels, the rest of a draw may have none
            if len(found) < MIN_DRAWS:
                continue
            error = float(found.std(ddof=1) / math.sqrt(len(found)))
            point = CurvePoint(
                stage=stage, images=size, accuracy=float(found.mean()), error=error, measure=_measure_of(folds)
            )
            points.append(point)
        points += _complete(stage, paths[stage], folds)
    return tuple(points)
