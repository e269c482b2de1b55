"""Two-sample tests on several representations of the same images at once: which of them tell two sets apart.

Pure: arrays in, numbers out. The tests are exact for sets that are exchangeable, whatever the representations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ROUNDS", "SampleTest", "energy_tests", "principal_coordinates_of"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

COMPONENTS = 32
"""Principal components that distances are computed on; see docs/shift.md for others."""

ROUNDS = 999
"""Permutations: the least p-value is one in a thousand."""


@dataclass(frozen=True)
class SampleTest:
    """Whether one representation tells two sets of images apart.

    Args:
        name: Of the representation.
        effect: Energy distance as a share of its largest value, in [0, 1]; 0 for equal distributions. Above 0 by
            chance alone in small sets.
        expected: Mean of the effect over permutations, which is what chance gives.
        p_value: Of this representation alone, in (0, 1].
        adjusted: Corrected for all representations tested together, in (0, 1].
    """

    name: str
    effect: float
    expected: float
    p_value: float
    adjusted: float


def principal_coordinates_of(features: npt.NDArray[np.floating], *, count: int = COMPONENTS) -> Floats:
    """(N, d) coordinates on the leading principal components of standardised features.

    Args:
        features: (N, D) of both sets together: components chosen on one would favour it.
        count: Most components, >= 1; fewer where N or D is smaller.
    """
    centred = np.asarray(features, dtype=np.float32)
    centred = centred - centred.mean(axis=0)
    deviation = centred.std(axis=0)
    kept = deviation > 1e-6 * max(float(deviation.max(initial=0.0)), 1e-12)
    if not kept.any():
        return np.zeros((len(centred), 1))
    centred = centred[:, kept] / deviation[kept]
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    leading = slice(-1, -1 - min(count, *centred.shape), -1)
    return vectors[:, leading] * np.sqrt(np.maximum(values[leading], 0.0))


def energy_tests(
    representations: Mapping[str, npt.NDArray[np.floating]],
    is_new: Flags,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[SampleTest]:
    """Energy distance between two sets in each representation, tested by permuting which image is in which set.

    Args:
        representations: Name -> (N, d) coordinates, whose Euclidean distances count.
        is_new: (N,) which images are in the second set; both have 2 or more.
        rounds: Permutations, the same for all representations.
        seed: Of the permutations.

    Returns:
        One test per representation, in order. Adjusted p-values are step-down (Westfall and Young's maxT): the chance
        that any of them is below 0.05 without a difference is at most 5 %, and as representations of the same images
        are alike, much less is lost than by Holm's correction.

    References:
        Szekely and Rizzo, J. Statist. Plann. Inference 2013; Westfall and Young, 1993.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> shifted = np.arange(60) >= 30
        >>> found = energy_tests({"a": rng.normal(size=(60, 2)), "b": rng.normal(size=(60, 2)) + shifted[:, None]},
        ...                      shifted)
        >>> [test.adjusted < 0.05 for test in found]
        [False, True]
    """
    marks = _permuted(is_new, rounds, seed)
    effects = np.stack([_effects(_distances(coordinates), marks) for coordinates in representations.values()])
    spread = effects[:, 1:].std(axis=1, keepdims=True)
    middle = effects[:, 1:].mean(axis=1, keepdims=True)
    scores = (effects - middle) / np.where(spread > 0, spread, 1.0)
    alone = (effects >= effects[:, :1] - 1e-12).mean(axis=1)
    adjusted = _step_down(scores)
    return [
        SampleTest(name, float(max(effects[at, 0], 0.0)), float(middle[at, 0]), float(alone[at]), float(adjusted[at]))
        for at, name in enumerate(representations)
    ]


def _permuted(is_new: Flags, rounds: int, seed: int) -> Singles:
    """(N, rounds + 1) indicators of the second set: as it is, then permuted."""
    rng = np.random.default_rng(seed)
    return np.stack([is_new, *(rng.permutation(is_new) for _ in range(rounds))], axis=1).astype(np.float32)


def _distances(coordinates: npt.NDArray[np.floating]) -> Floats:
    points = np.asarray(coordinates, dtype=np.float64)
    squared = (points**2).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squared[:, None] + squared - 2 * points @ points.T, 0.0)))


def _effects(distances: Floats, marks: Singles) -> Floats:
    """(R,) energy distance over twice the mean distance between the sets, for each column of indicators."""
    new, count = float(marks[:, 0].sum()), len(marks)
    old = count - new
    from_new = distances.astype(np.float32) @ marks
    inside_new = np.einsum("nr,nr->r", marks, from_new, dtype=np.float64)
    between = from_new.sum(axis=0, dtype=np.float64) - inside_new
    inside_old = distances.sum() - 2 * between - inside_new
    across = 2 * between / (new * old)
    # Distances of an image to itself are no distances: without them the estimate is unbiased, but may be below 0.
    within = inside_new / (new * (new - 1)) + inside_old / (old * (old - 1))
    return np.asarray((across - within) / np.where(across > 0, across, 1.0))


def _step_down(scores: Floats) -> Floats:
    """(S,) adjusted p-values of the first column of standardised statistics among all columns."""
    order = np.argsort(-scores[:, 0], kind="stable")
    adjusted, largest = np.empty(len(scores)), np.full(scores.shape[1], -np.inf)
    for at in order[::-1]:  # from the weakest: each is compared with the maximum over itself and weaker ones
        largest = np.maximum(largest, scores[at])
        adjusted[at] = (largest >= scores[at, 0] - 1e-12).mean()
    adjusted[order] = np.maximum.accumulate(adjusted[order])
    return adjusted
