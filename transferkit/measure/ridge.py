"""The closed-form probe: ridge regression on one-hot targets, its penalty chosen by exact cross-validation.

With features Z (weighted-centred, rows scaled by the square root of their weight) and one eigendecomposition
Z'Z = V diag(s) V', every penalty p gives in closed form

    scores       T (s + p)^-1 T'Y          with T = Z V, so that T'T = diag(s)
    hat matrix   H = T (s + p)^-1 T' + w^1/2 w'^1/2 / sum(w)
    residuals of the images F when they are left out together     (I - H_FF)^-1 (Y - scores)_F

exactly as if the images F had been left out and the rest solved again (the intercept is free, so centring on all images
changes nothing; the features' scale is taken as given). With fewer images than features the same T comes from the
N x N Gram matrix.

`Folds.together` says which images F holds: whole groups, one of each class where classes are small. Leaving out a
single image makes its class alone one smaller and the answer lean towards the others: at 5 images per class that costs
12 points of accuracy on average over our tasks, where leaving out one of each costs the 3 points that 4 images per
class really are worse. A set F of more images than there are directions is cheaper to refit without: then its moments
are taken off those of all images, and one eigendecomposition of the rest serves every penalty.

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

from transferkit.core.errors import DataError
from transferkit.records import JOINED, Folds

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

USUAL_PENALTY = 1.0
"""Taken where nothing can be held back, so that none can be chosen: the best one is near it whatever N and D."""

KEPT_SCORES = 20_000_000
"""Held-back scores that a fit returns, at most: those of evenly spaced images where N K is more."""

SINGLE_IMAGES = 16_384
"""Images above which moments are decomposed in double precision: their eigenvalues grow with N, and the rounding of a
larger one in single precision comes near the smallest penalty."""

SOLVED_AT_ONCE = 2**24
"""Numbers in the systems that are solved together: 64 MB."""

SINGULAR = 1e-6
"""Where the others say nothing about an image that is left out, its residual is held below 1 / SINGULAR."""

TIE = 1e-6
"""Lead below which an answer is none: features that say nothing must not be right by rounding."""

CONSTANT = 1e-6
"""A feature whose standard deviation is below this share of the largest one is constant and gets weight 0."""


@dataclass(frozen=True)
class RidgePath:
    """Held-back results for every penalty.

    Args:
        penalties: (P,).
        accuracy: (P,) held-back accuracy, in [0, 1]; NaN where nothing could be held back.
        squared_error: (P,) held-back squared error per image, >= 0; NaN likewise.
        right: (P, N) bool, whether each image is classified right while it is left out.
        counting: (N,) what each image counts in them (`Folds.counting`).
    """

    penalties: Array
    accuracy: Array
    squared_error: Array
    right: npt.NDArray[np.bool_]
    counting: npt.NDArray[np.float64]

    @property
    def known(self) -> bool:
        """Whether anything could be held back."""
        return bool(self.counting.any())

    @property
    def best(self) -> int:
        """Index of the penalty with the lowest squared error: smoother than accuracy, so chosen with less luck."""
        if not self.known:
            return int(np.argmin(np.abs(self.penalties - USUAL_PENALTY)))
        return int(np.argmin(self.squared_error))

    def sorted_back(self, order: npt.NDArray[np.int64]) -> RidgePath:
        """The same, its images in the order they had before they were taken in this one."""
        back = np.argsort(order)
        return replace(self, right=self.right[:, back], counting=self.counting[back])


@dataclass(frozen=True)
class RidgeHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        penalty: The one chosen.
        rows: (M,) indices of the images whose scores follow: all, unless those were more than `KEPT_SCORES`.
        held_back: (M, K) scores of these images, each while it was left out of the fit.
        path: Results for all penalties.
    """

    weight: Array
    bias: Array
    penalty: float
    rows: npt.NDArray[np.int64]
    held_back: Array
    path: RidgePath


@dataclass(frozen=True)
class _Problem:
    """Targets and weights, centred and scaled once for all stages."""

    labels: npt.NDArray[np.int64]
    classes: int
    weights: npt.NDArray[np.float64]  # (N,), mean 1
    together: npt.NDArray[np.int64]  # (N,), equal where images are left out together
    counting: npt.NDArray[np.float64]  # (N,), what each counts in held-back results

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


