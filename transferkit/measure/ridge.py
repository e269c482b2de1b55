"""The closed-form probe: ridge regression on one-hot targets, its penalty chosen by exact cross-validation.

With features Z (weighted-centred, rows scaled by the square root of their weight) and one eigendecomposition
Z'Z = V diag(s) V', every penalty p gives in closed form

    scores       T (s + p)^-1 T'Y          with T = Z V, so that T'T = diag(s)
    hat matrix   H = T (s + p)^-1 T' + w^1/2 w'^1/2 / sum(w)
    residuals of the images F when they are left out together     (I - H_FF)^-1 (Y - scores)_F

exactly as if the images F had been left out and the rest solved again (the intercept is free, so centring on all images
changes nothing; the features' scale is taken as given). With fewer images than features the same T comes from the
N x N Gram matrix.

F holds one image of each class. Leaving out a single image makes its class alone one smaller and the answer lean
towards the others: at 5 images per class that costs 12 points of accuracy on average over our tasks, where leaving out
one of each costs the 3 points that 4 images per class really are worse. Where classes are large both agree, and single
images are left out, which is cheaper.

References:
    Allen, Technometrics 1974 (PRESS); Rifkin and Lippert, MIT-CSAIL-TR-2007-025; An, Liu and Venkatesh, Pattern
    Recognition 2007, for groups left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from transferkit.types import JOINED

__all__ = [
    "MAX_RANK",
    "PENALTIES",
    "Chunks",
    "Coordinates",
    "RidgeHead",
    "RidgePath",
    "ScaledRows",
    "fit_ridge",
    "principal_coordinates",
    "ridge_paths",
    "scale_rows",
]

Array = npt.NDArray[np.floating[Any]]
Chunks = Callable[[], Iterable[npt.NDArray[np.float32]]]
"""Called for each pass over the images: yields (n, D) float32 rows, in the order of the labels."""

PENALTIES = 10.0 ** np.arange(-2, 3.01, 0.5)
"""Candidates. The best one is near 1 whatever N and D, since every stage is scaled to total variance 1. Below 0.01
single precision would show in the held-back errors."""

MAX_RANK = 2048
"""Above this many images and features at once, stages are joined by their leading principal components, so that
neither time nor memory grows with N. Chosen so that the eigendecomposition stays near one second on two cores."""

FOLD_SIZE = 128
"""Images left out together at most; with more classes than this, of some of them at a time. The equations cost
FOLD_SIZE^2 operations per image and penalty."""

SINGULAR = 1e-6
"""Where the others say nothing about an image that is left out, its residual is held below 1 / SINGULAR."""

TIE = 1e-6
"""Lead below which an answer is none: features that say nothing must not be right by rounding."""

LARGE_CLASS = 100
"""Mean images per class from which single images are left out: one image less moves a class by 1 % then."""

CONSTANT = 1e-6
"""A feature whose standard deviation is below this share of the largest one is constant and gets weight 0."""


@dataclass(frozen=True)
class RidgePath:
    """Held-back results for every penalty.

    Args:
        penalties: (P,).
        accuracy: (P,) held-back accuracy, in [0, 1].
        squared_error: (P,) held-back squared error per image, >= 0.
        right: (P, N) bool, whether each image is named right while it is left out.
    """

    penalties: Array
    accuracy: Array
    squared_error: Array
    right: npt.NDArray[np.bool_]

    @property
    def best(self) -> int:
        """Index of the penalty with the lowest squared error: smoother than accuracy, so chosen with less luck."""
        return int(np.argmin(self.squared_error))


@dataclass(frozen=True)
class RidgeHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        penalty: The one chosen.
        held_back: (N, K) scores of the training images, each while it was left out of the fit.
        path: Results for all penalties.
    """

    weight: Array
    bias: Array
    penalty: float
    held_back: Array
    path: RidgePath


