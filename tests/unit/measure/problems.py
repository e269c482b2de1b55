"""Small classification problems, and the least squares that the fast routes must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from transferkit.records import Folds

Array = npt.NDArray[np.floating]


def make_problem(
    seed: int, *, images: int, widths: tuple[int, ...], classes: int = 3
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], dict[str, slice]]:
    """Overlapping classes seen through stages of very different scale and offset; every class has 2 images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(classes), 2), rng.integers(0, classes, images)]))
    labels = labels[:images] if images < len(labels) else labels
    labels[: 2 * classes] = np.repeat(np.arange(classes), 2)
    width = sum(widths)
    features = rng.normal(size=(images, width)) + rng.normal(size=(classes, width))[labels]
    features = features * np.exp(rng.normal(size=width)) + 10 * rng.normal(size=width)
    stops = np.cumsum(widths)
    blocks = {f"s{i}": slice(int(stop) - w, int(stop)) for i, (w, stop) in enumerate(zip(widths, stops, strict=True))}
    return features.astype(np.float32), labels, blocks


def chunked(features: npt.NDArray[np.float32], size: int):
    """What the feature bank gives: a fresh pass over chunks of rows."""

    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(features), size):
            yield features[start : start + size]

    return chunks


def scaled(features: Array, blocks: Mapping[str, slice], weights: Array | None = None) -> Array:
    """Unit variance per feature that varies, then total variance 1 per stage, in double precision."""
    wide = features.astype(np.float64)
    mean = np.average(wide, axis=0, weights=weights)
    deviation = np.sqrt(np.average((wide - mean) ** 2, axis=0, weights=weights))
    out = np.zeros_like(wide)
    for block in blocks.values():
        varies = deviation[block] > 1e-6 * deviation[block].max()
        columns = np.arange(block.start, block.stop)[varies]
        typical = np.sqrt((deviation[columns] ** 2).mean())
        divisor = np.clip(deviation[columns], typical / 10, None)
        total = ((deviation[columns] / divisor) ** 2).sum()
        out[:, columns] = (wide - mean)[:, columns] / divisor / np.sqrt(total)
    return out


def least_squares(features: Array, targets: Array, penalty: float, weights: Array) -> tuple[Array, Array]:
    """(D, K) and (K,) that minimise the weighted squared error plus the penalty; the intercept is free.

    Solved as one stacked system of equations, without any centring.
    """
    root = np.sqrt(weights)[:, None]
    rows = np.hstack([features, np.ones((len(features), 1))]) * root
    shrink = np.sqrt(penalty) * np.eye(features.shape[1], features.shape[1] + 1)
    right = np.vstack([targets * root, np.zeros((features.shape[1], targets.shape[1]))])
    solution = np.linalg.lstsq(np.vstack([rows, shrink]), right, rcond=None)[0]
    return solution[:-1], solution[-1]


class OneByOne(Folds):
    """Every image left out on its own, as where classes are large, however small they are."""

    @property
    def together(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self))

    def take(self, rows: npt.NDArray[np.integer]) -> OneByOne:
        return OneByOne(self.labels[rows], self.groups[rows], self.copies[rows])


def refit_without_sets(
    features: Array, labels: Array, sets: npt.NDArray[np.int64], classes: int, penalty: float, weights: Array
) -> Array:
    """(N, K) scores of each image from a fit without the images of its set: the meaning of leaving out."""
    targets = np.eye(classes)[labels]
    scores = np.empty((len(labels), classes))
    for number in np.unique(sets):
        out = sets == number
        slope, bias = least_squares(features[~out], targets[~out], penalty, weights[~out])
        scores[out] = features[out] @ slope + bias
    return scores


def refit_without_each(features: Array, labels: Array, classes: int, penalty: float, weights: Array) -> Array:
    """(N, K) scores of each image from a fit to all the others."""
    return refit_without_sets(features, labels, np.arange(len(labels)), classes, penalty, weights)