def _whole_sets(chunks: Chunks, together: npt.NDArray[np.int64]) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """The same chunks, cut so that none parts images that are left out together.

    Raises:
        DataError: If such images are not side by side.
    """
    starts = np.flatnonzero(np.diff(together, prepend=together[0] - 1))
    if len(starts) != len(np.unique(together)):
        raise DataError(
            "Images that are left out together must be side by side where features are streamed: take features, labels "
            "and folds in the order of `folds.order`."
        )
    starts = np.append(starts, len(together))
    start, held = 0, list[npt.NDArray[np.float32]]()
    for rows, chunk in _rows(chunks):
        held.append(chunk)
        cut = int(starts[np.searchsorted(starts, rows.stop, side="right") - 1])
        if cut > start:
            block = np.concatenate(held) if len(held) > 1 else chunk
            yield slice(start, cut), block[: cut - start]
            start, held = cut, [block[cut - start :]]


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


def _eigen(matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Eigenvalues (>= 0) and vectors of a symmetric matrix, which is overwritten."""
    values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    return np.maximum(values, 0).astype(np.float32), vectors.astype(np.float32, copy=False)


def _moment_type(images: int) -> type[np.floating[Any]]:
    return np.float32 if images <= SINGLE_IMAGES else np.float64


def _sets(together: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    """Number of images n -> (F, n) positions of the sets of that many."""
    order = np.argsort(together, kind="stable")
    starts = np.flatnonzero(np.diff(together[order], prepend=together[order[0]] - 1))
    sizes = np.diff(np.append(starts, len(together)))
    return {int(n): order[starts[sizes == n][:, None] + np.arange(n)] for n in np.unique(sizes)}


@dataclass(frozen=True)
class _Refit:
    """A fit to all images but those of one set, and what it makes of that set; for every penalty."""

    projected: npt.NDArray[np.float32]  # (n, R) of the set, in the directions of the others
    eigenvalues: npt.NDArray[np.float32]  # (R,) of the others
    correlation: Array  # (R, K) of the others
    base: Array  # (n, K) their mean target, times the root of the set's weights

    def residual(self, targets: npt.NDArray[np.float32], penalty: float) -> npt.NDArray[np.float32]:
        """(n, K) of the set's targets."""
        slope = self.correlation / (self.eigenvalues[:, None] + penalty)
        return np.asarray(targets - self.base - self.projected @ slope, dtype=np.float32)


class _LeaveOut:
    """Gathers the held-back results of one spectrum, chunk by chunk, for every penalty."""

    def __init__(self, problem: _Problem, eigenvalues: Array, correlation: Array, penalties: Array) -> None:
        self._problem = problem
        self._eigenvalues = eigenvalues
        self._inverse = (1 / (eigenvalues[:, None] + penalties[None, :])).astype(np.float32)  # (R, P)
        self._correlation = correlation  # (R, K): T'Y
        self._penalties = penalties
        self._right = np.zeros((len(penalties), len(problem.labels)), dtype=bool)
        self._error = np.zeros(len(penalties))

    def scores(self, rows: slice, projected: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """(n, K) scores of these images, each while its set is left out; a penalty at a time."""
        problem, rank = self._problem, projected.shape[1]
        targets, roots = problem.targets(rows), problem.roots[rows]
        sets = _sets(problem.together[rows])
        refits = [
            (one, self._without(projected[one], roots[one], targets[one]))
            for size, found in sets.items()
            if size > rank
            for one in found
        ]
        one_hot = targets / roots + problem.base.astype(np.float32)
        for p, penalty in enumerate(self._penalties):
            inverse = self._inverse[:, p]
            residual = targets - projected @ (self._correlation * inverse[:, None])
            for size, found in sets.items():
                at_once = max(1, SOLVED_AT_ONCE // size**2)
                for start in range(0, len(found) if size <= rank else 0, at_once):
                    some = found[start : start + at_once]
                    residual[some] = self._left_out(projected[some], inverse, roots[some], residual[some])
            for one, refit in refits:
                residual[one] = refit.residual(targets[one], float(penalty))
            yield one_hot - residual / roots

    def _without(
        self,
        projected: npt.NDArray[np.float32],
        roots: npt.NDArray[np.float32],
        targets: npt.NDArray[np.float32],
    ) -> _Refit:
        """The fit to the others of (n, R) images: T'T, T'Y and the means of all, less theirs.

        Both T and Y have the weighted mean 0 over all images, so that of the others follows from theirs.
        """
        wide, root, wanted = (part.astype(np.float64) for part in (projected, roots, targets))
        others = self._problem.weights.sum() - float((root**2).sum())
        mean, base = -(root.T @ wide) / others, -(root.T @ wanted) / others
        moment = np.diag(self._eigenvalues.astype(np.float64)) - wide.T @ wide - others * mean.T @ mean
        values, vectors = _eigen(moment)
        correlation = self._correlation - wide.T @ wanted - others * mean.T @ base
        inside = ((wide - root * mean) @ vectors).astype(np.float32)
        return _Refit(inside, values, vectors.T @ correlation, root * base)

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
        labels = self._problem.labels[rows]
        weights = self._problem.weights[rows] * self._problem.counting[rows]
        for p, scores in enumerate(self.scores(rows, projected)):
            own = (np.arange(len(labels)), labels)
            mine = scores[own]
            scores[own] -= 1
            self._error[p] += weights @ (scores * scores).sum(axis=1)
            scores[own] = -np.inf
            self._right[p, rows] = mine > scores.max(axis=1) + TIE

    def path(self) -> RidgePath:
        counting, images = self._problem.counting, float(self._problem.counting.sum())
        accuracy, error = np.full_like(self._error, np.nan), np.full_like(self._error, np.nan)
        if images:
            accuracy = self._right @ counting / images
            error = self._error / float(self._problem.weights @ counting)
        return RidgePath(self._penalties, accuracy, error, self._right, counting)


def _problem(
    labels: npt.NDArray[np.int64], classes: int, weights: Array | None, folds: Folds | None = None
) -> _Problem:
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    folds = Folds.alone(labels) if folds is None else folds
    together = folds.together
    return _Problem(labels, classes, weights / weights.mean(), together, folds.counting(together))


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
    precision = _moment_type(len(problem.labels))
    moments = {name: np.zeros((_width(b), _width(b)), dtype=np.float64) for name, b in blocks.items()}
    for rows, chunk in _rows(chunks):
        scaled = scaling.apply(chunk) * problem.roots[rows]
        for name, block in blocks.items():
            moments[name] += scaled[:, block].T @ scaled[:, block]
    return {name: _Spectrum(*_eigen(moments.pop(name).astype(precision)), dual=False) for name in blocks}


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
    moment = np.zeros((rank, rank), dtype=np.float64)
    for rows, chunk in _rows(chunks):
        reduced = streamed.reduce(rows, chunk)
        moment += reduced.T @ reduced
    return _Spectrum(*_eigen(moment.astype(_moment_type(len(streamed.problem.labels)))), dual=False)


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
        name: np.zeros((len(spectrum.eigenvalues), streamed.problem.classes), dtype=np.float64)
        for name, spectrum in spectra.items()
    }
    for rows, chunk in _rows(chunks):
        targets = streamed.problem.targets(rows)
        for name, projected in _projections(streamed, spectra, rows, chunk):
            found[name] += projected.T @ targets
    return {name: total.astype(np.float32) for name, total in found.items()}


def _scan_streamed(
    chunks: Chunks, streamed: _Streamed, spectra: Mapping[str, _Spectrum]
) -> tuple[dict[str, RidgePath], dict[str, npt.NDArray[np.float32]]]:
    correlations = _correlations(chunks, streamed, spectra)
    gathered = {
        name: _LeaveOut(streamed.problem, spectrum.eigenvalues, correlations[name], PENALTIES)
        for name, spectrum in spectra.items()
    }
    for rows, chunk in _whole_sets(chunks, streamed.problem.together):
        for name, projected in _projections(streamed, spectra, rows, chunk):
            gathered[name].add(rows, projected)
    return {name: left_out.path() for name, left_out in gathered.items()}, correlations


def _stream(
    chunks: Chunks, blocks: Mapping[str, slice], scaling: _Scaling, problem: _Problem
) -> tuple[_Streamed, dict[str, _Spectrum]]:
    stages = _stage_spectra(chunks, blocks, scaling, problem)
    streamed = _Streamed(blocks, scaling, problem, _leading(stages, MAX_RANK))
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
    folds: Folds | None = None,
) -> dict[str, RidgePath]:
    """Held-back results of every stage on its own and of all joined; higher accuracy is better.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int in [0, K).
        blocks: Stage name -> its columns.
        classes: K.
        weights: (N,) > 0, one per image; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others.

    Returns:
        Stage name -> path, then "joined".

    Raises:
        DataError: If features are too many for memory and images that are left out together are not side by side (take
            them in `folds.order`).

    References:
        Deviation from the exact joined solution: above `MAX_RANK` images and features at once, stages enter the
        joined one by their leading principal components, `MAX_RANK` in all; each stage alone stays exact.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> features = (rng.normal(size=(40, 3)) + 4 * labels[:, None]).astype(np.float32)
        >>> paths = ridge_paths(lambda: [features], labels, {"a": slice(0, 1), "b": slice(1, 3)}, classes=2)
        >>> [(name, float(path.accuracy[path.best]) > 0.9) for name, path in paths.items()]
        [('a', True), ('b', True), ('joined', True)]
    """
    problem = _problem(labels, classes, weights, folds)
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
    folds: Folds | None = None,
    emphasis: Array | None = None,
) -> RidgeHead:
    """The ridge classifier on all the given stages joined, its penalty chosen by held-back squared error.

    Args:
        chunks, labels, blocks, classes, weights, folds: As for `ridge_paths`, which raises what this raises.
        emphasis: (D,) >= 0, a further factor of each scaled feature; 0 leaves it out. If it was learnt from the same
            labels, the held-back scores flatter.

    Returns:
        A head in the units of the raw features.
    """
    problem = _problem(labels, classes, weights, folds)
    scaling = _fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    solve = _fit_small if _fits_memory(len(labels), blocks) else _fit_streamed
    slope, rows, scores, path = solve(chunks, blocks, scaling, problem)
    weight = (slope.astype(np.float64) * scaling.scale[:, None]).T
    bias = problem.base - weight @ scaling.mean
    return RidgeHead(weight, bias, float(path.penalties[path.best]), rows, scores, path)


