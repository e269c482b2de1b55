"""Which images training does not see while epochs and blend are chosen on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.decision import HELD_BACK
from transferkit.errors import DataError

__all__ = ["PARTS", "Fold", "hold_back"]

PARTS = round(1 / HELD_BACK)
"""A fold holds back one part in so many."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Positions among the images at hand: (n,) to train on, (m,) held back."""

    train: Indices
    held_back: Indices


def hold_back(labels: Indices, groups: Indices, *, folds: int, seed: int = 0, parts: int = PARTS) -> list[Fold]:
    """Folds that each hold back another fifth of the images, class by class, whole groups only.

    Args:
        labels: (N,) int in [0, K).
        groups: (N,) int; images of equal value stay together.
        folds: How many, in [1, parts].
        seed: Draws which.
        parts: A fold holds back one part in so many.

    Returns:
        Folds of which no two hold back the same image; fewer than asked for where not every part can be held back. No
        fold holds back all images of a class.

    Raises:
        DataError: If no part can be held back without a class being lost.

    Example:
        >>> (fold,) = hold_back(np.array([0] * 5 + [1] * 5), np.arange(10), folds=1)
        >>> len(fold.train), len(fold.held_back)
        (8, 2)
    """
    part = _deal(labels, groups, parts, np.random.default_rng(seed))
    spared = [_spare(labels, groups, part == number) for number in range(parts)]
    made = [Fold(np.flatnonzero(~chosen), np.flatnonzero(chosen)) for chosen in spared if chosen.any()]
    if not made:
        raise DataError(
            "No image can be held back to choose epochs and blend on without a class being lost: every class needs 2 "
            "images, in different groups. Add images, or use strategy=linear_probe."
        )
    return made[: max(folds, 1)]


def _spare(labels: Indices, groups: Indices, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(N,) who of the chosen can go. A class that would be missing from training could not be learnt: groups that have
    images of such a class stay, as a whole."""
    left = np.bincount(labels[~chosen], minlength=int(labels.max()) + 1)
    staying = groups[chosen & (left[labels] == 0)]
    return chosen & ~np.isin(groups, staying)


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
