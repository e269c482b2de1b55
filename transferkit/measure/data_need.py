"""What more training images would bring: the learning curve extrapolated by several families, with intervals.

The error at n images is e(n) = c + a h(n): c the error that no number of images removes, a the rest of today's error,
and h a falling curve of one of three families, scaled to 1 at the largest n that was tried:

    POW4   (1 + n / t)^-d           a power law that sets in at t images
    MMF4   1 / (1 + (n / t)^d)      Morgan-Mercer-Flodin, a sigmoid in log n
    WBL4   exp(-(n / t)^d)          Weibull

For given (t, d) the curve is linear in (c, a), so the posterior is exact there: a Gaussian cut off at c >= 0 and a >=
0. (t, d) run over a grid; every family and every point of its grid is equally likely beforehand, and is weighted by
how well it explains the measured points (Bayesian model averaging). Forecasts are quantiles over draws from all of
them, so a short or noisy curve gives wide intervals instead of one confident fit.

References:
    Mohr et al., LCDB 1.0, ECML-PKDD 2022, on the families: POW4 and MMF4 extrapolate best. Deviation: averaged, not
    selected by least squares; `SPREAD` is added to the errors of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError
from transferkit.records import CurvePoint, DataNeed, Folds, Forecast, WantedAccuracy

__all__ = ["CurveForecast", "fitted_images", "forecast_curve", "measure_data_need"]

Array = npt.NDArray[np.float64]

SPREAD = 0.004
"""Standard deviation of real learning curves around the families, in accuracy, on top of the points' standard
errors."""

MIN_POINTS = 4
"""Different numbers of images below which nothing is extrapolated: a curve has four parameters."""

DRAWS = 16
"""Draws of (c, a) for each point of the grid."""

STEEPNESS = np.geomspace(0.2, 2.5, 12)
"""d of all families. Error falls as a power of about 0.2 to 1 of n in most reports."""

FLOORS = (0.01, 0.3)
"""How large c may be: one point in half of the grid, as on most of our tasks, nearly anything in the other half, for
tasks with wrong labels. A flat prior alone takes every noisy last point for the beginning of a plateau: 24 % of
n-hat / n in [0.5, 2] instead of 65 % (`scripts/bench_data_need.py`)."""

ONSETS = 16
"""Number of values of t, from a thousandth of the smallest number of images to a hundred times the largest."""

MAX_RATIO = 1e3
"""Largest ratio of the reducible error at the smallest number of images to that at the largest."""

LOWEST, HIGHEST = 0.1, 0.9
"""Quantiles of the 80 % interval."""

DROP, DROP_ERRORS = 0.01, 3.0
"""A curve that falls by more than this, and by more than this many standard errors, is not well behaved."""

MISFIT = 6.0
"""Mean squared residual of the best curve, in squared standard errors, above which no family describes the points."""

OUTSIDE = 1e-6
"""Weight of a draw that was moved to the boundary, relative to one inside: it counts only where there is nothing
else."""

MOST_IMAGES = 10**7
"""Numbers of images beyond this are not reported."""

MULTIPLES = (2, 4)
"""Of today's number of images, for the default forecasts; intervals of a flat curve are useless farther out."""

ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Accuracies that a person may want; the first `WANTED` above what is expected today are answered."""

WANTED = 2
NOTICEABLE = 0.005
"""A wanted accuracy is at least this far above today's."""


@dataclass(frozen=True)
class _Family:
    """One family of falling curves h(n; t, d), not scaled, from 1 at n = 0 to 0."""

    curve: Callable[[Array, Array, Array], Array]
    inverse: Callable[[Array, Array, Array], Array]


def _invert_power(height: Array, onset: Array, steepness: Array) -> Array:
    return onset * (height ** (-1 / steepness) - 1)


def _invert_mmf(height: Array, onset: Array, steepness: Array) -> Array:
    return onset * (1 / height - 1) ** (1 / steepness)


def _invert_weibull(height: Array, onset: Array, steepness: Array) -> Array:
    return onset * (-np.log(height)) ** (1 / steepness)


