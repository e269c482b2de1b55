"""Which images training does not see while epochs and blend are chosen on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Fold", "hold_back"]

PARTS = 5
"""A fold holds back one part in so many."""

ENOUGH = 200
"""Held-back images that are enough: an accuracy near 90 % is then known to 2 points, one standard error."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Positions among the images at hand: (n,) to train on, (m,) held back."""

    train: Indices
    held_back: Indices


def hold_back(
    labels: Indices, groups: Indices, *, folds: int | None = None, seed: int = 0, parts: int = PARTS
) -> list[Fold]:
    """Folds that each hold back another fifth of the images, class by class, whole groups only.

    Args:
        labels: (N,) int in [0, K).
        groups: (N,) int; images of equal value stay together.
        folds: How many, in [1, parts]; None takes as many as it needs for `ENOUGH` held-back images together.
        seed: Draws which.
        parts: A fold holds back one part in so many.

    Returns:
        Folds of which no two hold back the same image. No fold holds back all images of a class.

    Example:
        >>> (fold,) = hold_back(np.array([0] * 5 + [1] * 5), np.arange(10), folds=1)
        >>> len(fold.train), len(fold.held_back)
        (8, 2)
    """
    part = _deal(labels, groups, parts, np.random.default_rng(seed))
    if folds is None:
        folds = math.ceil(ENOUGH * parts / max(len(labels), 1))
    everyone = np.arange(len(labels))
    made = []
    for number in range(min(max(folds, 1), parts)):
        held_back = everyone[part == number]
        # A class that would be missing from training cannot be learnt: its images stay.
        left = np.bincount(labels[part != number], minlength=int(labels.max()) + 1)
        held_back = held_back[left[labels[held_back]] > 0]
        if len(held_back):
            made.append(Fold(np.setdiff1d(everyone, held_back), held_back))
    return made


def _deal(labels: Indices, groups: Indices, parts: int, rng: np.random.Generator) -> Indices:
    """(N,) part of each image: each class's groups are dealt out in turn, the next class going on where it ended."""
    part = np.zeros(len(labels), dtype=np.int64)
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    owner = labels[first]  # a group of several classes goes with that of its first image
    of_group = np.zeros(len(first), dtype=np.int64)
    turn = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(owner == label))
        of_group[members] = (turn + np.arange(len(members))) % parts
        turn += len(members)
    part[:] = of_group[codes.reshape(-1)]
    return part
