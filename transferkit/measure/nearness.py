"""Distance of a set of images from a network's training images, from moments of activations, and its scale to [0, 1].

With N images every distance is biased upwards by about c / N, because sample moments vary around the true ones. The
jackknife (leave out a group of images and see how the distance changes) removes this bias and gives a standard error,
so the expected value for images from the source is 0 for any N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.measure.similarity import (
    SMALLEST_VARIANCE,
    ChannelMoments,
    channel_hellinger,
    kl_by_channel,
    w2_by_channel,
)
from transferkit.records import StageDistance

__all__ = ["GROUPS", "Nearness", "Scale", "fit_scale", "measure_nearness", "remove_bias"]

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

GROUPS = 25
"""Groups of images that the jackknife leaves out in turn; more change the standard error by only a few percent."""

QUARTER_ODDS = math.log(3)
"""Logit of 0.75, a scale's value at its near anchor; at the far one it is 0.25."""


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Distance over all stages.

    Args:
        distance: Mean of the stages' distances.
        error: Its standard error; stages are correlated, so it is not the mean of theirs.
        stages: Stem -> head.
    """

    distance: float
    error: float
    stages: tuple[StageDistance, ...]


@dataclass(frozen=True)
class Scale:
    """Maps a distance to a similarity: 1 / (1 + (distance / middle) ** steepness).

    Args:
        middle: The distance at which the similarity is 0.5, > 0.
        steepness: > 0.

    Example:
        >>> scale = Scale(middle=0.05, steepness=1.5)
        >>> scale.similarity(0.0), scale.similarity(0.05), round(scale.similarity(0.2), 3)
        (1.0, 0.5, 0.111)
    """

    middle: float
    steepness: float

    def __post_init__(self) -> None:
        if not (self.middle > 0 and self.steepness > 0):
            raise OptionError(f"A scale needs middle > 0 and steepness > 0, got {self.middle!r}, {self.steepness!r}.")

    def similarity(self, distance: float) -> float:
        """In (0, 1]; falls as the distance grows. A distance below 0 counts as 0."""
        return 1 / (1 + (max(distance, 0.0) / self.middle) ** self.steepness)


def fit_scale(near: float, far: float) -> Scale:
    """The scale with similarity 0.75 at one distance and 0.25 at the other, hence 0.5 at their geometric mean.

    Raises:
        OptionError: Unless 0 < near < far.

    Example:
        >>> scale = fit_scale(0.02, 0.08)
        >>> round(scale.middle, 3), round(scale.similarity(0.02), 3), round(scale.similarity(0.08), 3)
        (0.04, 0.75, 0.25)
    """
    if not 0 < near < far:
        raise OptionError(f"A scale needs 0 < near < far, got {near!r} and {far!r}.")
    return Scale(math.sqrt(near * far), 2 * QUARTER_ODDS / math.log(far / near))


def measure_nearness(source: Mapping[str, ChannelMoments | Array], target: Mapping[str, Array]) -> Nearness:
    """Distance between activations and those of the source, stage by stage; lower is more similar.

    Args:
        source: Stage -> the source's moments, taken as exact; or (M, 2C) rows of source images, like `target`.
        target: Stage -> (N, 2C), a row per image, the same images in all stages: of each channel the mean over the
            image's positions, then of each channel the mean square. N >= 2. The order of rows must be independent of
            the images' content.

    Returns:
        Unbiased up to terms of order 1 / N^2. Channels that are constant in the source are left out, as are stages
        that the source does not have or that have no other channels.

    Raises:
        OptionError: If the shapes do not fit, or no stage can be compared.

    References:
        Quenouille, Biometrika 1956 (bias); Busing et al., Statistics and Computing 1999 (groups left out).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> positions = rng.normal(size=(60, 8, 49))  # like the source: mean 0, variance 1
        >>> rows = np.concatenate([positions.mean(axis=2), (positions**2).mean(axis=2)], axis=1)
        >>> found = measure_nearness({"top": ChannelMoments(np.zeros(8), np.ones(8))}, {"top": rows})
        >>> abs(found.distance) < 3 * found.error
        True
    """
    sides = (_open_side(source), _open_side(target))
    alive = _channels_alive(sides[0].moments(), target)
    value, error = _jackknife(sides, alive)
    stages = tuple(
        StageDistance(
            stage=stage,
            distance=float(value[row, 0]),
            error=float(error[row, 0]),
            w2=float(value[row, 1]),
            kl=float(value[row, 2]),
            channels=int(alive[stage].sum()),
        )
        for row, stage in enumerate(alive)
    )
    return Nearness(distance=float(value[-1, 0]), error=float(error[-1, 0]), stages=stages)


class _Known:
    """Moments treated as exact."""

    def __init__(self, moments: Mapping[str, ChannelMoments]) -> None:
        self._moments = moments
        self.shares = np.empty(0)

    def moments(self, without: int | None = None) -> Mapping[str, ChannelMoments]:
        assert without is None
        return self._moments


class _Sampled:
    """Moments of rows, stored as sums over groups of rows, so that leaving a group out is a subtraction.

    Attributes:
        shares: (G,) share of the rows in each group.
    """

    def __init__(self, rows: Mapping[str, Array]) -> None:
        counts = {len(part) for part in rows.values()}
        if len(counts) != 1 or min(counts) < 2 or any(part.ndim != 2 or part.shape[1] % 2 for part in rows.values()):
            shapes = ", ".join(str(part.shape) for part in rows.values())
            raise OptionError(f"Expected (N, 2C) per stage with one N >= 2 for all, got {shapes or 'no stage'}.")
        (count,) = counts
        starts = np.linspace(0, count, min(GROUPS, count) + 1).astype(int)
        self._counts = np.diff(starts)
        self._sums = {stage: np.add.reduceat(part, starts[:-1], dtype=np.float64) for stage, part in rows.items()}
        self.shares = self._counts / count

    def moments(self, without: int | None = None) -> Mapping[str, ChannelMoments]:
        weights = np.ones(len(self._counts))
        if without is not None:
            weights[without] = 0
        return {stage: _moments_of(weights @ sums / (weights @ self._counts)) for stage, sums in self._sums.items()}


def _moments_of(row: Array) -> ChannelMoments:
    mean, square = np.split(row, 2)
    return ChannelMoments(mean, np.maximum(square - mean**2, 0))


def _open_side(side: Mapping[str, ChannelMoments | Array]) -> _Known | _Sampled:
    known = {stage: moments for stage, moments in side.items() if isinstance(moments, ChannelMoments)}
    if known:
        return _Known(known)
    return _Sampled({stage: rows for stage, rows in side.items() if not isinstance(rows, ChannelMoments)})


def _channels_alive(source: Mapping[str, ChannelMoments], target: Mapping[str, Array]) -> dict[str, Mask]:
    """Stage -> (C,) bool: whether the channel varies in the source; stages without such channels are left out."""
    for stage in source.keys() & target.keys():
        if target[stage].shape[1] != 2 * len(source[stage].mean):
            raise OptionError(
                f"Stage {stage!r} has {len(source[stage].mean)} channels in the source, so its rows must be twice as "
                f"wide, got {target[stage].shape}."
            )
    alive = {stage: side.variance > SMALLEST_VARIANCE for stage, side in source.items() if stage in target}
    alive = {stage: channels for stage, channels in alive.items() if channels.any()}
    if not alive:
        raise OptionError("The source and the target have no stage in common whose channels vary in the source.")
    return alive


def _distances(
    source: Mapping[str, ChannelMoments], target: Mapping[str, ChannelMoments], alive: Mapping[str, Mask]
) -> Array:
    """(S + 1, 3) Hellinger, W2 and KL of each stage, then their means over stages."""
    rows = []
    for stage, channels in alive.items():
        one, two = (
            ChannelMoments(side[stage].mean[channels], side[stage].variance[channels]) for side in (source, target)
        )
        rows.append(
            [channel_hellinger(one, two), np.median(w2_by_channel(one, two)), np.median(kl_by_channel(one, two))]
        )
    every = np.array(rows, dtype=np.float64)
    return np.concatenate([every, every.mean(axis=0, keepdims=True)])


def _jackknife(sides: tuple[_Known | _Sampled, _Known | _Sampled], alive: Mapping[str, Mask]) -> tuple[Array, Array]:
    """Bias-corrected `_distances` and their standard errors; each sampled side contributes to both."""
    source, target = (side.moments() for side in sides)
    full = _distances(source, target, alive)
    value, variance = full.copy(), np.zeros_like(full)
    for number, side in enumerate(sides):
        parts = []
        for group in range(len(side.shares)):
            left = side.moments(without=group)
            parts.append(_distances(left, target, alive) if number == 0 else _distances(source, left, alive))
        if parts:
            found, squared = remove_bias(full, np.array(parts), side.shares)
            value += found - full
            variance += squared
    return value, np.sqrt(variance)


def remove_bias(full: Array, left_out: Array, shares: Array) -> tuple[Array, Array]:
    """The delete-a-group jackknife: bias-corrected value, and its variance.

    Args:
        full: Value of all rows, of any shape.
        left_out: (G, ...) values without each of G groups of rows.
        shares: (G,) share of the rows in each group.

    References:
        Busing et al., Statistics and Computing 1999.
    """
    weight = (1 / shares).reshape(-1, *[1] * full.ndim)  # Busing's h: n over the rows in the group
    value = len(shares) * full - ((1 - 1 / weight) * left_out).sum(axis=0)
    pseudo = weight * full - (weight - 1) * left_out
    return value, np.mean((pseudo - value) ** 2 / (weight - 1), axis=0)
