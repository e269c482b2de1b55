"""What more training images would bring: the learning curve extrapolated, with intervals.

On the probit scale, z = Phi^-1(accuracy), learning curves are nearly straight in log n, and their slope shrinks slowly:
each doubling of the images brings r times what the doubling before brought,

    z(n) = a + b (r^L - 1) / ln r      L = log2(n / N), N the largest number of images that was tried

with b the slope at N, per doubling. For given r the curve is linear in (a, b), so their posterior is exact: a Gaussian,
cut off at b >= 0. r runs over a grid. What slopes b and factors r are usual was learnt from the curves of our tasks
(`USUAL`), so a short or noisy curve is continued like others, with a wide interval.

The points of a curve are measured on the same images. If these happen to be hard ones, all points are too low, the
right end most on the probit scale: a common error in proportion to each point's binomial one (`SHARED`).

References:
    Mohr et al., LCDB 1.0, ECML-PKDD 2022, compare families of curves; the best of them, POW4 and MMF4, have four
    parameters that a quarter of the images does not determine (docs/doctor.md has the comparison).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from transferkit.core.errors import DataError, OptionError
from transferkit.records import CurvePoint, DataNeed, Folds, Forecast, WantedAccuracy

__all__ = ["USUAL", "CurveForecast", "CurvePrior", "fitted_images", "forecast_curve", "measure_data_need"]

Array = npt.NDArray[np.float64]

MIN_POINTS = 3
"""Different numbers of images below which nothing is extrapolated: a curve has three parameters."""

FACTORS = np.linspace(0.3, 1.1, 41)
"""Grid of r."""

SHARED = 0.6
"""Share of the largest point's error variance that all points have in common, as they are measured on the same
images. Between curves of one task from different images 0.4 was measured; with 0.6 the intervals hold what they say."""

SPREAD = 0.03
"""Standard deviation of real curves around the smooth ones, in probits: 0.7 points of accuracy at 80 %."""

TINY, MOST_TESTED = 1e-9, 1e6
"""Smallest error of the largest point, and most images it may stand for."""

DRAWS = 200
"""Draws of (a, b) for each r."""

LOWEST, HIGHEST = 0.1, 0.9
"""Quantiles of the 80 % interval."""

DROP, DROP_ERRORS = 0.01, 3.0
"""A curve that falls by more than this, and by more than this many standard errors, is not well behaved."""

MISFIT = 6.0
"""Mean squared residual of the best curve, in squared standard errors, above which no curve describes the points."""

OUTSIDE = 1e-6
"""Weight of a draw that was moved to the boundary, relative to one inside: it counts only where there is nothing
else."""

FLAT = 1e-6
"""Smallest b."""

STRAIGHT = 1e-6
"""An |ln r| below this is 0."""

MOST_IMAGES = 10**7
"""Numbers of images beyond this are not reported."""

MULTIPLES = (2, 4)
"""Of today's number of images, for the default forecasts; intervals of a flat curve are useless farther out."""

ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Accuracies that a person may want; the first `WANTED` above what is expected today are answered."""

WANTED = 2
NOTICEABLE = 0.005
"""A wanted accuracy is at least this far above today's."""


