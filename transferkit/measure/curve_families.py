"""Families of learning curves, and the posterior of each given the points of a measured curve.

A family is linear in two coefficients, a and b, once its shape is fixed. With x = n / N, N the largest number of images
that was tried:

    probit  Phi^-1(accuracy) = a + b (r^L - 1) / ln r,  L = log2 x    each doubling brings r times what the last brought
    pow4    error = a + b h(x) / h(1),  h = (1 + x / t)^-d            a power law that sets in at t
    mmf4    error = a + b h(x) / h(1),  h = 1 / (1 + (x / t)^d)       Morgan-Mercer-Flodin, a sigmoid in log n
    wbl4    error = a + b h(x) / h(1),  h = exp(-(x / t)^d)           Weibull

So the posterior of (a, b) is exact: a Gaussian, cut off where curves would fall (b < 0) or errors be negative (a < 0).
Shapes, r or (t, d), run over a grid. All families see the same errors of the points, on the probit scale or carried
over to the accuracy by its slope there, and their levels are equally likely to be anywhere in [0, 1], so their marginal
likelihoods compare.

The points of a curve are measured on the same images. If these happen to be hard ones, all points are too low, the
right end most on the probit scale: a common error in proportion to each point's binomial one (`SHARED`).

References:
    Mohr et al., LCDB 1.0, ECML-PKDD 2022: POW4 and MMF4 extrapolate best of the families of the error. Deviation:
    averaged over the posterior, not fitted by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from transferkit.core.errors import OptionError
from transferkit.records import CurvePoint

__all__ = ["FAMILIES", "USUAL", "CurveDraws", "CurvePrior", "MeasuredCurve", "draw_curves"]

Array = npt.NDArray[np.float64]

FACTORS = np.linspace(0.3, 1.1, 41)
"""Grid of r."""

ONSETS, FIRST_ONSET, LAST_ONSET = 32, 0.3, 10.0
"""Values of t, from the first one, in units of the smallest number of images that was tried, to the last one, in units
of the largest: for any t far below the smallest a curve is the same power law."""

STEEPNESS = np.geomspace(0.2, 2.5, 24)
"""Grid of d. Error falls as a power of about 0.2 to 1 of n in most reports."""

FLOORS = (0.01, 0.3)
"""How large the error that no number of images removes may be: one point in half of the grid, as on most of our tasks,
nearly anything in the other half, for tasks with wrong labels."""

MAX_RATIO = 1e3
"""Largest ratio of the reducible error at the smallest number of images to that at the largest."""

DRAWS = {"probit": 200, "error": 6}
"""Draws of (a, b) for each shape: some 8,000 to 9,000 a family."""

SHARED = 0.6
"""Share of the largest point's error variance that all points have in common, as they are measured on the same
images. Between curves of one task from different images 0.4 was measured; with 0.6 the intervals hold what they say."""

SPREAD = 0.03
"""Standard deviation of real curves around the smooth ones, in probits: 0.7 points of accuracy at 80 %."""

TINY, MOST_TESTED = 1e-9, 1e6
"""Smallest error of the largest point, and most images it may stand for."""

OUTSIDE = 1e-6
"""Weight of a draw that was moved to the boundary, relative to one inside: it counts only where there is nothing
else."""

FLAT = 1e-6
"""Smallest b."""

STRAIGHT = 1e-6
"""An |ln r| below this is 0."""

STEEPEST = 300.0
"""Largest ln of h(x) / h(1); e to this power is a number still."""


@dataclass(frozen=True, kw_only=True)
class CurvePrior:
    """Which learning curves are usual, for the probit family.

    Args:
        slope, slope_deviation: Mean and standard deviation, > 0, of b, in probits per doubling of the images.
        factor, factor_deviation: Mean and standard deviation, > 0, of r, by which each doubling changes the slope.
    """

    slope: float
    slope_deviation: float
    factor: float
    factor_deviation: float

    def __post_init__(self) -> None:
        values = (self.slope, self.slope_deviation, self.factor, self.factor_deviation)
        if not all(math.isfinite(value) for value in values) or min(self.slope_deviation, self.factor_deviation) <= 0:
            raise OptionError(f"CurvePrior must have finite means and finite deviations > 0, got {values!r}.")


USUAL = CurvePrior(slope=0.24, slope_deviation=0.12, factor=0.94, factor_deviation=0.08)
"""Over our tasks. Slopes at a quarter of the images: 0.06 for clothes at 1,500 images, 0.45 for glyphs."""


@dataclass(frozen=True)
class MeasuredCurve:
    """P points by growing number of images, ready to be fitted."""

    largest: float  # N
    sizes: Array  # (P,) x = n / N
    accuracy: Array  # (P,) in (0, 1)
    probits: Array  # (P,)
    slopes: Array  # (P,) of the accuracy by the probit
    covariance: Array  # (P, P) of the errors, in probits

    @classmethod
    def of(cls, points: Sequence[CurvePoint]) -> MeasuredCurve:
        """From points by growing number of images."""
        images = np.array([point.images for point in points], dtype=np.float64)
        accuracy = np.array([point.accuracy for point in points], dtype=np.float64)
        errors = np.array([point.error for point in points], dtype=np.float64)
        spread = accuracy[-1] * (1 - accuracy[-1])
        tested = spread / max(errors[-1], TINY) ** 2 if errors[-1] > 0 and spread > 0 else images[-1]
        tested = min(max(tested, 1.0), MOST_TESTED)
        # Half a right and half a wrong image more: an accuracy of 0 or 1 has no probit.
        accuracy = (accuracy * tested + 0.5) / (tested + 1)
        probits = ndtri(accuracy)
        slopes = np.exp(-(probits**2) / 2) / math.sqrt(2 * math.pi)
        shared = np.sqrt(SHARED * accuracy * (1 - accuracy) / tested) / slopes
        own = errors / slopes
        own[-1] *= math.sqrt(1 - SHARED)
        covariance = np.outer(shared, shared) + np.diag(own**2 + SPREAD**2)
        return cls(float(images[-1]), images / images[-1], accuracy, probits, slopes, covariance)


@dataclass(frozen=True)
class ShapeGrid:
    """G shapes of a family, and what is known of (a, b) beforehand: a Gaussian for each."""

    shape: Array  # (2, G)
    mean: Array  # (G, 2)
    precision: Array  # (G, 2); 0: flat
    log_prior: Array  # (G,) of the shape, and of (a, b) at its mean, but for a constant that all families share


class CurveFamily(Protocol):
    """Curves a + b basis(x; shape) on a scale of the accuracy.

    Attributes:
        draws: Of (a, b) for each shape.
        lowest: Of a and b.
    """

    draws: int
    lowest: tuple[float, float]

    def grid(self, measured: MeasuredCurve, prior: CurvePrior) -> ShapeGrid:
        """The shapes to be tried."""

    def targets(self, measured: MeasuredCurve) -> tuple[Array, Array]:
        """(P,) the points on the family's scale, and (P,) how many probits a unit of it is."""

    def basis(self, sizes: Array | float, shape: Array) -> Array:
        """For sizes x and shapes (2, ...), which broadcast."""

    def inverse(self, values: Array, shape: Array) -> Array:
        """(S,) x >= 0 at which the basis has these values; infinite where it never has."""

    def to_accuracy(self, values: Array) -> Array:
        """From the family's scale, in [0, 1]."""

    def from_accuracy(self, accuracy: float) -> float:
        """To the family's scale; `accuracy` in [0, 1]."""


