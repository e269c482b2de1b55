"""Held-back scores of ridge regression at every penalty without refitting, leaving out sets of related images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from transferkit.measure.scaled_rows import Array

__all__ = [
    "DEFAULT_PENALTY",
    "SINGLE_IMAGES",
    "SINGULAR",
    "SOLVED_AT_ONCE",
    "TIE",
    "LeaveOut",
    "RidgePath",
    "RidgeProblem",
    "eigen",
    "moment_type",
]


DEFAULT_PENALTY = 1.0
"""Used if nothing can be held back, so that none can be chosen: the best one is near it for any N and D."""

SINGLE_IMAGES = 16_384
"""Images above which moments are decomposed in double precision: their eigenvalues grow with N, and rounding errors of
larger ones in single precision approach the smallest penalty."""

SOLVED_AT_ONCE = 2**24
"""Numbers in the systems solved in one batch: 64 MB."""

SINGULAR = 1e-6
"""Regularises the leave-out system: if the others determine nothing about an image, its residual stays finite."""

TIE = 1e-6
"""Smallest margin of a prediction: uninformative features must not be correct by rounding."""


@dataclass(frozen=True)
class RidgePath:
    """Held-back results for every penalty.

    Args:
        penalties: (P,).
        accuracy: (P,) held-back accuracy, in [0, 1]; NaN if nothing could be held back.
        squared_error: (P,) held-back squared error per image, >= 0; NaN likewise.
        right: (P, N) bool, whether each image is classified correctly while it is left out; of labels or numbers its
            merit, a float: 1 minus its squared error over the mean one of a constant prediction. `accuracy` is then R2.
        counting: (N,) weight of each image in them (`Folds.counting`).
        predicted: (P, N, T) of labels or numbers, in their unit, each while it was left out; labels relative to the
            mean of their fit, so that images of different fits can be ranked. None for classes.
    """

    penalties: Array
    accuracy: Array
    squared_error: Array
    right: npt.NDArray[Any]
    counting: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.floating] | None = None

    @property
    def known(self) -> bool:
        """Whether anything could be held back."""
        return bool(self.counting.any())

    @property
    def best(self) -> int:
        """Index of the penalty with the lowest squared error, which is smoother than accuracy."""
        if not self.known:
            return int(np.argmin(np.abs(self.penalties - DEFAULT_PENALTY)))
        return int(np.argmin(self.squared_error))

    def sorted_back(self, order: npt.NDArray[np.int64]) -> RidgePath:
        """The same, with the images back in the order before `order` was applied."""
        back = np.argsort(order)
        predicted = None if self.predicted is None else self.predicted[:, back]
        return replace(self, right=self.right[:, back], counting=self.counting[back], predicted=predicted)


@dataclass(frozen=True)
class RidgeProblem:
    """Targets and weights, centred and scaled once for all stages.

    `values` are of labels or numbers, (N, T), standardised by `centre` and `unit`, (T,); None for classes, and `unit`
    for labels, which stay as they are.
    """

    labels: npt.NDArray[np.int64]
    classes: int
    weights: npt.NDArray[np.float64]  # (N,), mean 1
    together: npt.NDArray[np.int64]  # (N,), equal where images are left out together
    counting: npt.NDArray[np.float64]  # (N,), weight of each in held-back results
    values: npt.NDArray[np.float64] | None = None
    centre: npt.NDArray[np.float64] | None = None
    unit: npt.NDArray[np.float64] | None = None

    @cached_property
    def roots(self) -> npt.NDArray[np.float32]:
        return np.sqrt(self.weights).astype(np.float32)[:, None]

    @cached_property
    def base(self) -> npt.NDArray[np.float64]:
        """(K,) weighted class shares, or means: the prediction without features."""
        if self.values is not None:
            return np.asarray(self.weights @ self.values / self.weights.sum(), dtype=np.float64)
        sums = np.bincount(self.labels, weights=self.weights, minlength=self.classes)
        return np.asarray(sums / self.weights.sum(), dtype=np.float64)

    def targets(self, rows: slice) -> npt.NDArray[np.float32]:
        """(n, K) one-hot, or values, centred, scaled by the root of the weights."""
        if self.values is not None:
            return ((self.values[rows] - self.base) * self.roots[rows]).astype(np.float32)
        one_hot = np.eye(self.classes, dtype=np.float32)[self.labels[rows]]
        return (one_hot - self.base.astype(np.float32)) * self.roots[rows]

    @cached_property
    def spread(self) -> float:
        """Mean squared distance of the values from their mean, > 0."""
        assert self.values is not None
        squares = ((self.values - self.base) ** 2).sum(axis=1)
        return max(float(self.weights @ squares / self.weights.sum()), float(np.finfo(np.float32).tiny))

    def in_unit(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """(..., T) values in the targets' own unit."""
        return scores if self.unit is None or self.centre is None else scores * self.unit + self.centre

    @cached_property
    def shift(self) -> npt.NDArray[np.float64]:
        """(N, T) mean of all values minus that of those that are fitted while an image is left out."""
        assert self.values is not None
        code = np.unique(self.together, return_inverse=True)[1].reshape(-1)
        sets, total = int(code.max()) + 1, self.weights.sum()
        left = np.maximum(total - np.bincount(code, weights=self.weights, minlength=sets), np.finfo(np.float32).tiny)
        sums = np.stack([np.bincount(code, weights=self.weights * column) for column in self.values.T], axis=1)
        others = (self.weights @ self.values - sums) / left[:, None]
        return np.asarray(self.base - others[code], dtype=np.float64)


