"""Labelled images that look like the new ones: training images, altered in the way that comes closest to the shift.

A remedy that helps on the new images should help on these, where labels say whether it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.shift.alterations import ALTERATIONS
from transferkit.shift.new_images import NewImages, witness_features
from transferkit.shift.reference import Reference
from transferkit.shift.two_sample import energy_tests, principal_coordinates_of

__all__ = ["Rehearsal", "prepare_rehearsal"]

SEARCHED, REHEARSED, COMPARED = 48, 128, 128
"""Training images that alterations are compared on, and that remedies are rehearsed on; new images compared."""

CLOSER = 0.5
"""Largest energy distance to the new images, as a share of that of unaltered training images, that is close enough."""


@dataclass(frozen=True)
class Rehearsal:
    """Altered training images.

    Args:
        name: Of the alteration.
        closeness: Energy distance to the new images as a share of that of unaltered training images, summed over
            the stages; below 1 is closer.
        pixels: (R, 3, S, S) uint8, or (R, V, 3, S, S).
        labels: (R,) int.
    """

    name: str
    closeness: float
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def is_close(self) -> bool:
        """Whether it looks like the new images at all."""
        return self.closeness <= CLOSER


def prepare_rehearsal(reference: Reference, new: NewImages, *, seed: int = 0) -> Rehearsal | None:
    """The alteration of training images that brings them closest to the new ones; None without a witness.

    Args:
        reference: The training images.
        new: What they should look like.
        seed: Of the samples.
    """
    witness, table = reference.witness, reference.table
    if witness is None or table is None or not len(new):
        return None
    rng = np.random.default_rng(seed)
    chosen = _balanced(reference.folds.labels, REHEARSED, rng)
    wants = witness.backbone.spec.preprocessing
    views = wants.each_view
    shown = [np.stack([reference.data.pixels(int(reference.indices[row]), view) for view in views]) for row in chosen]
    pixels = np.stack(shown) if wants.views else np.stack([one[0] for one in shown])
    scale = float(np.median(reference.data.sizes[reference.indices].min(axis=1))) / pixels.shape[-1]
    fresh = np.sort(rng.permutation(len(new))[:COMPARED])
    few = chosen[:SEARCHED]
    stages = list(table.blocks)
    beside = {stage: new.features([stage])[fresh] for stage in stages}
    plain = _distances({stage: table.take(few).load([stage]) for stage in stages}, beside)
    closeness = {}
    for name, alter in ALTERATIONS.items():
        altered = witness_features(witness, list(alter(pixels[: len(few)], scale)))
        found = _distances({stage: altered.load([stage]) for stage in stages}, beside)
        # Of sums: where a stage sees hardly any difference, its ratio would say nothing.
        closeness[name] = float(found.sum() / max(float(plain.sum()), 1e-3))
    best = min(closeness, key=lambda name: closeness[name])
    return Rehearsal(best, closeness[best], ALTERATIONS[best](pixels, scale), reference.folds.labels[chosen])


def _balanced(labels: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of random images, one of each class after the other."""
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        turn[own] = np.arange(len(own))
    return order[np.argsort(turn[order], kind="stable")][:count]


def _distances(
    one: dict[str, npt.NDArray[np.float32]], other: dict[str, npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """(S,) energy distance at each stage."""
    points = {stage: principal_coordinates_of(np.concatenate([one[stage], other[stage]])) for stage in one}
    first = len(next(iter(one.values())))
    is_new = np.arange(len(next(iter(points.values())))) >= first
    return np.array([test.effect for test in energy_tests(points, is_new, rounds=1)])