class ProbitCurves:
    """Nearly straight in log n on the probit scale; a is the level and b the slope at N, shape[0] = r."""

    draws = DRAWS["probit"]
    lowest = (-math.inf, FLAT)

    def grid(self, measured: MeasuredCurve, prior: CurvePrior) -> ShapeGrid:
        log_prior = -0.5 * ((FACTORS - prior.factor) / prior.factor_deviation) ** 2
        log_prior -= log_prior.max() + np.log(np.exp(log_prior - log_prior.max()).sum())
        # Level: flat in the accuracy, whose density per probit is its slope.
        log_prior += math.log(math.sqrt(2 * math.pi) * measured.slopes[-1] / prior.slope_deviation)
        mean = np.tile([0.0, prior.slope], (len(FACTORS), 1))
        precision = np.tile([0.0, 1 / prior.slope_deviation**2], (len(FACTORS), 1))
        return ShapeGrid(np.stack([FACTORS, FACTORS]), mean, precision, log_prior)

    def targets(self, measured: MeasuredCurve) -> tuple[Array, Array]:
        return measured.probits, np.ones_like(measured.probits)

    def basis(self, sizes: Array | float, shape: Array) -> Array:
        doublings, rate = np.log2(sizes), np.log(shape[0])
        straight = np.abs(rate) < STRAIGHT
        return np.where(straight, doublings, np.expm1(doublings * rate) / np.where(straight, 1.0, rate))

    def inverse(self, values: Array, shape: Array) -> Array:
        rate = np.log(shape[0])
        straight = np.abs(rate) < STRAIGHT
        rate = np.where(straight, 1.0, rate)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bent = np.log(1 + values * rate) / rate
            # Beyond the asymptote: above it for r < 1, below the lower one for r > 1.
            bent = np.where(1 + values * rate > 0, bent, np.where(rate < 0, np.inf, -np.inf))
            return np.asarray(np.exp2(np.where(straight, values, bent)), dtype=np.float64)

    def to_accuracy(self, values: Array) -> Array:
        return np.asarray(ndtr(values), dtype=np.float64)

    def from_accuracy(self, accuracy: float) -> float:
        return float(ndtri(accuracy))


