"""Images deeper than 8 bits: black and white points, measured once for the whole data set, and scaling to 8 bits.

Pure: arrays in, numbers out. `deep_pixels` reads such values from files; `ranges` makes findings about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DeepPixels", "ValueSketch", "choose_range", "fallback_range", "own_range", "sketch_values", "to_8_bit"]

SENTINELS = (-9999.0, -999.0, -99999.0, -32768.0, -32767.0)
"""Values that files use for missing data, besides infinities and the largest floats."""

ISOLATED = 0.1
"""Smallest gap between one of these and the next value for it to count as missing, in ranges of the other values."""

LONE = 8.0
"""The same for any other extreme value: if it were kept, the rest would have fewer than 32 of 256 grey levels."""

FEWEST_OTHERS = 16
"""Distinct other values needed for that: a drawing in three tones has no missing values."""

MOST_MISSING = 4
"""Maximum number of distinct values that count as missing without being declared so by the file."""

TAIL = 0.001
"""Share of an image's values at either end outside its low and high: hot pixels, dead pixels."""

OUTLYING = 0.01
"""Share of the images at either end whose low or high may be outside the range."""

ODD, FEWEST_IMAGES = 0.05, 8
"""The same if they are far from all others, and the number of images needed to establish that."""

SPARED = 2.0
"""Nothing is clipped while the extremes span at most this many times the span of the quantiles."""

HALF_USED = 0.5
"""Share of a standard range that the values must use for it to be preferred to the measured one."""

_WHOLE = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
WHITES = {"u": _WHOLE, "i": _WHOLE, "f": (1.0, 255.0, 65535.0)}
"""Kind of dtype -> standard white points with black 0."""

SAMPLED = 2**16
"""Number of evenly spaced values of an image from which quantiles are computed."""

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class DeepPixels:
    """The values of one image, as stored.

    Args:
        values: (H, W) or (H, W, 3), of any integer or float dtype.
        kind: For display: "16-bit unsigned".
        declared: Smallest and largest value that the file or array can hold; None if that is not informative.
        nodata: Values that the file declares as missing.
    """

    values: npt.NDArray[Any]
    kind: str
    declared: Range | None = None
    nodata: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ValueSketch:
    """Summary of an image's values, missing ones excluded.

    Args:
        kind, declared: As in `DeepPixels`.
        family: "u", "i" or "f": unsigned, signed, floating.
        quantiles: Minimum, low and high (all but `TAIL` of the values are above low, below high), maximum; empty if
            there are no values.
        missing: Values that stand for missing data, infinities included; NaN is not listed.
        stated: Those of them that the file declares as missing.
        not_finite: Number of NaN and infinite values.
    """

    kind: str
    family: str
    declared: Range | None = None
    quantiles: tuple[float, ...] = ()
    missing: tuple[float, ...] = ()
    stated: tuple[float, ...] = ()
    not_finite: int = 0

    @property
    def low(self) -> float:
        """`TAIL` quantile of the values."""
        return self.quantiles[1]

    @property
    def high(self) -> float:
        """1 - `TAIL` quantile of the values."""
        return self.quantiles[2]


def sketch_values(pixels: DeepPixels) -> ValueSketch:
    """Summary of one image's values, from which the data set's range is chosen.

    Example:
        >>> heights = np.array([[-9999.0, 120.0], [180.0, np.nan]], dtype=np.float32)
        >>> sketch = sketch_values(DeepPixels(heights, "32-bit float"))
        >>> sketch.quantiles[0], sketch.quantiles[-1], sketch.missing, sketch.not_finite
        (120.0, 180.0, (-9999.0,), 1)
    """
    everything = pixels.values.reshape(-1)
    values = everything[np.isfinite(everything)] if everything.dtype.kind == "f" else everything
    not_finite = len(everything) - len(values)
    values = values.astype(np.float64)
    stated = tuple(value for value in pixels.nodata if (values == value).any())
    missing = list(stated)
    values = values[~np.isin(values, stated)] if stated else values
    while len(missing) < len(stated) + MOST_MISSING and (found := _lone_value(values)) is not None:
        missing.append(found)
        values = values[values != found]
    return ValueSketch(
        kind=pixels.kind,
        family=pixels.values.dtype.kind,
        declared=pixels.declared,
        quantiles=_quantiles(values),
        missing=tuple(missing),
        stated=stated,
        not_finite=not_finite,
    )