_Fitted = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32], RidgePath]
"""Slope, rows whose held-back scores follow, these scores, path."""


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
    return slope, np.arange(len(features)), _best_scores(left_out, path, rows, projected), path


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
    shown, scores = _shown_rows(len(problem.labels), problem.classes), []
    for rows, chunk in _whole_sets(chunks, problem.together):
        inside = shown[np.searchsorted(shown, rows.start) : np.searchsorted(shown, rows.stop)] - rows.start
        scores.append(next(left_out.scores(rows, streamed.reduce(rows, chunk) @ spectrum.vectors))[inside])
    inner = spectrum.vectors @ (correlation / (spectrum.eigenvalues[:, None] + np.float32(best[0])))
    edges = np.cumsum([streamed.leading[name].shape[1] for name in blocks])[:-1]
    slope = np.zeros((len(scaling.mean), problem.classes), dtype=np.float32)
    for (name, block), part in zip(blocks.items(), np.split(inner, edges), strict=True):
        slope[block] = streamed.leading[name] @ part
    return slope, shown, np.concatenate(scores), path


def _shown_rows(images: int, classes: int) -> npt.NDArray[np.int64]:
    """Evenly spaced images whose scores are returned: all, unless these were more than `KEPT_SCORES` numbers."""
    shown = min(images, max(1, KEPT_SCORES // classes))
    return np.unique(np.linspace(0, images - 1, shown).round().astype(np.int64))


@dataclass(frozen=True)
class Coordinates:
    """The joined features in their own principal directions: the same geometry in no more than min(N, D) numbers.

    Args:
        values: (n, R) float32, (x - mean) @ basis.
        rows: (n,) indices of the images that these are.
        mean: (D,) float64.
        basis: (D, R) float64; includes the scaling of features and stages.
    """

    values: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    mean: Array
    basis: Array

    def to_raw(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """A linear classifier on `values`, (K, R) and (K,), as one on raw features, (K, D) and (K,)."""
        raw = weight @ self.basis.T
        return raw, bias - raw @ self.mean


def principal_coordinates(
    chunks: Chunks,
    images: int,
    blocks: Mapping[str, slice],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    emphasis: Array | None = None,
) -> Coordinates:
    """Principal coordinates of all given stages joined, each scaled to total variance 1.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        images: N.
        blocks: Stage name -> its columns.
        rows: (n,) indices, in rising order, of the images whose coordinates are wanted; None: all. Directions are those
            of all images.
        emphasis: (D,) >= 0, a further factor of each scaled feature, as for `fit_ridge`.
    """
    problem = _problem(np.zeros(images, dtype=np.int64), 1, None)
    wanted = np.arange(images) if rows is None else rows
    scaling = _fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    if _fits_memory(images, blocks):
        features = _load(chunks, scaling, problem)
        spectrum = _small_spectrum(features)
        values = _project_small(spectrum, features)[wanted]
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
        reduced = []
        for span, chunk in _rows(chunks):
            here = wanted[np.searchsorted(wanted, span.start) : np.searchsorted(wanted, span.stop)] - span.start
            reduced.append(streamed.reduce(span, chunk)[here])
        values = np.concatenate(reduced)
        directions = np.zeros((len(scaling.mean), values.shape[1]), dtype=np.float32)
        start = 0
        for name, block in blocks.items():
            leading = streamed.leading[name]
            directions[block, start : start + leading.shape[1]] = leading
            start += leading.shape[1]
    return Coordinates(values, wanted, scaling.mean, directions.astype(np.float64) * scaling.scale[:, None])