class ErrorCurves:
    """The error falls from today's to a floor: a the floor, b the rest of today's error, shape = (t, d).

    Args:
        depth: -ln h(x; t, d), rising from 0.
        undo: Its inverse, x at a depth >= 0.
    """

    draws = DRAWS["error"]
    lowest = (0.0, FLAT)

    def __init__(
        self, depth: Callable[[Array | float, Array, Array], Array], undo: Callable[[Array, Array, Array], Array]
    ) -> None:
        self._depth, self._undo = depth, undo

    def grid(self, measured: MeasuredCurve, prior: CurvePrior) -> ShapeGrid:
        onsets = np.geomspace(FIRST_ONSET * measured.sizes[0], LAST_ONSET, ONSETS)
        onset, steepness, floor = (x.reshape(-1) for x in np.meshgrid(onsets, STEEPNESS, FLOORS, indexing="ij"))
        shape = np.stack([onset, steepness])
        kept = self.basis(measured.sizes[0], shape) < MAX_RATIO
        shape, floor = shape[:, kept], floor[kept]
        # Of a and b, Gaussians of width `floor` and 1, the half above 0.
        log_prior = math.log(2 * 2 / len(floor)) - np.log(floor)
        precision = np.stack([1 / floor**2, np.ones_like(floor)], axis=1)
        return ShapeGrid(shape, np.zeros_like(precision), precision, log_prior)

    def targets(self, measured: MeasuredCurve) -> tuple[Array, Array]:
        return 1 - measured.accuracy, 1 / measured.slopes

    def basis(self, sizes: Array | float, shape: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(np.minimum(self._depth(1.0, *shape) - self._depth(sizes, *shape), STEEPEST))

    def inverse(self, values: Array, shape: Array) -> Array:
        with np.errstate(divide="ignore", over="ignore"):
            depth = self._depth(1.0, *shape) - np.log(np.maximum(values, 0.0))
            return self._undo(np.maximum(depth, 0.0), *shape)

    def to_accuracy(self, values: Array) -> Array:
        return np.clip(1 - values, 0.0, 1.0)

    def from_accuracy(self, accuracy: float) -> float:
        # Curves begin anywhere above an error of 1.
        return 1 - accuracy if accuracy > 0 else math.inf


FAMILIES: dict[str, CurveFamily] = {
    "probit": ProbitCurves(),
    "pow4": ErrorCurves(lambda x, t, d: d * np.log1p(x / t), lambda u, t, d: t * np.expm1(u / d)),
    "mmf4": ErrorCurves(lambda x, t, d: np.log1p((x / t) ** d), lambda u, t, d: t * np.expm1(u) ** (1 / d)),
    "wbl4": ErrorCurves(lambda x, t, d: (x / t) ** d, lambda u, t, d: t * u ** (1 / d)),
}
"""Name -> family."""


@dataclass(frozen=True)
class CurveDraws:
    """S weighted draws from the posterior of one family.

    Attributes:
        family: Its name.
        misfit: Of the best curve, in squared standard errors, summed over the points.
    """

    family: str
    shape: Array  # (2, S)
    coefficients: Array  # (S, 2)
    log_weight: Array  # (S,) comparable between families; their sum is the marginal likelihood
    largest: float  # N
    misfit: float

    def likelier_than(self, log_weight: float) -> CurveDraws:
        """Those of a larger weight."""
        kept = self.log_weight > log_weight
        return replace(
            self,
            shape=self.shape[:, kept],
            coefficients=self.coefficients[kept],
            log_weight=self.log_weight[kept],
        )

    def accuracy(self, images: float) -> Array:
        """(S,) in [0, 1] at this number of images, > 0."""
        family, (level, rise) = FAMILIES[self.family], self.coefficients.T
        return family.to_accuracy(level + rise * family.basis(images / self.largest, self.shape))

    def images_for(self, accuracy: float) -> Array:
        """(S,) >= 1; infinite where the accuracy is never reached."""
        family, (level, rise) = FAMILIES[self.family], self.coefficients.T
        with np.errstate(over="ignore"):
            values = (family.from_accuracy(accuracy) - level) / rise
            return np.maximum(self.largest * family.inverse(values, self.shape), 1.0)


def draw_curves(name: str, measured: MeasuredCurve, prior: CurvePrior, rng: np.random.Generator) -> CurveDraws:
    """Curves of a family that explain the points, weighted by how well, and by how usual they are.

    Args:
        name: In `FAMILIES`.
        measured: The points.
        prior: Of the probit family.
        rng: Of the draws.
    """
    family = FAMILIES[name]
    grid = family.grid(measured, prior)
    heights = family.basis(measured.sizes, grid.shape[:, :, None])
    target, probits = family.targets(measured)
    target, design = target * probits, np.stack([np.ones_like(heights), heights], axis=-1) * probits[:, None]
    weighted = design.transpose(0, 2, 1) @ np.linalg.inv(measured.covariance)  # (G, 2, P)
    covariance = np.linalg.inv(weighted @ design + grid.precision[:, :, None] * np.eye(2))
    mean = (covariance @ (weighted @ target + grid.precision * grid.mean)[..., None])[..., 0]
    residual = target - (design @ mean[..., None])[..., 0]
    misfit = np.einsum("gp,gp->g", residual, np.linalg.solve(measured.covariance, residual.T).T)
    unusual = (grid.precision * (mean - grid.mean) ** 2).sum(axis=1)
    # The marginal likelihood: how well the best (a, b) fit, and how much of what was thought possible fits as well.
    evidence = grid.log_prior - 0.5 * (misfit + unusual) + 0.5 * np.linalg.slogdet(covariance)[1]
    normal = rng.standard_normal((len(mean), family.draws, 2))
    drawn = mean[:, None] + np.einsum("gij,gdj->gdi", np.linalg.cholesky(covariance), normal)
    inside = (drawn >= family.lowest).all(axis=-1)
    weight = evidence[:, None] + np.where(inside, 0.0, math.log(OUTSIDE)) - math.log(family.draws)
    return CurveDraws(
        name,
        np.repeat(grid.shape, family.draws, axis=1),
        np.maximum(drawn, family.lowest).reshape(-1, 2),
        weight.reshape(-1),
        measured.largest,
        float(misfit.min()),
    )
