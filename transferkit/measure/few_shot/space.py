"""Where few-shot methods measure distances: all stages side by side, whitened by what other images teach.

Rows of the joined space are, for each half (mean, maximum) of each late stage: whitened, centred, scaled to length 1.
Distances are then sums of one cosine per half, so no half is drowned by a wider or louder one, and no label is
needed to choose a stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from transferkit.core.errors import DataError
from transferkit.measure.few_shot.nearest_mean import unit_rows

__all__ = ["FeatureSpace", "Scatter", "StagePart", "late_parts", "total_scatter", "within_scatter"]

EARLIEST, MIDDLE = 1 / 3, 1 / 2
"""Shares of the depth: stages before the first are left out (edges and colours of a patch), those before the second
weigh half. On the tasks that constants were chosen on (docs/scarce.md) equal weights are 0.8 points worse."""

RIDGE = 0.1
"""Added to a covariance, in units of its mean variance: how little of the smallest directions is believed."""

MIN_ROWS = 3
"""Images of a class whose spread is worth anything."""


class StagePart(NamedTuple):
    """Features that are scaled together: the means, or the maxima, of a stage.

    Args:
        start, stop: Their columns.
        weight: Of their cosine in the sum.
    """

    start: int
    stop: int
    weight: float = 1.0


def late_parts(blocks: Mapping[str, slice], *, halved: Collection[str]) -> tuple[StagePart, ...]:
    """The parts that are joined, of all but the earliest third of the stages.

    Args:
        blocks: Stage -> its columns, stem -> top.
        halved: Stages whose block is means, then maxima (pooling avg+max).

    Example:
        >>> blocks = {"stem": slice(0, 2), "middle": slice(2, 6), "top": slice(6, 10)}
        >>> [tuple(part) for part in late_parts(blocks, halved=["middle"])]
        [(2, 4, 0.25), (4, 6, 0.25), (6, 10, 1.0)]
    """
    parts: list[StagePart] = []
    for place, (name, block) in enumerate(blocks.items()):
        depth = place / len(blocks)
        if depth < EARLIEST:
            continue
        edges = [block.start, block.stop]
        if name in halved:
            edges.insert(1, (block.start + block.stop) // 2)
        weight = (0.5 if depth < MIDDLE else 1.0) / (len(edges) - 1)
        parts += [StagePart(start, stop, weight) for start, stop in pairwise(edges)]
    return tuple(parts)


@dataclass(frozen=True)
class Scatter:
    """Covariances of features that were measured on other images, one per part, each of trace 1.

    Args:
        covariances: (d, d) float64 per part.
        tasks: How many sets of images they are the mean of.
    """

    covariances: tuple[npt.NDArray[np.float64], ...]
    tasks: int = 1

    @classmethod
    def mean_of(cls, scatters: Sequence[Scatter]) -> Scatter:
        """The mean over sets of images, each weighing the same.

        Raises:
            DataError: There is none, or they are of different parts.
        """
        shapes = {tuple(one.shape for one in scatter.covariances) for scatter in scatters}
        if len(shapes) != 1:
            raise DataError("Scatters need to be of the same backbone and the same parts, at least one of them.")
        columns = zip(*(scatter.covariances for scatter in scatters), strict=True)
        return cls(tuple(np.mean(one, axis=0) for one in columns), len(scatters))


def within_scatter(
    features: npt.NDArray[Any], labels: npt.NDArray[np.integer[Any]], parts: Sequence[StagePart]
) -> Scatter:
    """Covariance of images around the mean of their class: the earlier task's lesson on what does not matter.

    Args:
        features: (N, D) float.
        labels: (N,) int; classes with fewer than 3 images are left out.
        parts: StagePart of each part.

    Raises:
        DataError: No class has enough images, or features are not finite.

    Example:
        >>> rows, labels = np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]]), np.array([0, 0, 0, 1, 1, 1])
        >>> within_scatter(rows, labels, [StagePart(0, 1)]).covariances[0].tolist()
        [[1.0]]
    """
    residuals = [
        features[labels == one] - features[labels == one].mean(axis=0)
        for one in np.unique(labels)
        if (labels == one).sum() >= MIN_ROWS
    ]
    if not residuals:
        raise DataError(f"To learn from an earlier task, it needs a class with {MIN_ROWS} images or more.")
    return total_scatter(np.concatenate(residuals), parts, centre=False)


def total_scatter(features: npt.NDArray[Any], parts: Sequence[StagePart], *, centre: bool = True) -> Scatter:
    """Covariance of images without labels.

    Args:
        features: (N, D) float, finite.
        parts: StagePart of each part.
        centre: Whether the mean is taken off first.

    Raises:
        DataError: Features are not finite.
    """
    if not np.isfinite(features).all():
        raise DataError("Features must be finite. Leave out the images with NaN or infinite values.")
    found = []
    for start, stop, _ in parts:
        rows = features[:, start:stop].astype(np.float64)
        rows = rows - rows.mean(axis=0) if centre else rows
        covariance = rows.T @ rows
        # A part that is constant teaches nothing: the identity.
        trace = float(np.trace(covariance))
        found.append(covariance / trace if trace > 0 else np.eye(stop - start) / (stop - start))
    return Scatter(tuple(found))


@dataclass(frozen=True)
class FeatureSpace:
    """The joined space.

    Args:
        parts: StagePart of each part in the raw features.
        maps: (d, d) per part, what it is multiplied with; empty: nothing.

    Example:
        >>> space = FeatureSpace.of((StagePart(0, 2), StagePart(2, 3)))
        >>> rows = space.whiten(np.array([[3.0, 4.0, 7.0], [0.0, 0.0, 5.0]]))
        >>> space.join(rows, np.zeros(3)).round(2).tolist()
        [[0.42, 0.57, 0.71], [0.0, 0.0, 0.71]]
    """

    parts: tuple[StagePart, ...]
    maps: tuple[npt.NDArray[np.float32], ...] = ()

    @classmethod
    def of(cls, parts: Sequence[StagePart], scatter: Scatter | None = None, *, ridge: float = RIDGE) -> FeatureSpace:
        """The space in which images of one class spread alike in all directions, as far as the scatter knows.

        Args:
            parts: StagePart of each part.
            scatter: Of the same parts; None: features as they are.
            ridge: Added to each covariance, in units of its mean variance, > 0.

        Raises:
            DataError: The scatter is of other parts.
        """
        if scatter is None:
            return cls(tuple(parts))
        if [len(one) for one in scatter.covariances] != [one.stop - one.start for one in parts]:
            raise DataError("The covariances are of other features: another backbone, pooling or stages.")
        return cls(tuple(parts), tuple(_inverse_root(one, ridge) for one in scatter.covariances))

    def whiten(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(N, D) raw features -> (N, D') float32, the parts side by side; linear, so done once for all tasks."""
        rows = [np.asarray(features[:, start:stop], dtype=np.float32) for start, stop, _ in self.parts]
        maps = self.maps or (None,) * len(rows)
        return np.concatenate([one if by is None else one @ by for one, by in zip(rows, maps, strict=True)], axis=1)

    def join(self, rows: npt.NDArray[Any], centre: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
        """Whitened rows -> rows of the joined space: every part centred, its length the root of its weight's share.

        Args:
            rows: (n, D') as `whiten` gives them.
            centre: (D',), such as the mean over the shots.
        """
        moved = rows - centre
        joined, start, total = [], 0, sum(one.weight for one in self.parts)
        for first, last, weight in self.parts:
            unit = unit_rows(moved[:, start : start + last - first])
            joined.append(unit * np.asarray((weight / total) ** 0.5, dtype=unit.dtype))
            start += last - first
        return np.concatenate(joined, axis=1)


def _inverse_root(covariance: npt.NDArray[np.float64], ridge: float) -> npt.NDArray[np.float32]:
    """(C + ridge v I)^-1/2 up to a turn, where v is the mean variance."""
    values, vectors = eigh(covariance, driver="evd")
    values = np.maximum(values, 0)
    mean = float(values.mean()) or 1.0
    return np.asarray(vectors / np.sqrt(values / mean + ridge), dtype=np.float32)