FAMILIES = {
    "POW4": _Family(lambda n, t, d: (1 + n / t) ** -d, _invert_power),
    "MMF4": _Family(lambda n, t, d: 1 / (1 + (n / t) ** d), _invert_mmf),
    "WBL4": _Family(lambda n, t, d: np.exp(-((n / t) ** d)), _invert_weibull),
}


@dataclass(frozen=True)
class _Draws:
    """Weighted draws from one family's posterior."""

    family: str
    onset: Array  # (S,)
    steepness: Array  # (S,)
    floor: Array  # (S,) c
    excess: Array  # (S,) a
    scale: Array  # (S,) the family's curve at the largest number of images
    weight: Array  # (S,)

    def error(self, images: float) -> Array:
        """(S,) at this number of images."""
        height = FAMILIES[self.family].curve(np.full(1, float(images)), self.onset, self.steepness)
        return self.floor + self.excess * height / self.scale

    def images_for(self, error: float) -> Array:
        """(S,) >= 1; infinite where the error is never reached."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            height = (error - self.floor) / self.excess * self.scale
            found = FAMILIES[self.family].inverse(np.clip(height, 0, 1), self.onset, self.steepness)
        found = np.where(self.floor >= error, np.inf, found)
        return np.maximum(np.where(self.floor + self.excess / self.scale <= error, 1.0, found), 1.0)


class CurveForecast:
    """A learning curve extrapolated: quantiles of the accuracy at any number of images, and the reverse.

    Attributes:
        points: The measured points, by growing number of images.
        problem: Why the curve is not well behaved, a sentence; "" if it is.
    """

    def __init__(self, points: Sequence[CurvePoint], draws: Sequence[_Draws], problem: str) -> None:
        self.points = tuple(points)
        self.problem = problem
        self._draws = draws
        self._weight = np.concatenate([one.weight for one in draws])

    def accuracy_at(self, images: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the expected accuracy with that many training images, in [0, 1].

        Args:
            images: > 0.
            quantiles: In (0, 1).
        """
        return self._quantiles(1 - self._error(images), quantiles)

    def gain(
        self, before: float, after: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)
    ) -> tuple[float, ...]:
        """Quantiles of the gain in accuracy from `before` to `after` images."""
        return self._quantiles(self._error(before) - self._error(after), quantiles)

    def images_for(self, accuracy: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the number of training images that an accuracy takes; infinite where it is never reached.

        Raises:
            OptionError: The accuracy is not in [0, 1].
        """
        if not 0 <= accuracy <= 1:
            raise OptionError(f"An accuracy must be in [0, 1], got {accuracy!r}.")
        return self._quantiles(np.concatenate([one.images_for(1 - accuracy) for one in self._draws]), quantiles)

    @property
    def shares(self) -> dict[str, float]:
        """Family -> its share of the posterior, in [0, 1]."""
        total = self._weight.sum()
        return {one.family: float(one.weight.sum() / total) for one in self._draws}

    def _error(self, images: float) -> Array:
        return np.clip(np.concatenate([one.error(images) for one in self._draws]), 0, 1)

    def _quantiles(self, values: Array, quantiles: Sequence[float]) -> tuple[float, ...]:
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self._weight[order]) / self._weight.sum()
        at = np.minimum(np.searchsorted(reached, quantiles), len(values) - 1)
        return tuple(float(value) for value in values[order][at])


def forecast_curve(points: Sequence[CurvePoint], *, seed: int = 0) -> CurveForecast:
    """Extrapolate a learning curve.

    Args:
        points: Of one stage, at `MIN_POINTS` or more different numbers of images, in any order.
        seed: Of the draws.

    Raises:
        DataError: There are fewer points, or they belong to several stages.

    Example:
        >>> sizes = [20, 40, 80, 160, 320, 640]
        >>> known = [CurvePoint(stage="joined", images=n, accuracy=1 - 2 / n**0.5, error=0.003) for n in sizes]
        >>> found = forecast_curve(known)
        >>> round(found.accuracy_at(1280)[0], 2), 1400 < found.images_for(0.95)[0] < 1800
        (0.94, True)
    """
    points = sorted(points, key=lambda point: point.images)
    if len({point.stage for point in points}) > 1:
        raise DataError("The points of one learning curve must be of one stage.")
    if len({point.images for point in points}) < MIN_POINTS:
        sizes = len({point.images for point in points})
        raise DataError(f"Extrapolating needs {MIN_POINTS} or more different numbers of images, got {sizes}.")
    images = np.array([point.images for point in points], dtype=np.float64)
    errors = 1 - np.array([point.accuracy for point in points])
    deviations = np.hypot([point.error for point in points], SPREAD)
    rng = np.random.default_rng(seed)
    fits = [_fit(name, images, errors, deviations) for name in FAMILIES]
    best = max(float(fit.evidence.max()) for fit in fits)
    draws = [_draw(fit, rng, best) for fit in fits]
    misfit = min(float(fit.misfit.min()) for fit in fits) / len(points)
    return CurveForecast(points, draws, _find_problem(points, misfit))


@dataclass(frozen=True)
class _CurveFit:
    """The posterior of one family on its grid of G points."""

    family: str
    onset: Array  # (G,)
    steepness: Array  # (G,)
    scale: Array  # (G,)
    mean: Array  # (G, 2) of (c, a)
    root: Array  # (G, 2, 2) Cholesky factor of their covariance
    evidence: Array  # (G,) log marginal likelihood, but for the cut at 0
    misfit: Array  # (G,) squared residuals in squared standard errors


def _fit(family: str, images: Array, errors: Array, deviations: Array) -> _CurveFit:
    """Exact posterior of (c, a) at every point of the grid, whose third axis is how large c may be."""
    onsets = np.geomspace(images[0] / 1000, 100 * images[-1], ONSETS)
    onset, steepness, floor = (axis.reshape(-1) for axis in np.meshgrid(onsets, STEEPNESS, FLOORS, indexing="ij"))
    curve = FAMILIES[family].curve
    with np.errstate(under="ignore"):
        heights = curve(images[:, None], onset, steepness)  # (P, G)
    kept = heights[-1] * MAX_RATIO > heights[0]
    onset, steepness, floor, heights = onset[kept], steepness[kept], floor[kept], heights[:, kept]
    scaled = heights / heights[-1]
    weights = 1 / deviations**2
    # Normal equations of two unknowns, with their prior: c as large as `floor`, a as large as it likes.
    moments = np.empty((scaled.shape[1], 2, 2))
    moments[:, 0, 0] = weights.sum() + 1 / floor**2
    moments[:, 0, 1] = moments[:, 1, 0] = weights @ scaled
    moments[:, 1, 1] = weights @ scaled**2 + 1
    right = np.stack([np.full(scaled.shape[1], weights @ errors), (weights * errors) @ scaled], axis=1)
    covariance = np.linalg.inv(moments)
    mean = (covariance @ right[..., None])[..., 0]
    residual = errors[:, None] - mean[:, 0] - mean[:, 1] * scaled
    misfit = weights @ residual**2
    # The marginal likelihood: how well the best (c, a) fit, and how much of what was thought possible fits as well.
    evidence = -0.5 * (misfit + (mean[:, 0] / floor) ** 2) + 0.5 * np.linalg.slogdet(covariance)[1] - np.log(floor)
    return _CurveFit(
        family, onset, steepness, heights[-1], mean, np.asarray(np.linalg.cholesky(covariance)), evidence, misfit
    )


def _draw(fit: _CurveFit, rng: np.random.Generator, best: float) -> _Draws:
    """Draws of (c, a) with c >= 0 and a >= 0; where the cut leaves none, the nearest point on it, at a small weight."""
    normal = rng.standard_normal((len(fit.onset), DRAWS, 2))
    drawn = fit.mean[:, None] + np.einsum("gij,gdj->gdi", fit.root, normal)
    inside = (drawn >= 0).all(axis=-1)
    weight = np.exp(fit.evidence - best)[:, None] * np.where(inside, 1.0, OUTSIDE)
    repeat = [np.repeat(values, DRAWS) for values in (fit.onset, fit.steepness, fit.scale)]
    drawn = np.maximum(drawn, 0).reshape(-1, 2)
    return _Draws(fit.family, repeat[0], repeat[1], drawn[:, 0], drawn[:, 1], repeat[2], weight.reshape(-1))


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
        return (
            "The learning curve is not well behaved: no family of curves describes its points. It is not extrapolated."
        )
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