@dataclass(frozen=True)
class _Problem:
    """Targets and weights, centred and scaled once for all stages."""

    labels: npt.NDArray[np.int64]
    classes: int
    weights: npt.NDArray[np.float64]  # (N,), mean 1
    fold_size: int  # images left out together

    @property
    def roots(self) -> npt.NDArray[np.float32]:
        return np.sqrt(self.weights).astype(np.float32)[:, None]

    @property
    def base(self) -> npt.NDArray[np.float64]:
        """(K,) weighted class shares: what is predicted without any feature."""
        sums = np.bincount(self.labels, weights=self.weights, minlength=self.classes)
        return np.asarray(sums / self.weights.sum(), dtype=np.float64)

    def targets(self, rows: slice) -> npt.NDArray[np.float32]:
        """(n, K) one-hot, centred, scaled by the root of the weights."""
        one_hot = np.eye(self.classes, dtype=np.float32)[self.labels[rows]]
        return (one_hot - self.base.astype(np.float32)) * self.roots[rows]


@dataclass(frozen=True)
class _Scaling:
    """z = (x - mean) * scale: centred, unit variance per feature, then total variance 1 per stage."""

    mean: Array
    scale: Array

    def apply(self, chunk: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (chunk - self.mean.astype(np.float32)) * self.scale.astype(np.float32)

    def emphasised(self, emphasis: Array | None) -> _Scaling:
        return self if emphasis is None else _Scaling(self.mean, self.scale * emphasis)


@dataclass(frozen=True)
class _Spectrum:
    """One eigendecomposition: how to get T, and diag(s) = T'T."""

    eigenvalues: npt.NDArray[np.float32]  # (R,)
    vectors: npt.NDArray[np.float32]  # (D, R) if not dual, else (N, R)
    dual: bool


def _rows(chunks: Chunks) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    start = 0
    for chunk in chunks():
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)


def _fit_scaling(chunks: Chunks, blocks: Mapping[str, slice], weights: npt.NDArray[np.float64]) -> _Scaling:
    """Weighted mean and deviation in one pass, shifted by the first chunk's mean against cancellation."""
    shift: Array | None = None
    total = squares = np.zeros(1)
    for rows, chunk in _rows(chunks):
        wide = chunk.astype(np.float64)
        shift = wide.mean(axis=0) if shift is None else shift
        wide -= shift
        total = total + weights[rows] @ wide
        squares = squares + weights[rows] @ (wide * wide)
    assert shift is not None
    offset = total / weights.sum()
    deviation = np.sqrt(np.maximum(squares / weights.sum() - offset**2, 0))
    scale = np.zeros_like(deviation)
    for block in blocks.values():
        inside = deviation[block]
        varies = inside > CONSTANT * max(inside.max(), np.finfo(np.float32).tiny)
        scale[block] = np.where(varies, 1 / np.where(varies, inside, 1), 0) / np.sqrt(max(varies.sum(), 1))
    return _Scaling(shift + offset, scale)


@dataclass(frozen=True)
class ScaledRows:
    """Some images' features as the probe sees them: unit variance per feature, then total variance 1 per stage.

    Args:
        values: (n, D) float32, (x - mean) * scale.
        mean, scale: (D,) float64; over all images, not only these. A constant feature has scale 0.
    """

    values: npt.NDArray[np.float32]
    mean: Array
    scale: Array


def scale_rows(
    chunks: Chunks, blocks: Mapping[str, slice], rows: npt.NDArray[np.int64], *, weights: Array
) -> ScaledRows:
    """Load the features of some images, scaled as `ridge_paths` scales them.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        blocks: Stage name -> its columns.
        rows: (n,) indices of the images wanted, in rising order.
        weights: (N,) > 0, one per image.
    """
    scaling = _fit_scaling(chunks, blocks, np.asarray(weights, dtype=np.float64))
    kept = []
    for span, chunk in _rows(chunks):
        here = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.stop)] - span.start
        kept.append(scaling.apply(chunk[here]))
    return ScaledRows(np.concatenate(kept), scaling.mean, scaling.scale)


