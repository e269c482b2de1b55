"""Which images may stand in for new ones: the one notion of "held back" behind every estimate that is printed.

An image tells how a classifier does on new images only while everything that belongs to it is held back as well: the
other images of its group (one patient, one scene, one video) and its copies. `Folds` says who is held back with whom
and what each image counts; measures and training ask it and draw nothing of their own.

It lives in the base, not among the sources of data, because `measure` and `train` need it and never see `data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError

__all__ = ["PARTS", "Fold", "Folds", "connected_groups"]

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

PARTS = 5
"""A fold of cross-validation holds back one part in so many."""

LARGE_CLASS = 100
"""Mean groups per class from which groups are left out one by one: one group less moves a class by 1 % then."""

LEFT_OUT_AT_ONCE = 128
"""Images left out together at most, unless one group has more. Exact leave-out formulas cost its square per image."""

LARGE_GROUP, LARGE_PARTS = 1024, 10
"""Where a group has more images than this, no more than so many sets are left out: each then costs a fit anew."""


@dataclass(frozen=True)
class Fold:
    """One way of holding images back.

    Args:
        train: (n,) positions to fit on.
        held_back: (m,) positions to test on.
    """

    train: Indices
    held_back: Indices


@dataclass(frozen=True)
class Folds:
    """Who is held back with whom.

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
        >>> folds.counting(folds.together).tolist()  # the first two images are copies
        [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    labels: Indices
    groups: Indices
    copies: Indices

    def __post_init__(self) -> None:
        if not self.labels.shape == self.groups.shape == self.copies.shape:
            shapes = f"{self.labels.shape}, {self.groups.shape} and {self.copies.shape}"
            raise DataError(f"Labels, groups and copies need one entry per image each, got shapes {shapes}.")
        pairs = np.unique(np.stack([self.copies, self.groups]), axis=1)
        if pairs.shape[1] != len(np.unique(self.copies)):
            raise DataError("Copies of one image are in different groups; merge these groups first.")

    @classmethod
    def alone(cls, labels: Indices) -> Folds:
        """Every image on its own: no groups, no copies."""
        everyone = np.arange(len(labels), dtype=np.int64)
        return cls(np.asarray(labels, dtype=np.int64), everyone, everyone)

    def numbered(self, order: Indices) -> Folds:
        """The same with images numbered in this order, where no image has a copy."""
        return Folds(self.labels, self.groups, np.argsort(order))

    def take(self, rows: npt.NDArray[np.integer]) -> Folds:
        """The same for some of the images, in the order given."""
        return Folds(self.labels[rows], self.groups[rows], self.copies[rows])

    def __len__(self) -> int:
        return len(self.labels)

    # What each image counts

    @cached_property
    def shares(self) -> Weights:
        """(N,) what each image counts among all: 1 / m for each of m copies."""
        _, codes, counts = np.unique(self.copies, return_inverse=True, return_counts=True)
        return np.asarray(1 / counts[codes.reshape(-1)], dtype=np.float64)

    def counting(self, parts: Indices) -> Weights:
        """What each image counts in an estimate for which these parts were held back one after the other.

        Args:
            parts: (N,) int; images of equal value were held back together.

        Returns:
            (N,) in [0, 1]: 1 / m for each of m copies; 0 where all images of its class were held back with it, which
            nothing can be told from.
        """
        _, part = np.unique(parts, return_inverse=True)
        _, label, totals = np.unique(self.labels, return_inverse=True, return_counts=True)
        _, cell, inside = np.unique(
            part.reshape(-1) * len(totals) + label.reshape(-1), return_inverse=True, return_counts=True
        )
        lost = inside[cell.reshape(-1)] == totals[label.reshape(-1)]
        return np.where(lost, 0.0, self.shares)

    def independent(self, values: npt.NDArray[np.floating] | npt.NDArray[np.bool_], counting: Weights) -> float:
        """How many independent images a mean over these images is worth.

        Images of one group go together: a mean over 40 patients with 6 images each may be known no better than from 40
        images. From the variance between groups (the design effect of cluster sampling), within the bounds that all
        groups agree within themselves, and that groups do not matter.

        Args:
            values: (N,) what the mean is of.
            counting: (N,) what each image counts.

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
        """Standard error of the mean of paired differences in {-1, 0, 1}, groups counted as wholes.

        One difference more is counted than there is: that two agree on all images does not make it certain.
        """
        total = float(counting.sum())
        return float(np.sqrt((self._per_group(counting * values) ** 2).sum() + 1) / total) if total else 1.0

    def _per_group(self, values: Weights) -> Weights:
        codes = np.unique(self.groups, return_inverse=True)[1].reshape(-1)
        return np.asarray(np.bincount(codes, weights=values), dtype=np.float64)

    @cached_property
    def groups_per_class(self) -> Indices:
        """(K,) in how many different groups each class occurs: with fewer than 2 nothing of it can be held back."""
        pairs = np.unique(np.stack([self.labels, self.groups]), axis=1)
        return np.bincount(pairs[0], minlength=int(self.labels.max(initial=-1)) + 1)

    @property
    def measurable(self) -> bool:
        """Whether any class has two groups, so that an accuracy can be measured at all."""
        return bool((self.groups_per_class > 1).any())

    @property
    def complete(self) -> bool:
        """Whether every class that occurs has two groups."""
        occurring = self.groups_per_class[self.groups_per_class > 0]
        return bool((occurring > 1).all())

    # Who is left out together

    @cached_property
    def together(self) -> Indices:
        """(N,) int; images of equal value are left out together by exact leave-out formulas.

        Where classes are large, groups are left out one by one. Otherwise one group of each class at a time: leaving
        out a single one would make its class alone one smaller and the answers lean towards the others. Depends on
        which images there are, not on their order, where copies are numbered by content.
        """
        group, first = np.unique(self.groups, return_index=True, return_inverse=True)[1:][::-1]
        group = group.reshape(-1)
        owner, sizes = self._owners(group, len(first)), np.bincount(group, minlength=len(first))
        if sizes.max(initial=0) > LARGE_GROUP:
            return self.deal(LARGE_PARTS)
        if len(first) >= LARGE_CLASS * max(len(np.unique(self.labels)), 1):
            return group
        key = np.full(len(first), np.iinfo(np.int64).max)
        np.minimum.at(key, group, self.copies)
        turn = _turns(owner, key)
        # The only group of a class cannot be tested; left out with others it would only take its class from them.
        rivals = np.bincount(owner, minlength=int(self.labels.max(initial=0)) + 1)
        turn[rivals[owner] == 1] = turn.max(initial=0) + 1 + np.arange(int((rivals[owner] == 1).sum()))
        limit = max(1, min(LEFT_OUT_AT_ONCE, len(self) // 2))
        return _pieces(turn, owner, sizes, limit)[group]

    @property
    def order(self) -> Indices:
        """(N,) positions that put images side by side which are left out together."""
        return np.argsort(self.together, kind="stable")

    def _owners(self, group: Indices, count: int) -> Indices:
        """(G,) the most frequent class of each group, of equals the lowest."""
        classes = int(self.labels.max(initial=0)) + 1
        cells, images = np.unique(group * classes + self.labels, return_counts=True)
        ranked = np.lexsort((cells % classes, -images, cells // classes))
        owner = np.empty(count, dtype=np.int64)
        owner[(cells // classes)[ranked][::-1]] = (cells % classes)[ranked][::-1]  # the first of each group wins
        return owner

    # Cross-validation

    def deal(self, parts: int = PARTS, *, seed: int = 0) -> Indices:
        """(N,) part of each image, in [0, parts): groups whole, every class spread evenly.

        Groups go from large to small to the part that has the fewest images of their class yet, of equals the fewest in
        all (scikit-learn's StratifiedGroupKFold weighs all classes for every group, whose time grows with N K).

        Args:
            parts: How many, >= 2.
            seed: Draws the order of groups of one size.

        Raises:
            OptionError: If there are fewer than 2 parts.
        """
        if parts < 2:
            raise OptionError(f"Images are dealt to 2 parts or more, got {parts!r}.")
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        group, rng = group.reshape(-1), np.random.default_rng(seed)
        owner, sizes = self._owners(group, len(first)), np.bincount(group, minlength=len(first))
        shuffled = rng.permutation(len(first))
        queue = shuffled[np.lexsort((-sizes[shuffled], owner[shuffled]))]
        alone = bool((sizes == 1).all())
        part_of = np.empty(len(first), dtype=np.int64)
        # Single images in turn, the next class going on where the last one ended: the same, without a loop.
        part_of[queue] = np.arange(len(queue)) % parts if alone else _fill(owner[queue], sizes[queue], parts)
        return part_of[group]

    def split(self, folds: int = 1, *, seed: int = 0, parts: int = PARTS) -> list[Fold]:
        """Folds that each hold back another part of the images, whole groups only; no class is missing from training.

        Args:
            folds: How many, in [1, parts].
            seed: Draws which.
            parts: A fold holds back one part in so many.

        Returns:
            Folds of which no two hold back the same image; fewer than asked for where not every part can be held back.

        Raises:
            DataError: If no part can be held back without a class being lost.

        Example:
            >>> (fold,) = Folds.alone(np.array([0] * 5 + [1] * 5)).split()
            >>> len(fold.train), len(fold.held_back)
            (8, 2)
        """
        part = self.deal(parts, seed=seed)
        spared = [self._spare(part == number) for number in range(parts)]
        made = [Fold(np.flatnonzero(~chosen), np.flatnonzero(chosen)) for chosen in spared if chosen.any()]
        if not made:
            raise DataError(
                "No image can be held back to choose epochs and blend on without a class being lost: every class needs "
                "2 images, in different groups. Add images, or use strategy=linear_probe."
            )
        return made[: max(folds, 1)]

    def _spare(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(N,) which of the chosen can go: groups with images of a class that training would lose stay as wholes."""
        left = np.bincount(self.labels[~chosen], minlength=int(self.labels.max()) + 1)
        staying = self.groups[chosen & (left[self.labels] == 0)]
        return chosen & ~np.isin(self.groups, staying)


def _turns(owner: Indices, key: Indices) -> Indices:
    """(G,) how many groups of the same class come before each, by their keys."""
    queue = np.lexsort((key, owner))
    starts = np.searchsorted(owner[queue], owner[queue])
    turn = np.empty(len(owner), dtype=np.int64)
    turn[queue] = np.arange(len(owner)) - starts
    return turn


def _pieces(turn: Indices, owner: Indices, sizes: Indices, limit: int) -> Indices:
    """(G,) set of each group: groups of one turn, cut into even pieces of about `limit` images."""
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


def _fill(owner: Indices, sizes: Indices, parts: int) -> Indices:
    """(G,) part of each group, taken one after the other."""
    chosen = np.empty(len(owner), dtype=np.int64)
    everything = np.zeros(parts, dtype=np.int64)
    of_class, label = np.zeros(parts, dtype=np.int64), -1
    for place, (mine, size) in enumerate(zip(owner.tolist(), sizes.tolist(), strict=True)):
        if mine != label:
            of_class, label = np.zeros(parts, dtype=np.int64), mine
        part = int(np.lexsort((everything, of_class))[0])
        chosen[place] = part
        of_class[part] += size
        everything[part] += size
    return chosen


def connected_groups(memberships: Sequence[Indices], pairs: Indices | None = None) -> Indices:
    """Groups such that images sharing a value in *any* of the memberships share a group.

    Args:
        memberships: Each (N,) int.
        pairs: (P, 2) positions of images that belong together besides.

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