def _quantiles(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    if not len(values):
        return ()
    low, high = np.quantile(_sample(values), (TAIL, 1 - TAIL))
    return float(values.min()), float(low), float(high), float(values.max())


def _lone_value(values: npt.NDArray[np.float64]) -> float | None:
    """An extreme value that is a placeholder, not a measurement; None if there is none."""
    if not len(values):
        return None
    ends = (float(values.min()), float(values.max()))
    for end in ends:
        others = values[values != end]
        if _is_sentinel(end) and _gap(end, others) >= ISOLATED * _span(others):
            return end
    inner = values[(values != ends[0]) & (values != ends[1])]
    for end in ends:
        far = len(inner) > 0 and _gap(end, values[values != end]) >= LONE * _span(inner)
        if far and len(np.unique(_sample(inner))) >= FEWEST_OTHERS:
            return end
    return None


def _sample(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values[:: max(1, len(values) // SAMPLED)]


def _is_sentinel(value: float) -> bool:
    return value in SENTINELS or abs(value) >= float(np.finfo(np.float32).max) / 10


def _gap(end: float, others: npt.NDArray[np.float64]) -> float:
    return float(np.abs(others - end).min()) if len(others) else math.inf


def _span(values: npt.NDArray[np.float64]) -> float:
    return float(values.max() - values.min()) if len(values) else 0.0


def choose_range(sketches: Sequence[ValueSketch]) -> Range | None:
    """Black and white points for all images of a data set.

    A standard range (0 to 1, 255, 4095, 65535, ...; a signed type's full range) if at least half of it is used, else
    the measured range: the extremes, or quantiles if a few values are far out.

    Args:
        sketches: Of the training images that are deeper than 8 bits.

    Returns:
        (black, white), black < white; None if there are no values.

    Example:
        >>> ct = DeepPixels(np.arange(1000, 1101, dtype=np.uint16)[None], "16-bit unsigned", (0, 65535))
        >>> choose_range([sketch_values(ct)])
        (1000.0, 1100.0)
    """
    usable = [sketch for sketch in sketches if sketch.quantiles]
    if not usable:
        return None
    quantiles = np.array([sketch.quantiles for sketch in usable])
    low, high = _without_odd_images(np.sort(quantiles[:, 1]), np.sort(quantiles[:, 2]))
    least, most = float(quantiles[:, 0].min()), float(quantiles[:, 3].max())
    if most - least <= SPARED * (high - low):
        low, high = least, most
    for black, white in _standard_ranges(usable):
        if black <= low and high <= white and (high - low >= HALF_USED * (white - black) or high == low):
            return black, white
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _without_odd_images(lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64]) -> Range:
    """Low and high over all images except outliers, from the sorted (N,) lows and highs.

    The `OUTLYING` share is always left out; up to the `ODD` share if the others span `LONE` times less: one broken
    image must not reduce the others to a handful of grey levels.
    """
    images = len(lows)
    few, more = math.floor(OUTLYING * images), math.ceil(ODD * images) if images >= FEWEST_IMAGES else 0
    (low, high), (inner_low, inner_high) = ((float(lows[n]), float(highs[-1 - n])) for n in (few, more))
    if inner_high > inner_low and high - low >= LONE * (inner_high - inner_low):
        return inner_low, inner_high
    return low, high


def _standard_ranges(sketches: Sequence[ValueSketch]) -> Iterator[Range]:
    families = {sketch.family for sketch in sketches}
    family = "f" if "f" in families else "i"
    yield from ((0.0, white) for white in WHITES[family])
    yield from sorted({sketch.declared for sketch in sketches if sketch.declared is not None})


def own_range(sketch: ValueSketch) -> Range:
    """Black and white of a single image: for fingerprints, never for features."""
    return choose_range([sketch]) or (0.0, 1.0)


def fallback_range(sketch: ValueSketch) -> Range:
    """Black and white of an image without a data set: the range its file declares, or the narrowest standard range."""
    if sketch.declared is not None:
        return sketch.declared
    if not sketch.quantiles:
        return 0.0, 1.0
    least, _, _, most = sketch.quantiles
    return next(((0.0, white) for white in WHITES[sketch.family] if least >= 0 and most <= white), own_range(sketch))


def to_8_bit(pixels: DeepPixels, value_range: Range) -> npt.NDArray[np.uint8]:
    """Stored values as grey levels: black becomes 0, white 255, values beyond are clipped, missing ones are black.

    Args:
        pixels: The image.
        value_range: (black, white) in stored units.

    Returns:
        uint8 of the same shape.

    Example:
        >>> to_8_bit(DeepPixels(np.array([[900, 1000, 1020, 1100]]), "16-bit unsigned"), (1000, 1100)).tolist()
        [[0, 0, 51, 255]]
    """
    black, white = value_range
    values = pixels.values.astype(np.float64)
    for missing in pixels.nodata:
        values[values == missing] = black
    # Multiply before dividing: 255 / 100 is not exact in binary, so halves would round inconsistently.
    levels = np.nan_to_num((values - black) * 255 / (white - black), nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