def _eigen(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Eigenvalues (>= 0) and vectors of a symmetric matrix, which is overwritten."""
    values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    return np.maximum(values, 0), vectors


def _fold_size(labels: npt.NDArray[np.int64], classes: int) -> int:
    if len(labels) >= LARGE_CLASS * classes:
        return 1
    return max(1, min(classes, FOLD_SIZE, len(labels) // 2))


def _folds(labels: npt.NDArray[np.int64], size: int, key: Array) -> dict[int, npt.NDArray[np.int64]]:
    """Number of images n -> (F, n) positions of the folds of that many; no fold holds two images of a class.

    Within a class the images are dealt out in the order of `key`, (N,), so that their own order does not matter.
    """
    order = np.lexsort((key, labels))
    first = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), dtype=np.int64)
    turn[order] = np.arange(len(labels)) - first  # how many of its class come before
    queue = np.lexsort((labels, turn))
    starts = np.flatnonzero(np.diff(turn[queue], prepend=-1))
    folds: dict[int, list[npt.NDArray[np.int64]]] = {}
    for whole in np.split(queue, starts[1:]):
        for fold in np.array_split(whole, -(-len(whole) // size)):
            folds.setdefault(len(fold), []).append(fold)
    return {n: np.stack(found) for n, found in folds.items()}


class _LeaveOut:
    """Gathers the held-back results of one spectrum, chunk by chunk, for every penalty."""

    def __init__(self, problem: _Problem, eigenvalues: Array, correlation: Array, penalties: Array) -> None:
        self._problem = problem
        self._inverse = (1 / (eigenvalues[:, None] + penalties[None, :])).astype(np.float32)  # (R, P)
        self._correlation = correlation  # (R, K): T'Y
        self._penalties = penalties
        self._right = np.zeros((len(penalties), len(problem.labels)), dtype=bool)
        self._error = np.zeros(len(penalties))

    def scores(self, rows: slice, projected: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """(n, K) scores of these images, each while its fold is left out; a penalty at a time."""
        problem = self._problem
        targets = problem.targets(rows)
        folds = _folds(problem.labels[rows], problem.fold_size, (projected**2).sum(axis=1))
        one_hot = targets / problem.roots[rows] + problem.base.astype(np.float32)
        for p in range(len(self._penalties)):
            inverse = self._inverse[:, p]
            residual = targets - projected @ (self._correlation * inverse[:, None])
            for fold in folds.values():
                residual[fold] = self._left_out(projected[fold], inverse, problem.roots[rows][fold], residual[fold])
            yield one_hot - residual / problem.roots[rows]

    def _left_out(
        self,
        projected: npt.NDArray[np.float32],
        inverse: npt.NDArray[np.float32],
        roots: npt.NDArray[np.float32],
        residual: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """(F, n, K) residuals of F folds of n images once each fold is left out, from those with all images in."""
        intercept = roots @ roots.transpose(0, 2, 1) / np.float32(self._problem.weights.sum())
        if projected.shape[1] == 1:
            leverage = np.einsum("fnr,r->fn", projected**2, inverse)[..., None] + intercept
            return residual / np.maximum(1 - leverage, SINGULAR)
        hat = (projected * inverse) @ projected.transpose(0, 2, 1) + intercept
        system = (1 + SINGULAR) * np.eye(hat.shape[1]) - hat
        return np.linalg.solve(system, residual.astype(np.float64)).astype(np.float32)

    def add(self, rows: slice, projected: npt.NDArray[np.float32]) -> None:
        labels, weights = self._problem.labels[rows], self._problem.weights[rows]
        for p, scores in enumerate(self.scores(rows, projected)):
            own = (np.arange(len(labels)), labels)
            mine = scores[own]
            scores[own] -= 1
            self._error[p] += weights @ (scores * scores).sum(axis=1)
            scores[own] = -np.inf
            self._right[p, rows] = mine > scores.max(axis=1) + TIE

    def path(self) -> RidgePath:
        images = len(self._problem.labels)
        return RidgePath(self._penalties, self._right.mean(axis=1), self._error / images, self._right)


def _problem(labels: npt.NDArray[np.int64], classes: int, weights: Array | None) -> _Problem:
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    return _Problem(labels, classes, weights / weights.mean(), _fold_size(labels, classes))


def _load(chunks: Chunks, scaling: _Scaling, problem: _Problem) -> npt.NDArray[np.float32]:
    """(N, D) scaled features, rows scaled by the root of the weights."""
    return np.concatenate([scaling.apply(chunk) * problem.roots[rows] for rows, chunk in _rows(chunks)])


def _small_spectrum(part: npt.NDArray[np.float32]) -> _Spectrum:
    """Of features in memory, from whichever of Z Z' and Z'Z is smaller."""
    dual = part.shape[0] <= part.shape[1]
    return _Spectrum(*_eigen(part @ part.T if dual else part.T @ part), dual)


def _project_small(spectrum: _Spectrum, part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if spectrum.dual:
        return spectrum.vectors * np.sqrt(spectrum.eigenvalues)
    return part @ spectrum.vectors


def _columns(blocks: Mapping[str, slice], name: str) -> slice:
    return slice(None) if name == JOINED else blocks[name]


def _scan_small(
    features: npt.NDArray[np.float32], blocks: Mapping[str, slice], problem: _Problem
) -> dict[str, RidgePath]:
    rows = slice(0, len(features))
    targets = problem.targets(rows)
    paths = {}
    for name in [*blocks, JOINED]:
        part = features[:, _columns(blocks, name)]
        spectrum = _small_spectrum(part)
        projected = _project_small(spectrum, part)
        left_out = _LeaveOut(problem, spectrum.eigenvalues, projected.T @ targets, PENALTIES)
        left_out.add(rows, projected)
        paths[name] = left_out.path()
    return paths


def _stage_spectra(
    chunks: Chunks, blocks: Mapping[str, slice], scaling: _Scaling, problem: _Problem
) -> dict[str, _Spectrum]:
    """The spectrum of every stage from its covariance, features streamed."""
    moments = {name: np.zeros((_width(b), _width(b)), dtype=np.float32) for name, b in blocks.items()}
    for rows, chunk in _rows(chunks):
        scaled = scaling.apply(chunk) * problem.roots[rows]
        for name, block in blocks.items():
            moments[name] += scaled[:, block].T @ scaled[:, block]
    return {name: _Spectrum(*_eigen(moments.pop(name)), dual=False) for name in blocks}


def _width(block: slice) -> int:
    return int(block.stop - block.start)


def _leading(spectra: Mapping[str, _Spectrum], rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """Stage -> (D, r) its principal directions among the `rank` strongest of all stages."""
    pooled = np.concatenate([spectrum.eigenvalues for spectrum in spectra.values()])
    threshold = np.sort(pooled)[-min(rank, len(pooled))]
    return {name: spectrum.vectors[:, spectrum.eigenvalues >= threshold] for name, spectrum in spectra.items()}


@dataclass(frozen=True)
class _Streamed:
    """Spectra of streamed features: stages in their own directions, joined in the leading ones of all."""

    blocks: Mapping[str, slice]
    scaling: _Scaling
    problem: _Problem
    leading: Mapping[str, npt.NDArray[np.float32]]

    def reduce(self, rows: slice, chunk: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, R) joined features in the leading directions, rows scaled by the root of the weights."""
        scaled = self.scaling.apply(chunk) * self.problem.roots[rows]
        return np.concatenate([scaled[:, b] @ self.leading[name] for name, b in self.blocks.items()], axis=1)


def _joined_spectrum(chunks: Chunks, streamed: _Streamed) -> _Spectrum:
    rank = sum(directions.shape[1] for directions in streamed.leading.values())
    moment = np.zeros((rank, rank), dtype=np.float32)
    for rows, chunk in _rows(chunks):
        reduced = streamed.reduce(rows, chunk)
        moment += reduced.T @ reduced
    return _Spectrum(*_eigen(moment), dual=False)


def _projections(
    streamed: _Streamed, spectra: Mapping[str, _Spectrum], rows: slice, chunk: npt.NDArray[np.float32]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    scaled = streamed.scaling.apply(chunk) * streamed.problem.roots[rows]
    for name, spectrum in spectra.items():
        if name == JOINED:
            yield name, streamed.reduce(rows, chunk) @ spectrum.vectors
        else:
            stage = scaled[:, streamed.blocks[name]]
            yield name, np.asarray(stage @ spectrum.vectors, dtype=np.float32)


def _correlations(
    chunks: Chunks, streamed: _Streamed, spectra: Mapping[str, _Spectrum]
) -> dict[str, npt.NDArray[np.float32]]:
    """Stage -> (R, K) T'Y."""
    found = {
        name: np.zeros((len(spectrum.eigenvalues), streamed.problem.classes), dtype=np.float32)
        for name, spectrum in spectra.items()
    }
    for rows, chunk in _rows(chunks):
        targets = streamed.problem.targets(rows)
        for name, projected in _projections(streamed, spectra, rows, chunk):
            found[name] += projected.T @ targets
    return found


def _scan_streamed(
    chunks: Chunks, streamed: _Streamed, spectra: Mapping[str, _Spectrum]
) -> tuple[dict[str, RidgePath], dict[str, npt.NDArray[np.float32]]]:
    correlations = _correlations(chunks, streamed, spectra)
    gathered = {
        name: _LeaveOut(streamed.problem, spectrum.eigenvalues, correlations[name], PENALTIES)
        for name, spectrum in spectra.items()
    }
    for rows, chunk in _rows(chunks):
        for name, projected in _projections(streamed, spectra, rows, chunk):
            gathered[name].add(rows, projected)
    return {name: left_out.path() for name, left_out in gathered.items()}, correlations


def _stream(
    chunks: Chunks, blocks: Mapping[str, slice], scaling: _Scaling, problem: _Problem
) -> tuple[_Streamed, dict[str, _Spectrum]]:
    stages = _stage_spectra(chunks, blocks, scaling, problem)
    # The images of a fold need not be in one chunk.
    streamed = _Streamed(blocks, scaling, replace(problem, fold_size=1), _leading(stages, MAX_RANK))
    return streamed, {**stages, JOINED: _joined_spectrum(chunks, streamed)}


def _fits_memory(images: int, blocks: Mapping[str, slice]) -> bool:
    """Whether one eigendecomposition of rank <= MAX_RANK covers all stages joined exactly."""
    return min(images, sum(_width(block) for block in blocks.values())) <= MAX_RANK and images <= 4 * MAX_RANK


def ridge_paths(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    classes: int,
    weights: Array | None = None,
) -> dict[str, RidgePath]:
    """Held-back results of every stage on its own and of all joined; higher accuracy is better.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int in [0, K).
        blocks: Stage name -> its columns.
        classes: K.
        weights: (N,) > 0, one per image; None weighs all the same.

    Returns:
        Stage name -> path, then "joined".

    References:
        Deviation from the exact joined solution: above `MAX_RANK` images and features at once, stages enter the
        joined one by their leading principal components, `MAX_RANK` in all; each stage alone stays exact. Images are
        left out one by one then.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> features = (rng.normal(size=(40, 3)) + 4 * labels[:, None]).astype(np.float32)
        >>> paths = ridge_paths(lambda: [features], labels, {"a": slice(0, 1), "b": slice(1, 3)}, classes=2)
        >>> [(name, float(path.accuracy[path.best]) > 0.9) for name, path in paths.items()]
        [('a', True), ('b', True), ('joined', True)]
    """
    problem = _problem(labels, classes, weights)
    scaling = _fit_scaling(chunks, blocks, problem.weights)
    if _fits_memory(len(labels), blocks):
        return _scan_small(_load(chunks, scaling, problem), blocks, problem)
    streamed, spectra = _stream(chunks, blocks, scaling, problem)
    return _scan_streamed(chunks, streamed, spectra)[0]


def fit_ridge(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    classes: int,
    weights: Array | None = None,
    emphasis: Array | None = None,
) -> RidgeHead:
    """The ridge classifier on all the given stages joined, its penalty chosen by held-back squared error.

    Args:
        chunks, labels, blocks, classes, weights: As for `ridge_paths`.
        emphasis: (D,) >= 0, a further factor of each scaled feature; 0 leaves it out. If it was learnt from the same
            labels, the held-back scores flatter.

    Returns:
        A head in the units of the raw features.
    """
    problem = _problem(labels, classes, weights)
    scaling = _fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    solve = _fit_small if _fits_memory(len(labels), blocks) else _fit_streamed
    slope, scores, path = solve(chunks, blocks, scaling, problem)
    weight = (slope.astype(np.float64) * scaling.scale[:, None]).T
    bias = problem.base - weight @ scaling.mean
    return RidgeHead(weight, bias, float(path.penalties[path.best]), scores, path)


_Fitted = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], RidgePath]


