"""What more training images would bring: the learning curve extrapolated by several families, with intervals.

Every family of curves (`measure/curve_families.py`) has a posterior given the measured points. All families are equally
likely beforehand and weighted by how well they explain the points, their marginal likelihood (Bayesian model
averaging); forecasts are quantiles over draws from all of them. What slopes are usual was learnt from the curves of our
tasks (`USUAL`), so a short or noisy curve is continued like others, with a wide interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError, unknown_name
from transferkit.measure.curve_families import FAMILIES, USUAL, CurveDraws, CurvePrior, MeasuredCurve, draw_curves
from transferkit.records import CurvePoint, DataNeed, Folds, Forecast, WantedAccuracy

__all__ = ["CurveForecast", "fitted_images", "forecast_curve", "measure_data_need"]

Array = npt.NDArray[np.float64]

MIN_POINTS = 3
"""Different numbers of images below which nothing is extrapolated: a curve has three parameters or more."""

UNLIKELY = 20.0
"""Draws whose weight is less than e to minus this of the largest are left out: a billionth each."""

LOWEST, HIGHEST = 0.1, 0.9
"""Quantiles of the 80 % interval."""

DROP, DROP_ERRORS = 0.01, 3.0
"""A curve that falls by more than this, and by more than this many standard errors, is not well behaved."""

MISFIT = 6.0
"""Mean squared residual of the best curve, in squared standard errors, above which no curve describes the points."""

MOST_IMAGES = 10**7
"""Numbers of images beyond this are not reported."""

MULTIPLES = (2, 4)
"""Of today's number of images, for the default forecasts; intervals of a flat curve are useless farther out."""

ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Accuracies that a person may want; the first `WANTED` above what is expected today are answered."""

WANTED = 2
NOTICEABLE = 0.005
"""A wanted accuracy is at least this far above today's."""


class CurveForecast:
    """A learning curve extrapolated: quantiles of the accuracy at any number of images, and the reverse.

    Attributes:
        points: The measured points, by growing number of images.
        problem: Why the curve is not well behaved, a sentence; "" if it is.
    """

    def __init__(self, points: Sequence[CurvePoint], draws: Sequence[CurveDraws], problem: str) -> None:
        self.points = tuple(points)
        self.problem = problem
        best = max(float(one.log_weight.max()) for one in draws)
        self._draws = tuple(one.likelier_than(best - UNLIKELY) for one in draws)
        self._weight = np.exp(np.concatenate([one.log_weight for one in self._draws]) - best)

    @property
    def shares(self) -> dict[str, float]:
        """Family -> its share of the posterior, in [0, 1]; they add up to 1."""
        ends = np.cumsum([len(one.log_weight) for one in self._draws])[:-1]
        parts = np.split(self._weight / self._weight.sum(), ends)
        return {one.family: float(part.sum()) for one, part in zip(self._draws, parts, strict=True)}

    def accuracy_at(self, images: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the expected accuracy with that many training images, in [0, 1].

        Args:
            images: > 0, finite.
            quantiles: In (0, 1).

        Raises:
            OptionError: One of them is outside of its range.
        """
        return self._quantiles(self._accuracy(_require_images(images)), quantiles)

    def gain(
        self, before: float, after: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)
    ) -> tuple[float, ...]:
        """Quantiles of the gain in accuracy from `before` to `after` images; below 0 if there are fewer after.

        Raises:
            OptionError: One of them is outside of its range, as for `accuracy_at`.
        """
        before, after = _require_images(before), _require_images(after)
        return self._quantiles(self._accuracy(after) - self._accuracy(before), quantiles)

    def images_for(self, accuracy: float, quantiles: Sequence[float] = (0.5, LOWEST, HIGHEST)) -> tuple[float, ...]:
        """Quantiles of the number of training images that an accuracy takes; infinite where it is never reached.

        Raises:
            OptionError: The accuracy is not in [0, 1], or a quantile not in (0, 1).
        """
        if not 0 <= accuracy <= 1:
            raise OptionError(f"An accuracy must be in [0, 1], got {accuracy!r}.")
        wanted = float(accuracy)
        return self._quantiles(np.concatenate([one.images_for(wanted) for one in self._draws]), quantiles)

    def _accuracy(self, images: float) -> Array:
        return np.concatenate([one.accuracy(images) for one in self._draws])

    def _quantiles(self, values: Array, quantiles: Sequence[float]) -> tuple[float, ...]:
        if not all(0 < one < 1 for one in quantiles):
            raise OptionError(f"Quantiles must be in (0, 1), got {list(quantiles)!r}.")
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self._weight[order]) / self._weight.sum()
        at = np.minimum(np.searchsorted(reached, quantiles), len(values) - 1)
        return tuple(float(value) for value in values[order][at])


def _require_images(images: float) -> float:
    if not (math.isfinite(images) and images > 0):
        raise OptionError(f"A number of training images must be finite and > 0, got {images!r}.")
    return float(images)


def forecast_curve(
    points: Sequence[CurvePoint],
    *,
    families: Sequence[str] = tuple(FAMILIES),
    prior: CurvePrior = USUAL,
    seed: int = 0,
) -> CurveForecast:
    """Extrapolate a learning curve.

    Args:
        points: Of one stage, at `MIN_POINTS` or more different numbers of images, in any order. The error of the one
            with the most images says how few images the accuracies were measured on; if it is 0, as many as that.
        families: Names in `FAMILIES`, one or more: "probit", "pow4", "mmf4", "wbl4".
        prior: Which curves of the probit family are usual; it counts most for few and noisy points.
        seed: Of the draws.

    Raises:
        OptionError: There is no such family, or none is asked for.
        DataError: There are fewer points, they belong to several stages, or are not of class `CurvePoint`.

    Example:
        >>> sizes = [20, 40, 80, 160, 320, 640]
        >>> known = [CurvePoint(stage="joined", images=n, accuracy=1 - 2 / n**0.5, error=0.003) for n in sizes]
        >>> found = forecast_curve(known)
        >>> round(found.accuracy_at(1280)[0], 2), 1400 < found.images_for(0.95)[0] < 1800
        (0.94, True)
    """
    families = _require_families(families)
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
    measured, rng = MeasuredCurve.of(points), np.random.default_rng(seed)
    draws = [draw_curves(name, measured, prior, rng) for name in families]
    return CurveForecast(points, draws, _find_problem(points, draws))


def _require_families(families: Sequence[str]) -> tuple[str, ...]:
    names = (families,) if isinstance(families, str) else tuple(dict.fromkeys(families))
    if not names:
        raise OptionError(f"families must name one or more of {', '.join(FAMILIES)}, got none.")
    for name in names:
        if name not in FAMILIES:
            raise OptionError(unknown_name("family of learning curves", name, FAMILIES))
    return names


def _find_problem(points: Sequence[CurvePoint], draws: Sequence[CurveDraws]) -> str:
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
    if min(one.misfit for one in draws) > MISFIT * len(points):
        names = ", ".join(one.family for one in draws)
        tried = (
            f"none of {len(draws)} families of curves ({names})" if len(draws) > 1 else f"no curve of family {names}"
        )
        return f"The learning curve is not well behaved: {tried} describes its points. It is not extrapolated."
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
