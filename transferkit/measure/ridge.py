"""The closed-form probe: ridge regression on one-hot targets, with the penalty chosen by exact cross-validation.

With features Z (weighted-centred, rows scaled by the square root of their weight) and one eigendecomposition
Z'Z = V diag(s) V', every penalty p gives in closed form

    scores       T (s + p)^-1 T'Y          with T = Z V, so that T'T = diag(s)
    hat matrix   H = T (s + p)^-1 T' + w^1/2 w'^1/2 / sum(w)
    residuals of the images F when they are left out together     (I - H_FF)^-1 (Y - scores)_F

exactly as if the images F had been left out and the rest refitted (the intercept is free, so centring on all images
changes nothing; the features' scale is not refitted). With fewer images than features the same T is computed from the
N x N Gram matrix.

`Folds.together` defines the sets F: whole groups, one of each class if classes are small. Leaving out a single image
shrinks only its own class and biases the prediction towards the others: at 5 images per class that costs 12 points of
accuracy on average over our tasks, whereas leaving out one of each costs the 3 points by which 4 images per class are
really worse. If a set F has more images than there are directions, refitting is cheaper: its moments are subtracted
from those of all images, and one eigendecomposition of the rest serves every penalty.

References:
    Allen, Technometrics 1974 (PRESS); Rifkin and Lippert, MIT-CSAIL-TR-2007-025; An, Liu and Venkatesh, Pattern
    Recognition 2007, for groups left out together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transferkit.measure.leave_out import LeaveOut, RidgePath, RidgeProblem, eigen, moment_type
from transferkit.measure.scaled_rows import Array, Chunks, Scaling, fit_scaling, row_chunks, set_chunks
from transferkit.measure.target_scores import standardise_targets
from transferkit.measure.threads import in_parallel
from transferkit.records import JOINED, Folds

__all__ = [
    "MAX_RANK",
    "PENALTIES",
    "Coordinates",
    "RidgeHead",
    "fit_ridge",
    "principal_coordinates",
    "ridge_paths",
]


PENALTIES = 10.0 ** np.arange(-2, 3.01, 0.5)
"""Candidates. The best one is near 1 for any N and D, since every stage is scaled to total variance 1. Below 0.01
single precision would affect the held-back errors."""

MAX_RANK = 2048
"""Above this many images and features at once, stages are joined by their leading principal components, so that
neither time nor memory grows with N. Chosen so that the eigendecomposition stays near one second on two cores."""

KEPT_SCORES = 20_000_000
"""Maximum held-back scores (N K) that a fit returns; beyond, those of evenly spaced images."""


@dataclass(frozen=True)
class RidgeHead:
    """A fitted linear classifier, in the units of the raw features.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
        penalty: The chosen penalty.
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
class _Spectrum:
    """One eigendecomposition, which gives T and diag(s) = T'T."""

    eigenvalues: npt.NDArray[np.float32]  # (R,)
    vectors: npt.NDArray[np.float32]  # (D, R) if not dual, else (N, R)
    dual: bool


def _problem(
    labels: npt.NDArray[np.int64], classes: int, weights: Array | None, folds: Folds | None = None
) -> RidgeProblem:
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    folds = Folds.alone(labels) if folds is None else folds
    together = folds.together
    scaled: npt.NDArray[np.float64] = (weights / weights.mean()).astype(np.float64, copy=False)
    problem = RidgeProblem(labels, classes, scaled, together, folds.counting(together))
    if folds.targets is None:
        return problem
    values, centre, unit = standardise_targets(folds.targets, scaled)
    is_labels = folds.targets.is_labels
    return replace(
        problem,
        classes=values.shape[1],
        values=values,
        centre=None if is_labels else centre,
        unit=None if is_labels else unit,
    )


def _load(chunks: Chunks, scaling: Scaling, problem: RidgeProblem) -> npt.NDArray[np.float32]:
    """(N, D) scaled features, rows scaled by the root of the weights."""
    return np.concatenate([scaling.apply(chunk) * problem.roots[rows] for rows, chunk in row_chunks(chunks)])


def _small_spectrum(part: npt.NDArray[np.float32]) -> _Spectrum:
    """Spectrum of features in memory, from the smaller of Z Z' and Z'Z."""
    dual = part.shape[0] <= part.shape[1]
    return _Spectrum(*eigen(part @ part.T if dual else part.T @ part), dual)