def eigen(matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Eigenvalues (>= 0) and vectors of a symmetric matrix, which is overwritten."""
    values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    return np.maximum(values, 0).astype(np.float32), vectors.astype(np.float32, copy=False)


def moment_type(images: int) -> type[np.floating[Any]]:
    return np.float32 if images <= SINGLE_IMAGES else np.float64


def _sets(together: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    """Set size n -> (F, n) positions of the F sets of that size."""
    order = np.argsort(together, kind="stable")
    starts = np.flatnonzero(np.diff(together[order], prepend=together[order[0]] - 1))
    sizes = np.diff(np.append(starts, len(together)))
    return {int(n): order[starts[sizes == n][:, None] + np.arange(n)] for n in np.unique(sizes)}


@dataclass(frozen=True)
class _Refit:
    """A fit without one set of images, applied to that set, for every penalty."""

    projected: npt.NDArray[np.float32]  # (n, R) of the set, in the others' directions
    eigenvalues: npt.NDArray[np.float32]  # (R,) of the others
    correlation: Array  # (R, K) of the others
    base: Array  # (n, K) the others' mean target, times the root of the set's weights

    def residual(self, targets: npt.NDArray[np.float32], penalty: float) -> npt.NDArray[np.float32]:
        """(n, K) of the set's targets."""
        slope = self.correlation / (self.eigenvalues[:, None] + penalty)
        return np.asarray(targets - self.base - self.projected @ slope, dtype=np.float32)


class LeaveOut:
    """Accumulates the held-back results of one spectrum, chunk by chunk, for every penalty."""

    def __init__(self, problem: RidgeProblem, eigenvalues: Array, correlation: Array, penalties: Array) -> None:
        self._problem = problem
        self._eigenvalues = eigenvalues
        self._inverse = (1 / (eigenvalues[:, None] + penalties[None, :])).astype(np.float32)  # (R, P)
        self._correlation = correlation  # (R, K): T'Y
        self._penalties = penalties
        is_classes = problem.values is None
        self._right = np.zeros((len(penalties), len(problem.labels)), dtype=bool if is_classes else np.float32)
        shape = (len(penalties), len(problem.labels), problem.classes)
        self._predicted = None if is_classes else np.zeros(shape, dtype=np.float32)
        self._error = np.zeros(len(penalties))

    def scores(self, rows: slice, projected: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield (n, K) scores of these images, each while its set is left out, for each penalty."""
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
        """The fit without these (n, R) images: T'T, T'Y and means of all, minus theirs.

        Both T and Y have the weighted mean 0 over all images, so that of the others follows from theirs.
        """
        wide, root, wanted = (part.astype(np.float64) for part in (projected, roots, targets))
        others = self._problem.weights.sum() - float((root**2).sum())
        mean, base = -(root.T @ wide) / others, -(root.T @ wanted) / others
        moment = np.diag(self._eigenvalues.astype(np.float64)) - wide.T @ wide - others * mean.T @ mean
        values, vectors = eigen(moment)
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
        """(F, n, K) residuals of F sets of n images, each left out, from the residuals with all images included."""
        intercept = roots @ roots.transpose(0, 2, 1) / np.float32(self._problem.weights.sum())
        if projected.shape[1] == 1:
            leverage = np.einsum("fnr,r->fn", projected**2, inverse)[..., None] + intercept
            return residual / np.maximum(1 - leverage, SINGULAR)
        hat = (projected * inverse) @ projected.transpose(0, 2, 1) + intercept
        system = (1 + SINGULAR) * np.eye(hat.shape[1]) - hat
        return np.linalg.solve(system, residual.astype(np.float64)).astype(np.float32)

    def add(self, rows: slice, projected: npt.NDArray[np.float32]) -> None:
        if self._predicted is not None:
            self._add_values(rows, projected, self._predicted)
            return
        labels = self._problem.labels[rows]
        weights = self._problem.weights[rows] * self._problem.counting[rows]
        for p, scores in enumerate(self.scores(rows, projected)):
            own = (np.arange(len(labels)), labels)
            mine = scores[own]
            scores[own] -= 1
            self._error[p] += weights @ (scores * scores).sum(axis=1)
            scores[own] = -np.inf
            self._right[p, rows] = mine > scores.max(axis=1) + TIE

    def _add_values(self, rows: slice, projected: npt.NDArray[np.float32], predicted: npt.NDArray[np.float32]) -> None:
        problem = self._problem
        assert problem.values is not None
        weights = problem.weights[rows] * problem.counting[rows]
        for p, scores in enumerate(self.scores(rows, projected)):
            squares = ((problem.values[rows] - scores) ** 2).sum(axis=1)
            self._error[p] += weights @ squares
            self._right[p, rows] = 1 - squares / problem.spread
            predicted[p, rows] = scores

    def path(self) -> RidgePath:
        counting, images = self._problem.counting, float(self._problem.counting.sum())
        accuracy, error = np.full_like(self._error, np.nan), np.full_like(self._error, np.nan)
        if images:
            accuracy = self._right @ counting / images
            error = self._error / float(self._problem.weights @ counting)
        return RidgePath(self._penalties, accuracy, error, self._right, counting, self._in_unit())

    def _in_unit(self) -> npt.NDArray[np.floating] | None:
        if self._predicted is None:
            return None
        problem = self._problem
        # Numbers keep the mean of their fit: it is part of the prediction.
        shift = problem.shift if problem.unit is None else 0.0
        return problem.in_unit(self._predicted + shift)
