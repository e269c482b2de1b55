"""Cross-validation folds that keep groups and copies together; every reported estimate uses them.

A held-back image stands for a new one only if everything related to it is held back as well: the other images of its
group (one patient, one scene, one video) and its copies. `Folds` defines which images are held back together and the
weight of each; measures and training take both from it and make no splits themselves.

It is in `records`, not in `data`, because `measure` and `finetune` need it and `measure` must not import `data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError
from transferkit.core.limits import N_SPLITS

if TYPE_CHECKING:
    from transferkit.records.targets import Targets

__all__ = ["Fold", "Folds", "connected_groups"]

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

LARGE_CLASS = 100
"""Mean groups per class from which groups are left out one by one: leaving one out then shifts a class by 1 %."""

LEFT_OUT_AT_ONCE = 128
"""Maximum images left out together, unless one group has more. Exact leave-out formulas cost its square per image."""

LARGE_GROUP, LARGE_SPLITS = 1024, 10
"""If a group has more images than `LARGE_GROUP`, only `LARGE_SPLITS` sets are left out: each then needs a new fit."""


@dataclass(frozen=True)
class Fold:
    """One split into training and held-back images.

    Args:
        train: (n,) positions to fit on.
        held_back: (m,) positions to test on.
    """

    train: Indices
    held_back: Indices


@dataclass(frozen=True)
class Folds:
    """Which images are held back together, and how much each counts.

    Args:
        labels: (N,) int in [0, K).
        groups: (N,) int; images of equal value are always held back together.
        copies: (N,) int; equal values mark copies of one image, which must share a group. They count as one image.

    Raises:
        DataError: The three differ in length, or copies of one image are in different groups.

    Example:
        >>> folds = Folds(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 1, 2, 3, 4]))
        >>> folds.together.tolist()  # the first group of each class, then the second
        [0, 0, 1, 0, 1, 1]
        >>> folds.counting(folds.together).tolist()  # the first two images are copies of each other
        [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    labels: Indices
    groups: Indices
    copies: Indices

    @property
    def targets(self) -> Targets | None:
        """Labels or numbers of images that have not one class each; None here, see `TargetFolds`."""
        return None

    def __post_init__(self) -> None:
        if not self.labels.shape == self.groups.shape == self.copies.shape:
            shapes = f"{self.labels.shape}, {self.groups.shape} and {self.copies.shape}"
            raise DataError(f"Labels, groups and copies need one entry per image each, got shapes {shapes}.")
        pairs = np.unique(np.stack([self.copies, self.groups]), axis=1)
        if pairs.shape[1] != len(np.unique(self.copies)):
            raise DataError("Copies of one image are in different groups; merge these groups first.")

    @classmethod
    def alone(cls, labels: Indices) -> Folds:
        """Folds with every image independent: no groups, no copies."""
        positions = np.arange(len(labels), dtype=np.int64)
        return cls(np.asarray(labels, dtype=np.int64), positions, positions)

    def numbered(self, order: Indices) -> Folds:
        """The same, with `copies` numbered in this order; valid only if no image has a copy."""
        return Folds(self.labels, self.groups, np.argsort(order))

    def take(self, rows: npt.NDArray[np.integer]) -> Folds:
        """The folds of a subset of the images, in the order given."""
        return Folds(self.labels[rows], self.groups[rows], self.copies[rows])

    def __len__(self) -> int:
        return len(self.labels)

    # Weights of images

    @cached_property
    def shares(self) -> Weights:
        """(N,) weight of each image: 1 / m for each of m copies."""
        _, codes, counts = np.unique(self.copies, return_inverse=True, return_counts=True)
        return np.asarray(1 / counts[codes.reshape(-1)], dtype=np.float64)

    def counting(self, splits: Indices) -> Weights:
        """Weight of each image in an estimate for which these splits were held back one after the other.

        Args:
            splits: (N,) int; images of equal value were held back together.

        Returns:
            (N,) in [0, 1]: 1 / m for each of m copies; 0 where all images of its class were held back with it, which
            makes the prediction meaningless.
        """
        _, split = np.unique(splits, return_inverse=True)
        _, label, totals = np.unique(self.labels, return_inverse=True, return_counts=True)
        _, cell, inside = np.unique(
            split.reshape(-1) * len(totals) + label.reshape(-1), return_inverse=True, return_counts=True
        )
        lost = inside[cell.reshape(-1)] == totals[label.reshape(-1)]
        return np.where(lost, 0.0, self.shares)

    def independent(self, values: npt.NDArray[np.floating] | npt.NDArray[np.bool_], counting: Weights) -> float:
        """Effective number of independent images behind a mean over these images.

        Images of one group are correlated: a mean over 40 patients with 6 images each may be no more precise than from
        40 images. Computed from the variance between groups (the design effect of cluster sampling), bounded by the
        cases that images of a group are identical and that groups do not matter.

        Args:
            values: (N,) the values averaged.
            counting: (N,) weight of each image.

        Returns:
            A number in [0, sum(counting)]; 0 if no image counts.

        References:
            Kish, Survey Sampling, 1965, for the design effect and for the bound by group sizes.
        """
        total = float(counting.sum())
        if total == 0:
            return 0.0
        sizes = self._per_group(counting)
        fewest = total**2 / float((sizes**2).sum())
        mean = float(counting @ values) / total
        groups = int(np.count_nonzero(sizes))
        spread = float((self._per_group(counting * (values - mean)) ** 2).sum()) / total**2
        between = spread * groups / max(groups - 1, 1)
        alone = float(counting @ (values - mean) ** 2) / total**2
        if between == 0 or alone == 0:
            return fewest
        return min(max(total * alone / between, fewest), total)

    def standard_error(self, values: npt.NDArray[np.floating], counting: Weights) -> float:
        """Standard error of the mean of paired differences in {-1, 0, 1}, with whole groups as units.

        One difference is added to those observed: two classifiers that agree on all images need not be equal.
        """
        total = float(counting.sum())
        return float(np.sqrt((self._per_group(counting * values) ** 2).sum() + 1) / total) if total else 1.0

    def _per_group(self, values: Weights) -> Weights:
        codes = np.unique(self.groups, return_inverse=True)[1].reshape(-1)
        return np.asarray(np.bincount(codes, weights=values), dtype=np.float64)

    @cached_property
    def groups_per_class(self) -> Indices:
        """(K,) number of groups in which each class occurs: with fewer than 2, none of its images can be held back."""
        pairs = np.unique(np.stack([self.labels, self.groups]), axis=1)
        return np.bincount(pairs[0], minlength=int(self.labels.max(initial=-1)) + 1)

    @property
    def measurable(self) -> bool:
        """Whether any class has two groups, so that an accuracy can be measured."""
        return bool((self.groups_per_class > 1).any())

    @property
    def complete(self) -> bool:
        """Whether every class that occurs has two groups."""
        occurring = self.groups_per_class[self.groups_per_class > 0]
        return bool((occurring > 1).all())

    # Leave-one-group-out

    @cached_property
    def together(self) -> Indices:
        """(N,) int; images of equal value are left out together by exact leave-out formulas.

        If classes are large, groups are left out one by one. Otherwise one group of each class at a time: leaving out a
        single one would shrink only its own class and bias predictions towards the others. If copies are numbered by
        content, the result depends on the set of images, not on their order.
        """
        group, first = np.unique(self.groups, return_index=True, return_inverse=True)[1:][::-1]
        group = group.reshape(-1)
        owner, sizes = self._owners(group, len(first)), np.bincount(group, minlength=len(first))
        if sizes.max(initial=0) > LARGE_GROUP:
            return self.assign_splits(LARGE_SPLITS)
        if len(first) >= LARGE_CLASS * max(len(np.unique(self.labels)), 1):
            return group
        key = np.full(len(first), np.iinfo(np.int64).max)
        np.minimum.at(key, group, self.copies)
        turn = _turns(owner, key)
        # The only group of a class cannot be tested; left out with others, it would only remove its class from the fit.
        rivals = np.bincount(owner, minlength=int(self.labels.max(initial=0)) + 1)
        turn[rivals[owner] == 1] = turn.max(initial=0) + 1 + np.arange(int((rivals[owner] == 1).sum()))
        limit = max(1, min(LEFT_OUT_AT_ONCE, len(self) // 2))
        return _pieces(turn, owner, sizes, limit)[group]

    @property
    def order(self) -> Indices:
        """(N,) positions that sort images so that those left out together are adjacent."""
        return np.argsort(self.together, kind="stable")

    def _owners(self, group: Indices, count: int) -> Indices:
        """(G,) the most frequent class of each group; ties go to the lowest."""
        classes = int(self.labels.max(initial=0)) + 1
        cells, images = np.unique(group * classes + self.labels, return_counts=True)
        ranked = np.lexsort((cells % classes, -images, cells // classes))
        owner = np.empty(count, dtype=np.int64)
        owner[(cells // classes)[ranked][::-1]] = (cells % classes)[ranked][::-1]  # the first of each group wins
        return owner

    # Cross-validation

    def assign_splits(self, n_splits: int = N_SPLITS, *, seed: int = 0) -> Indices:
        """(N,) split of each image, in [0, n_splits): groups are kept whole, every class is spread evenly.

        Groups are assigned from large to small to the split with the fewest images of their class so far, on a tie the
        fewest overall (scikit-learn's StratifiedGroupKFold weighs all classes for every group, in time N K).

        Args:
            n_splits: Number of splits, >= 2.
            seed: Determines the order of groups of equal size.

        Raises:
            OptionError: If n_splits is below 2.
        """
        if n_splits < 2:
            raise OptionError(f"n_splits must be >= 2, got {n_splits!r}.")
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        group, rng = group.reshape(-1), np.random.default_rng(seed)
        owner, sizes = self._owners(group, len(first)), np.bincount(group, minlength=len(first))
        shuffled = rng.permutation(len(first))
        queue = shuffled[np.lexsort((-sizes[shuffled], owner[shuffled]))]
        alone = bool((sizes == 1).all())
        split_of = np.empty(len(first), dtype=np.int64)
        # Single images round robin, each class continuing where the last one ended: the same result without a loop.
        split_of[queue] = np.arange(len(queue)) % n_splits if alone else _fill(owner[queue], sizes[queue], n_splits)
        return split_of[group]

    def split(self, folds: int = 1, *, seed: int = 0, n_splits: int = N_SPLITS) -> list[Fold]:
        """Folds with disjoint held-back images, in whole groups; every class remains in training.

        Args:
            folds: Number of folds, in [1, n_splits].
            seed: Determines the splits.
            n_splits: A fold holds back one split of this many.

        Returns:
            Folds with no held-back image in common; fewer than asked for if not every split can be held back.

        Raises:
            DataError: If no split can be held back without losing a class.

        Example:
            >>> (fold,) = Folds.alone(np.array([0] * 5 + [1] * 5)).split()
            >>> len(fold.train), len(fold.held_back)
            (8, 2)
        """
        split = self.assign_splits(n_splits, seed=seed)
        removable = [self._removable(split == number) for number in range(n_splits)]
        made = [Fold(np.flatnonzero(~chosen), np.flatnonzero(chosen)) for chosen in removable if chosen.any()]
        if not made:
            raise DataError(
                "No image can be held back for validation without losing a class: every class needs 2 images, in "
                "different groups. Add images, or use strategy=linear_probe."
            )
        return made[: max(folds, 1)]

    def _removable(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(N,) which of the chosen can be held back: groups with images of a class that training would lose stay."""
        left = np.bincount(self.labels[~chosen], minlength=int(self.labels.max()) + 1)
        staying = self.groups[chosen & (left[self.labels] == 0)]
        return chosen & ~np.isin(self.groups, staying)


def _turns(owner: Indices, key: Indices) -> Indices:
    """(G,) rank of each group among those of the same class, by key."""
    queue = np.lexsort((key, owner))
    starts = np.searchsorted(owner[queue], owner[queue])
    turn = np.empty(len(owner), dtype=np.int64)
    turn[queue] = np.arange(len(owner)) - starts
    return turn


def _pieces(turn: Indices, owner: Indices, sizes: Indices, limit: int) -> Indices:
    """(G,) set of each group: groups of one turn, cut into equal pieces of about `limit` images."""
    queue = np.lexsort((owner, turn))
    number = np.unique(turn, return_inverse=True)[1].reshape(-1)[queue]
    inside = sizes[queue]
    totals = np.bincount(number, weights=inside)
    before = np.cumsum(inside) - inside
    before = before - (np.cumsum(totals) - totals)[number]
    pieces = np.ceil(totals / limit)
    piece = np.floor(before * pieces[number] / totals[number])
    made = np.empty(len(turn), dtype=np.int64)
    made[queue] = np.unique(np.stack([number, piece]), axis=1, return_inverse=True)[1].reshape(-1)
    return made


def _fill(owner: Indices, sizes: Indices, n_splits: int) -> Indices:
    """(G,) split of each group, assigned greedily in order."""
    chosen = np.empty(len(owner), dtype=np.int64)
    in_all = np.zeros(n_splits, dtype=np.int64)
    of_class, label = np.zeros(n_splits, dtype=np.int64), -1
    for position, (own_label, size) in enumerate(zip(owner.tolist(), sizes.tolist(), strict=True)):
        if own_label != label:
            of_class, label = np.zeros(n_splits, dtype=np.int64), own_label
        split = int(np.lexsort((in_all, of_class))[0])
        chosen[position] = split
        of_class[split] += size
        in_all[split] += size
    return chosen


def connected_groups(memberships: Sequence[Indices], pairs: Indices | None = None) -> Indices:
    """Groups such that images sharing a value in *any* of the memberships share a group.

    Args:
        memberships: Each (N,) int.
        pairs: (P, 2) positions of further images that belong together.

    Returns:
        (N,) int64: the position of the group's first image.

    Example:
        >>> connected_groups([np.array([0, 0, 1, 2]), np.array([5, 6, 6, 7])])
        array([0, 0, 0, 3])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images = len(memberships[0])
    edges = [np.empty((0, 2), dtype=np.int64) if pairs is None else pairs]
    for membership in memberships:
        _, first, codes = np.unique(membership, return_index=True, return_inverse=True)
        edges.append(np.stack([np.arange(images), first[codes.reshape(-1)]], axis=1))
    one, other = np.concatenate(edges).T
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(images, images))
    _, component = connected_components(graph, directed=False)
    _, first, codes = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[codes.reshape(-1)], dtype=np.int64)