def _fit_small(chunks: Chunks, blocks: Mapping[str, slice], scaling: _Scaling, problem: _Problem) -> _Fitted:
    features = _load(chunks, scaling, problem)
    rows = slice(0, len(features))
    spectrum = _small_spectrum(features)
    projected = _project_small(spectrum, features)
    targets = problem.targets(rows)
    correlation = projected.T @ targets
    left_out = _LeaveOut(problem, spectrum.eigenvalues, correlation, PENALTIES)
    left_out.add(rows, projected)
    path = left_out.path()
    inverse = 1 / (spectrum.eigenvalues + np.float32(path.penalties[path.best]))
    if spectrum.dual:
        slope = features.T @ (spectrum.vectors @ (inverse[:, None] * (spectrum.vectors.T @ targets)))
    else:
        slope = spectrum.vectors @ (inverse[:, None] * correlation)
    return slope, _best_scores(left_out, path, rows, projected), path


def _best_scores(
    left_out: _LeaveOut, path: RidgePath, rows: slice, projected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    for p, scores in enumerate(left_out.scores(rows, projected)):
        if p == path.best:
            return scores
    raise AssertionError("the best penalty is one of the candidates")


def _fit_streamed(chunks: Chunks, blocks: Mapping[str, slice], scaling: _Scaling, problem: _Problem) -> _Fitted:
    streamed, spectra = _stream(chunks, blocks, scaling, problem)
    spectrum = spectra[JOINED]
    paths, correlations = _scan_streamed(chunks, streamed, {JOINED: spectrum})
    path, correlation = paths[JOINED], correlations[JOINED]
    best = path.penalties[path.best : path.best + 1]
    left_out = _LeaveOut(problem, spectrum.eigenvalues, correlation, best)
    scores = np.concatenate(
        [next(left_out.scores(rows, streamed.reduce(rows, chunk) @ spectrum.vectors)) for rows, chunk in _rows(chunks)]
    )
    inner = spectrum.vectors @ (correlation / (spectrum.eigenvalues[:, None] + np.float32(best[0])))
    edges = np.cumsum([streamed.leading[name].shape[1] for name in blocks])[:-1]
    slope = np.zeros((len(scaling.mean), problem.classes), dtype=np.float32)
    for (name, block), part in zip(blocks.items(), np.split(inner, edges), strict=True):
        slope[block] = streamed.leading[name] @ part
    return slope, scores, path


@dataclass(frozen=True)
class Coordinates:
    """The joined features in their own principal directions: the same geometry in no more than min(N, D) numbers.

    Args:
        values: (N, R) float32, (x - mean) @ basis.
        mean: (D,) float64.
        basis: (D, R) float64; includes the scaling of features and stages.
    """

    values: npt.NDArray[np.float32]
    mean: Array
    basis: Array

    def to_raw(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """A linear classifier on `values`, (K, R) and (K,), as one on raw features, (K, D) and (K,)."""
        raw = weight @ self.basis.T
        return raw, bias - raw @ self.mean


def principal_coordinates(
    chunks: Chunks, images: int, blocks: Mapping[str, slice], *, emphasis: Array | None = None
) -> Coordinates:
    """Principal coordinates of all given stages joined, each scaled to total variance 1.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        images: N.
        blocks: Stage name -> its columns.
        emphasis: (D,) >= 0, a further factor of each scaled feature, as for `fit_ridge`.
    """
    problem = _problem(np.zeros(images, dtype=np.int64), 1, None)
    scaling = _fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    if _fits_memory(images, blocks):
        features = _load(chunks, scaling, problem)
        spectrum = _small_spectrum(features)
        values = _project_small(spectrum, features)
        if spectrum.dual:
            # Of features without any spread all eigenvalues are 0.
            least = max(1e-6 * spectrum.eigenvalues.max(), np.finfo(np.float32).tiny)
            inverse = 1 / np.sqrt(np.maximum(spectrum.eigenvalues, least))
            directions = features.T @ (spectrum.vectors * inverse)
        else:
            directions = spectrum.vectors
    else:
        stages = _stage_spectra(chunks, blocks, scaling, problem)
        streamed = _Streamed(blocks, scaling, problem, _leading(stages, MAX_RANK))
        values = np.concatenate([streamed.reduce(rows, chunk) for rows, chunk in _rows(chunks)])
        directions = np.zeros((len(scaling.mean), values.shape[1]), dtype=np.float32)
        start = 0
        for name, block in blocks.items():
            leading = streamed.leading[name]
            directions[block, start : start + leading.shape[1]] = leading
            start += leading.shape[1]
    return Coordinates(values, scaling.mean, directions.astype(np.float64) * scaling.scale[:, None])
