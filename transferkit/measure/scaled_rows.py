"""Centring and scaling of features per stage, in chunks, so that stages can be joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = [
    "CONSTANT",
    "Array",
    "Chunks",
    "ScaledRows",
    "Scaling",
    "fit_scaling",
    "row_chunks",
    "scale_rows",
    "set_chunks",
]


Array = npt.NDArray[np.floating[Any]]

Chunks = Callable[[], Iterable[npt.NDArray[np.float32]]]
"""Function called for each pass over the images; yields (n, D) float32 rows in the order of the labels."""

CONSTANT = 1e-6
"""A feature whose standard deviation is below this share of the largest one is constant and gets weight 0."""

FLOOR = 0.1
"""A feature is divided by its standard deviation, or by this share of the root mean square deviation in its stage where
that is larger: otherwise a feature that hardly varies in the training images, and does in a new one, outweighs all.
Chosen on 22 tasks with 300 images; see "Prediction sets" in docs/ensembles.md."""


@dataclass(frozen=True)
class Scaling:
    """z = (x - mean) * scale: centred, unit variance per feature (see `FLOOR`), then total variance 1 per stage."""

    mean: Array
    scale: Array

    def apply(self, chunk: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (chunk - self.mean.astype(np.float32)) * self.scale.astype(np.float32)

    def emphasised(self, emphasis: Array | None) -> Scaling:
        return self if emphasis is None else Scaling(self.mean, self.scale * emphasis)


def row_chunks(chunks: Chunks) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    start = 0
    for chunk in chunks():
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)


def set_chunks(chunks: Chunks, together: npt.NDArray[np.int64]) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """The chunks, re-divided so that images left out together are in the same chunk.

    Raises:
        DataError: If such images are not adjacent.
    """
    starts = np.flatnonzero(np.diff(together, prepend=together[0] - 1))
    if len(starts) != len(np.unique(together)):
        raise DataError(
            "Images that are left out together must be adjacent if features are streamed: put features, labels and "
            "folds in the order of `folds.order`."
        )
    starts = np.append(starts, len(together))
    start, held = 0, list[npt.NDArray[np.float32]]()
    for rows, chunk in row_chunks(chunks):
        held.append(chunk)
        cut = int(starts[np.searchsorted(starts, rows.stop, side="right") - 1])
        if cut > start:
            block = np.concatenate(held) if len(held) > 1 else chunk
            yield slice(start, cut), block[: cut - start]
            start, held = cut, [block[cut - start :]]


def fit_scaling(chunks: Chunks, blocks: Mapping[str, slice], weights: npt.NDArray[np.float64]) -> Scaling:
    """Weighted mean and deviation in one pass, shifted by the first chunk's mean to avoid cancellation."""
    shift: Array | None = None
    total = squares = np.zeros(1)
    for rows, chunk in row_chunks(chunks):
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
        if varies.any():
            inverse = varies / np.maximum(inside, FLOOR * np.sqrt(np.mean(inside[varies] ** 2)))
            scale[block] = inverse / np.linalg.norm(inverse * inside)
    return Scaling(shift + offset, scale)


@dataclass(frozen=True)
class ScaledRows:
    """Features of some images, scaled as for the probe: unit variance per feature, then total variance 1 per stage.

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
    """The features of some images, scaled as in `ridge_paths`.

    Args:
        chunks: Gives a fresh pass over the (N, D) features.
        blocks: Stage name -> its columns.
        rows: (n,) ascending indices of the images.
        weights: (N,) > 0, one per image.
    """
    scaling = fit_scaling(chunks, blocks, np.asarray(weights, dtype=np.float64))
    kept = []
    for span, chunk in row_chunks(chunks):
        here = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.stop)] - span.start
        kept.append(scaling.apply(chunk[here]))
    return ScaledRows(np.concatenate(kept), scaling.mean, scaling.scale)