def _project_small(spectrum: _Spectrum, part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if spectrum.dual:
        return spectrum.vectors * np.sqrt(spectrum.eigenvalues)
    return part @ spectrum.vectors


def _columns(blocks: Mapping[str, slice], name: str) -> slice:
    return slice(None) if name == JOINED else blocks[name]


def _scan_small(
    features: npt.NDArray[np.float32], blocks: Mapping[str, slice], problem: RidgeProblem
) -> dict[str, RidgePath]:
    rows = slice(0, len(features))
    targets = problem.targets(rows)

    def scan(name: str) -> RidgePath:
        part = features[:, _columns(blocks, name)]
        spectrum = _small_spectrum(part)
        projected = _project_small(spectrum, part)
        left_out = LeaveOut(problem, spectrum.eigenvalues, projected.T @ targets, PENALTIES)
        left_out.add(rows, projected)
        return left_out.path()

    # Longest first, so that no core waits for the last one.
    longest_first = sorted([*blocks, JOINED], key=lambda name: -math.inf if name == JOINED else -_width(blocks[name]))
    found = dict(zip(longest_first, in_parallel(scan, longest_first), strict=True))
    return {name: found[name] for name in [*blocks, JOINED]}


@dataclass(frozen=True)
class _Stages:
    """What one pass over streamed features gives: the spectrum of every stage, and how features and targets go
    together."""

    spectra: Mapping[str, _Spectrum]
    cross: Array  # (D, K): Z'Y


def _stage_spectra(chunks: Chunks, blocks: Mapping[str, slice], scaling: Scaling, problem: RidgeProblem) -> _Stages:
    precision = moment_type(len(problem.labels))
    moments = {name: np.zeros((_width(b), _width(b)), dtype=np.float64) for name, b in blocks.items()}
    cross = np.zeros((len(scaling.mean), problem.classes), dtype=np.float64)
    for rows, chunk in row_chunks(chunks):
        scaled = scaling.apply(chunk) * problem.roots[rows]
        cross += scaled.T @ problem.targets(rows)
        for name, block in blocks.items():
            moments[name] += scaled[:, block].T @ scaled[:, block]
    spectra = {name: _Spectrum(*eigen(moments.pop(name).astype(precision)), dual=False) for name in blocks}
    return _Stages(spectra, cross)


def _width(block: slice) -> int:
    return int(block.stop - block.start)


def _leading(spectra: Mapping[str, _Spectrum], rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """Stage -> (D, r) its principal directions among the `rank` strongest of all stages."""
    pooled = np.concatenate([spectrum.eigenvalues for spectrum in spectra.values()])
    threshold = np.sort(pooled)[-min(rank, len(pooled))]
    return {name: spectrum.vectors[:, spectrum.eigenvalues >= threshold] for name, spectrum in spectra.items()}


@dataclass(frozen=True)
class _Streamed:
    """Spectra of streamed features: each stage in its own directions, joined in the leading ones of all."""

    blocks: Mapping[str, slice]
    scaling: Scaling
    problem: RidgeProblem
    leading: Mapping[str, npt.NDArray[np.float32]]

    def reduce(self, rows: slice, chunk: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, R) joined features in the leading directions, rows scaled by the root of the weights."""
        scaled = self.scaling.apply(chunk) * self.problem.roots[rows]
        return np.concatenate([scaled[:, b] @ self.leading[name] for name, b in self.blocks.items()], axis=1)


def _held(chunks: Chunks, images: int) -> Chunks:
    """The chunks, computed once where they fit into memory."""
    if not _few(images):
        return chunks
    held = list(chunks())
    return lambda: held


@dataclass(frozen=True)
class _Joined:
    """All stages joined, in the leading directions of each."""

    spectrum: _Spectrum
    correlation: npt.NDArray[np.float32]  # (R, K): T'Y
    projected: Chunks  # T, in the order of the images


def _join(chunks: Chunks, streamed: _Streamed, cross: Array) -> _Joined:
    images = len(streamed.problem.labels)
    rank = sum(directions.shape[1] for directions in streamed.leading.values())
    reduced = _held(lambda: (streamed.reduce(rows, chunk) for rows, chunk in row_chunks(chunks)), images)
    moment = np.zeros((rank, rank), dtype=np.float64)
    for part in reduced():
        moment += part.T @ part
    spectrum = _Spectrum(*eigen(moment.astype(moment_type(images))), dual=False)
    # T'Y from Z'Y: no pass over the images.
    inner = np.concatenate([streamed.leading[name].T @ cross[block] for name, block in streamed.blocks.items()])
    correlation = (spectrum.vectors.T @ inner).astype(np.float32)
    return _Joined(spectrum, correlation, _held(lambda: (part @ spectrum.vectors for part in reduced()), images))


def _scan_joined(joined: _Joined, problem: RidgeProblem) -> RidgePath:
    left_out = LeaveOut(problem, joined.spectrum.eigenvalues, joined.correlation, PENALTIES)
    for rows, projected in set_chunks(joined.projected, problem.together):
        left_out.add(rows, projected)
    return left_out.path()


def _scan_stages(chunks: Chunks, streamed: _Streamed, stages: _Stages) -> dict[str, RidgePath]:
    problem, blocks = streamed.problem, streamed.blocks
    gathered = {
        name: LeaveOut(
            problem,
            spectrum.eigenvalues,
            (spectrum.vectors.T @ stages.cross[blocks[name]]).astype(np.float32),
            PENALTIES,
        )
        for name, spectrum in stages.spectra.items()
    }
    for rows, chunk in set_chunks(chunks, problem.together):
        scaled = streamed.scaling.apply(chunk) * problem.roots[rows]
        for name, spectrum in stages.spectra.items():
            gathered[name].add(rows, np.asarray(scaled[:, blocks[name]] @ spectrum.vectors, dtype=np.float32))
    return {name: left_out.path() for name, left_out in gathered.items()}


def _stream(
    chunks: Chunks, blocks: Mapping[str, slice], scaling: Scaling, problem: RidgeProblem
) -> tuple[_Streamed, _Stages]:
    stages = _stage_spectra(chunks, blocks, scaling, problem)
    return _Streamed(blocks, scaling, problem, _leading(stages.spectra, MAX_RANK)), stages


def _few(images: int) -> bool:
    """Whether features of all images may be held in memory, at the width of `MAX_RANK`."""
    return images <= 4 * MAX_RANK


def _fits_memory(images: int, blocks: Mapping[str, slice]) -> bool:
    """Whether one eigendecomposition of rank <= MAX_RANK covers all stages joined exactly."""
    return min(images, sum(_width(block) for block in blocks.values())) <= MAX_RANK and _few(images)


def ridge_paths(
    chunks: Chunks,
    labels: npt.NDArray[np.int64],
    blocks: Mapping[str, slice],
    *,
    classes: int,
    weights: Array | None = None,
    folds: Folds | None = None,
) -> dict[str, RidgePath]:
    """Held-back results of every single stage and of all joined; higher accuracy is better.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        labels: (N,) int in [0, K).
        blocks: Stage name -> its columns.
        classes: K.
        weights: (N,) > 0, one per image; None weighs all the same.
        folds: Which images are held back together; None: each image is independent of all others. With `targets` these
            are fitted instead of the classes, numbers in units of their standard deviation.

    Returns:
        Stage name -> path, then "joined".

    Raises:
        DataError: If features do not fit into memory and images that are left out together are not adjacent (use
            `folds.order`).

    References:
        Deviation from the exact joined solution: above `MAX_RANK` images and features at once, stages enter the
        joined one by their leading principal components, `MAX_RANK` in total; single stages remain exact.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> features = (rng.normal(size=(40, 3)) + 4 * labels[:, None]).astype(np.float32)
        >>> paths = ridge_paths(lambda: [features], labels, {"a": slice(0, 1), "b": slice(1, 3)}, classes=2)
        >>> [(name, float(path.accuracy[path.best]) > 0.9) for name, path in paths.items()]
        [('a', True), ('b', True), ('joined', True)]
    """
    problem = _problem(labels, classes, weights, folds)
    scaling = fit_scaling(chunks, blocks, problem.weights)
    if _fits_memory(len(labels), blocks):
        return _scan_small(_load(chunks, scaling, problem), blocks, problem)
    streamed, stages = _stream(chunks, blocks, scaling, problem)
    joined = _scan_joined(_join(chunks, streamed, stages.cross), problem)
    return {**_scan_stages(chunks, streamed, stages), JOINED: joined}


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
    """The ridge classifier on all given stages joined, with the penalty chosen by held-back squared error.

    Args:
        chunks, labels, blocks, classes, weights, folds: As for `ridge_paths`, also the errors.
        emphasis: (D,) >= 0, a further factor of each scaled feature; 0 leaves it out. If it was fitted to the
            same labels, the held-back scores are too optimistic.

    Returns:
        A head in the units of the raw features.
    """
    problem = _problem(labels, classes, weights, folds)
    scaling = fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    solve = _fit_small if _fits_memory(len(labels), blocks) else _fit_streamed
    slope, rows, scores, path = solve(chunks, blocks, scaling, problem)
    weight = (slope.astype(np.float64) * scaling.scale[:, None]).T
    bias = problem.base - weight @ scaling.mean
    if problem.unit is not None and problem.centre is not None:
        weight, bias = weight * problem.unit[:, None], bias * problem.unit + problem.centre
    if path.predicted is not None:
        scores = path.predicted[path.best][rows]
    return RidgeHead(weight, bias, float(path.penalties[path.best]), rows, scores, path)


_Fitted = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32], RidgePath]
"""Slope, rows with held-back scores, these scores, path."""


def _fit_small(chunks: Chunks, blocks: Mapping[str, slice], scaling: Scaling, problem: RidgeProblem) -> _Fitted:
    features = _load(chunks, scaling, problem)
    rows = slice(0, len(features))
    spectrum = _small_spectrum(features)
    projected = _project_small(spectrum, features)
    targets = problem.targets(rows)
    correlation = projected.T @ targets
    left_out = LeaveOut(problem, spectrum.eigenvalues, correlation, PENALTIES)
    left_out.add(rows, projected)
    path = left_out.path()
    inverse = 1 / (spectrum.eigenvalues + np.float32(path.penalties[path.best]))
    if spectrum.dual:
        slope = features.T @ (spectrum.vectors @ (inverse[:, None] * (spectrum.vectors.T @ targets)))
    else:
        slope = spectrum.vectors @ (inverse[:, None] * correlation)
    return slope, np.arange(len(features)), _best_scores(left_out, path, rows, projected), path


def _best_scores(
    left_out: LeaveOut, path: RidgePath, rows: slice, projected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    # A LeaveOut of the best penalty alone would be less work, but its last bits differ.
    for p, scores in enumerate(left_out.scores(rows, projected)):
        if p == path.best:
            return scores
    raise AssertionError("the best penalty is one of the candidates")


def _fit_streamed(chunks: Chunks, blocks: Mapping[str, slice], scaling: Scaling, problem: RidgeProblem) -> _Fitted:
    streamed, stages = _stream(chunks, blocks, scaling, problem)
    joined = _join(chunks, streamed, stages.cross)
    spectrum, correlation, path = joined.spectrum, joined.correlation, _scan_joined(joined, problem)
    best = path.penalties[path.best : path.best + 1]
    left_out = LeaveOut(problem, spectrum.eigenvalues, correlation, best)
    shown, scores = _shown_rows(len(problem.labels), problem.classes), []
    for rows, projected in set_chunks(joined.projected, problem.together):
        inside = shown[np.searchsorted(shown, rows.start) : np.searchsorted(shown, rows.stop)] - rows.start
        scores.append(next(left_out.scores(rows, projected))[inside])
    inner = spectrum.vectors @ (correlation / (spectrum.eigenvalues[:, None] + np.float32(best[0])))
    edges = np.cumsum([streamed.leading[name].shape[1] for name in blocks])[:-1]
    slope = np.zeros((len(scaling.mean), problem.classes), dtype=np.float32)
    for (name, block), part in zip(blocks.items(), np.split(inner, edges), strict=True):
        slope[block] = streamed.leading[name] @ part
    return slope, shown, np.concatenate(scores), path


def _shown_rows(images: int, classes: int) -> npt.NDArray[np.int64]:
    """Evenly spaced images whose scores are returned: all, unless that exceeds `KEPT_SCORES` numbers."""
    shown = min(images, max(1, KEPT_SCORES // classes))
    return np.unique(np.linspace(0, images - 1, shown).round().astype(np.int64))


@dataclass(frozen=True)
class Coordinates:
    """The joined features in their principal directions: the same geometry in at most min(N, D) dimensions.

    Args:
        values: (n, R) float32, (x - mean) @ basis.
        rows: (n,) indices of these images.
        mean: (D,) float64.
        basis: (D, R) float64; includes the scaling of features and stages.
    """

    values: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    mean: Array
    basis: Array

    def to_raw(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Convert a linear classifier on `values`, (K, R) and (K,), to one on raw features, (K, D) and (K,)."""
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
        rows: (n,) ascending indices of the images whose coordinates are returned; None: all. Directions are those of
            all images.
        emphasis: (D,) >= 0, a further factor of each scaled feature, as for `fit_ridge`.
    """
    problem = _problem(np.zeros(images, dtype=np.int64), 1, None)
    wanted = np.arange(images) if rows is None else rows
    scaling = fit_scaling(chunks, blocks, problem.weights).emphasised(emphasis)
    if _fits_memory(images, blocks):
        features = _load(chunks, scaling, problem)
        spectrum = _small_spectrum(features)
        values = _project_small(spectrum, features)[wanted]
        if spectrum.dual:
            # For constant features all eigenvalues are 0.
            least = max(1e-6 * spectrum.eigenvalues.max(), np.finfo(np.float32).tiny)
            inverse = 1 / np.sqrt(np.maximum(spectrum.eigenvalues, least))
            directions = features.T @ (spectrum.vectors * inverse)
        else:
            directions = spectrum.vectors
    else:
        streamed, _ = _stream(chunks, blocks, scaling, problem)
        reduced = []
        for span, chunk in row_chunks(chunks):
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