@dataclass(frozen=True, kw_only=True)
class CurvePrior:
    """Which learning curves are usual.

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
class _Draws:
    """Weighted draws from the posterior."""

    level: Array  # (S,) a
    slope: Array  # (S,) b > 0
    factor: Array  # (S,) r
    weight: Array  # (S,)
    largest: float  # N

    def accuracy(self, images: float) -> Array:
        """(S,) in [0, 1] at this number of images."""
        doublings = np.full(len(self.factor), math.log2(images / self.largest))
        return np.asarray(ndtr(self.level + self.slope * _gains(doublings, self.factor)), dtype=np.float64)

    def images_for(self, accuracy: float) -> Array:
        """(S,) >= 1; infinite where the accuracy is never reached."""
        gain = (ndtri(accuracy) - self.level) / self.slope
        rate = np.log(self.factor)
        straight = np.abs(rate) < STRAIGHT
        rate = np.where(straight, 1.0, rate)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bent = np.log(1 + gain * rate) / rate
            # Beyond the asymptote: above it for r < 1, below the lower one for r > 1.
            bent = np.where(1 + gain * rate > 0, bent, np.where(rate < 0, np.inf, -np.inf))
            return np.maximum(self.largest * np.exp2(np.where(straight, gain, bent)), 1.0)


def _gains(doublings: Array, factor: Array) -> Array:
    """(r^L - 1) / ln r, the gain by L doublings in units of b; L for r = 1."""
    rate = np.log(factor)
    straight = np.abs(rate) < STRAIGHT
    return np.where(straight, doublings, np.expm1(doublings * rate) / np.where(straight, 1.0, rate))


class CurveForecast:
    """A learning curve extrapolated: quantiles of the accuracy at any number of images, and the reverse.

    Attributes:
        points: The measured points, by growing number of images.
        problem: Why the curve is not well behaved, a sentence; "" if it is.
    """

    def __init__(self, points: Sequence[CurvePoint], draws: _Draws, problem: str) -> None:
        self.points = tuple(points)
        self.problem = problem
        self._draws = draws

    def accuracy_at(self, images: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the expected accuracy with that many training images, in [0, 1].

        Args:
            images: > 0, finite.
            quantiles: In (0, 1).

        Raises:
            OptionError: One of them is outside of its range.
        """
        return self._quantiles(self._draws.accuracy(_require_images(images)), quantiles)

    def gain(
        self, before: float, after: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)
    ) -> tuple[float, ...]:
        """Quantiles of the gain in accuracy from `before` to `after` images; below 0 if there are fewer after.

        Raises:
            OptionError: One of them is outside of its range, as for `accuracy_at`.
        """
        before, after = _require_images(before), _require_images(after)
        return self._quantiles(self._draws.accuracy(after) - self._draws.accuracy(before), quantiles)

    def images_for(self, accuracy: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the number of training images that an accuracy takes; infinite where it is never reached.

        Raises:
            OptionError: The accuracy is not in [0, 1], or a quantile not in (0, 1).
        """
        if not 0 <= accuracy <= 1:
            raise OptionError(f"An accuracy must be in [0, 1], got {accuracy!r}.")
        return self._quantiles(self._draws.images_for(float(accuracy)), quantiles)

    def _quantiles(self, values: Array, quantiles: Sequence[float]) -> tuple[float, ...]:
        if not all(0 < one < 1 for one in quantiles):
            raise OptionError(f"Quantiles must be in (0, 1), got {list(quantiles)!r}.")
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self._draws.weight[order]) / self._draws.weight.sum()
        at = np.minimum(np.searchsorted(reached, quantiles), len(values) - 1)
        return tuple(float(value) for value in values[order][at])


def _require_images(images: float) -> float:
    if not (math.isfinite(images) and images > 0):
        raise OptionError(f"A number of training images must be finite and > 0, got {images!r}.")
    return float(images)


def forecast_curve(points: Sequence[CurvePoint], *, prior: CurvePrior = USUAL, seed: int = 0) -> CurveForecast:
    """Extrapolate a learning curve.

    Args:
        points: Of one stage, at `MIN_POINTS` or more different numbers of images, in any order. The error of the one
            with the most images says how few images the accuracies were measured on; if it is 0, as many as that.
        prior: Which curves are usual; it counts most for few and noisy points.
        seed: Of the draws.

    Raises:
        DataError: There are fewer points, they belong to several stages, or are not of class `CurvePoint`.

    Example:
        >>> sizes = [20, 40, 80, 160, 320, 640]
        >>> known = [CurvePoint(stage="joined", images=n, accuracy=1 - 2 / n**0.5, error=0.003) for n in sizes]
        >>> found = forecast_curve(known)
        >>> round(found.accuracy_at(1280)[0], 2), 1400 < found.images_for(0.95)[0] < 1800
        (0.94, True)
    """
    points = list(points)
    for point in points:
        if not isinstance(point, CurvePoint):
            raise DataError(f"The points of a learning curve must be of class CurvePoint, got {point!r}.")
    points.sort(key=lambda point: point.images)
    if len({point.stage for point in points}) > 1:
        raise DataError("The points of one learning curve must be of one stage.")
    if len({point.images for point in points}) < MIN_POINTS:
        sizes = len({point.images for point in points})
        raise DataError(f"Extrapolating needs {MIN_POINTS} or more different numbers of images, got {sizes}.")
    fit = _fit(_Probits.of(points), prior)
    draws = _draw(fit, np.random.default_rng(seed), float(points[-1].images))
    return CurveForecast(points, draws, _find_problem(points, float(fit.misfit.min()) / len(points)))


@dataclass(frozen=True)
class _Probits:
    """The points on the probit scale."""

    doublings: Array  # (P,) L <= 0
    values: Array  # (P,) z
    covariance: Array  # (P, P) of their errors

    @classmethod
    def of(cls, points: Sequence[CurvePoint]) -> _Probits:
        """From points by growing number of images."""
        images = np.array([point.images for point in points], dtype=np.float64)
        accuracy = np.array([point.accuracy for point in points], dtype=np.float64)
        errors = np.array([point.error for point in points], dtype=np.float64)
        spread = accuracy[-1] * (1 - accuracy[-1])
        tested = spread / max(errors[-1], TINY) ** 2 if errors[-1] > 0 and spread > 0 else images[-1]
        tested = min(max(tested, 1.0), MOST_TESTED)
        # Half a right and half a wrong image more: an accuracy of 0 or 1 has no probit.
        accuracy = (accuracy * tested + 0.5) / (tested + 1)
        values = ndtri(accuracy)
        steepness = np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi)
        shared = np.sqrt(SHARED * accuracy * (1 - accuracy) / tested) / steepness
        own = errors / steepness
        own[-1] *= math.sqrt(1 - SHARED)
        covariance = np.outer(shared, shared) + np.diag(own**2 + SPREAD**2)
        return cls(np.log2(images / images[-1]), values, covariance)


@dataclass(frozen=True)
class _CurveFit:
    """The posterior of (a, b) at every r of the grid."""

    factor: Array  # (G,)
    mean: Array  # (G, 2)
    root: Array  # (G, 2, 2) Cholesky factor of the covariance
    evidence: Array  # (G,) log marginal likelihood and prior of r, but for the cut at 0
    misfit: Array  # (G,) squared residuals in squared standard errors


def _fit(measured: _Probits, prior: CurvePrior) -> _CurveFit:
    precision = np.linalg.inv(measured.covariance)
    gains = _gains(measured.doublings[None, :], FACTORS[:, None])
    design = np.stack([np.ones_like(gains), gains], axis=-1)  # (G, P, 2)
    weighted = design.transpose(0, 2, 1) @ precision
    known = np.array([0.0, 1 / prior.slope_deviation**2])
    covariance = np.linalg.inv(weighted @ design + np.diag(known))
    mean = (covariance @ (weighted @ measured.values + known * prior.slope)[..., None])[..., 0]
    residual = measured.values - (design @ mean[..., None])[..., 0]
    misfit = np.einsum("gp,pq,gq->g", residual, precision, residual)
    unusual = ((mean[:, 1] - prior.slope) / prior.slope_deviation) ** 2
    unusual += ((FACTORS - prior.factor) / prior.factor_deviation) ** 2
    evidence = -0.5 * (misfit + unusual) + 0.5 * np.linalg.slogdet(covariance)[1]
    return _CurveFit(FACTORS, mean, np.asarray(np.linalg.cholesky(covariance)), evidence, misfit)


def _draw(fit: _CurveFit, rng: np.random.Generator, largest: float) -> _Draws:
    """Draws of (a, b) with b > 0; where the cut leaves none, the nearest point on it, at a small weight."""
    normal = rng.standard_normal((len(fit.factor), DRAWS, 2))
    drawn = fit.mean[:, None] + np.einsum("gij,gdj->gdi", fit.root, normal)
    level, slope = drawn.reshape(-1, 2).T
    likely = np.repeat(np.exp(fit.evidence - fit.evidence.max()), DRAWS)
    weight = likely * np.where(slope > 0, 1.0, OUTSIDE)
    return _Draws(level, np.maximum(slope, FLAT), np.repeat(fit.factor, DRAWS), weight, largest)


def _find_problem(points: Sequence[CurvePoint], misfit: float) -> str:
    """What keeps a curve from being extrapolated with confidence; "" if nothing."""
    for i, before in enumerate(points):
        for after in points[i + 1 :]:
            fall = before.accuracy - after.accuracy
            if after.images > before.images and fall > max(DROP, DROP_ERRORS * math.hypot(before.error, after.error)):
                return (
                    f"The learning curve is not well behaved: {100 * before.accuracy:.1f} % with {before.images:,} "
                    f"images, {100 * after.accuracy:.1f} % with {after.images:,}. It is not "
                    "extrapolated."
                )
    if misfit > MISFIT:
        return "The learning curve is not well behaved: no smooth curve describes its points. It is not extrapolated."
    return ""


def fitted_images(points: Sequence[CurvePoint], folds: Folds) -> list[CurvePoint]:
    """The points by the number of images that were fitted: behind the last one, not those that were left out together.

    Args:
        points: Of one stage, whose last one is the held-back accuracy of fits to all images but a few.
        folds: Which were left out together.
    """
    last = max(points, key=lambda point: point.images)
    left_out = len(folds) / len(np.unique(folds.together))
    before = max((point.images for point in points if point is not last), default=0)
    images = max(round(last.images - left_out), before + 1)
    return [replace(point, images=images) if point is last else point for point in points]


def measure_data_need(
    points: Sequence[CurvePoint], *, stage: str, folds: Folds | None = None, seed: int = 0
) -> DataNeed | None:
    """What two and four times as many images would bring, and what the next accuracies take.

    Args:
        points: Of any stages.
        stage: Whose curve is extrapolated.
        folds: Which images were left out together for the last point; None: each alone.
        seed: Of the draws.

    Returns:
        None if the curve has fewer than `MIN_POINTS` points.

    Example:
        >>> sizes = [20, 40, 80, 160, 320, 640]
        >>> known = [CurvePoint(stage="joined", images=n, accuracy=1 - 2 / n**0.5, error=0.003) for n in sizes]
        >>> found = measure_data_need(known, stage="joined")
        >>> found.images, [one.images for one in found.forecasts], [one.accuracy for one in found.wanted]
        (640, [1280, 2560], [0.95, 0.98])
    """
    own = [point for point in points if point.stage == stage]
    if len({point.images for point in own}) < MIN_POINTS:
        return None
    curve = forecast_curve(own if folds is None else fitted_images(own, folds), seed=seed)
    images = max(point.images for point in own)
    (now,) = curve.accuracy_at(images, (0.5,))
    wanted = [accuracy for accuracy in ACCURACIES if accuracy >= now + NOTICEABLE][:WANTED]
    sound = not curve.problem
    return DataNeed(
        stage=stage,
        images=images,
        forecasts=tuple(_forecast(curve, images, times * images) for times in MULTIPLES if sound),
        wanted=tuple(_want(curve, accuracy) for accuracy in wanted if sound),
        problem=curve.problem,
    )


def _forecast(curve: CurveForecast, before: int, after: int) -> Forecast:
    gain, low, high = curve.gain(before, after)
    return Forecast(images=after, accuracy=curve.accuracy_at(after)[0], gain=gain, gain_low=low, gain_high=high)


def _want(curve: CurveForecast, accuracy: float) -> WantedAccuracy:
    images, low, high = (None if n > MOST_IMAGES else math.ceil(n) for n in curve.images_for(accuracy))
    return WantedAccuracy(accuracy=accuracy, images=images, low=low, high=high)
