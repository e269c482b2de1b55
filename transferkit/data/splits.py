"""Train, validation and test splits: stratified by class, groups kept together, deterministic for a seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError

__all__ = ["check_shares", "stratified_split"]


def stratified_split(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], *, val: float, test: float, seed: int
) -> npt.NDArray[np.str_]:
    """A split name for every image.

    Every class keeps at least one image in train. Without groups, the shares of test and val are exact per class to
    the nearest image, and a class with two images has at least one in test. Groups are never divided between splits,
    so with groups the shares are approximate.

    Args:
        labels: (N,) int in [0, K).
        groups: (N,) int; images of equal value stay together.
        val: Share of each class held back for validation, in [0, 1).
        test: Share of each class held back for testing, in [0, 1).
        seed: Determines the splits.

    Returns:
        (N,) of "train", "val" or "test".

    Raises:
        OptionError: The shares leave nothing to train on.

    Example:
        >>> names = stratified_split(np.array([0, 0, 0, 0, 1, 1]), np.arange(6), val=0, test=0.25, seed=0)
        >>> sorted(names[:4].tolist()), sorted(names[4:].tolist())
        (['test', 'train', 'train', 'train'], ['test', 'train'])
    """
    check_shares(val=val, test=test)
    members = _members(labels, groups)
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(members))]
    names = np.full(len(labels), "train", dtype="<U5")
    quotas = _quotas(np.bincount(labels) if len(labels) else np.zeros(0, dtype=np.int64), val=val, test=test)
    left = Counter(labels.tolist())
    _, codes = np.unique(groups, return_inverse=True)
    for split, quota in quotas.items():
        chosen = _choose(order, members, quota, left)
        order = [group for group in order if group not in chosen]
        names[np.isin(codes, list(chosen))] = split
    return names


def check_shares(*, val: float, test: float) -> None:
    """Raise `OptionError` unless both shares are in [0, 1) and leave something to train on."""
    for name, share in (("val", val), ("test", test)):
        if not isinstance(share, (int, float, np.number)) or not 0 <= share < 1:
            raise OptionError(f"{name} is a share of the images and must be in [0, 1), got {share!r}.")
    if val + test >= 1:
        raise OptionError(f"val + test must be < 1 to leave images to train on, got {val} + {test}.")


def _members(labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> list[Counter[int]]:
    """For each group: class -> number of images."""
    _, codes = np.unique(groups, return_inverse=True)
    members: list[Counter[int]] = [Counter() for _ in range(int(codes.max(initial=-1)) + 1)]
    for code, label in zip(codes.tolist(), labels.tolist(), strict=True):
        members[code][label] += 1
    return members


def _quotas(counts: npt.NDArray[np.int64], *, val: float, test: float) -> dict[str, dict[int, int]]:
    """Split -> class -> number of images to draw; test first, and train always keeps one."""
    quotas: dict[str, dict[int, int]] = {}
    left = counts.copy()
    for split, share in (("test", test), ("val", val)):
        if share > 0:
            wanted = np.minimum(np.maximum(1, np.floor(counts * share + 0.5)), np.maximum(left - 1, 0)).astype(int)
            quotas[split] = dict(enumerate(wanted.tolist()))
            left = left - wanted
    return quotas


def _choose(order: list[int], members: list[Counter[int]], quota: dict[int, int], left: Counter[int]) -> set[int]:
    """Groups whose images come close to the quotas per class; updates `left`, the images remaining in train."""
    missing = dict(quota)
    chosen: set[int] = set()

    def move(group: int, sign: int) -> None:
        (chosen.add if sign > 0 else chosen.remove)(group)
        for label, count in members[group].items():
            missing[label] -= sign * count
            left[label] -= sign * count

    def allowed(group: int) -> bool:
        return group not in chosen and all(left[label] > count for label, count in members[group].items())

    for group in order:  # exact if every group is one image
        if allowed(group) and all(count <= missing[label] for label, count in members[group].items()):
            move(group, 1)
    moved = True
    while moved:  # terminates, because every move reduces the squared distance from the quotas
        moved = False
        for group in order:
            sign = -1 if group in chosen else 1
            if (sign < 0 or allowed(group)) and _gain(members[group], missing, sign) > 0:
                move(group, sign)
                moved = True
    for label, wanted in quota.items():
        if wanted > 0 and missing[label] == wanted:  # all groups of the class are too large: take the smallest
            fitting = [group for group in order if label in members[group] and allowed(group)]
            if fitting:
                move(min(fitting, key=lambda group: members[group].total()), 1)
    return chosen


def _gain(group: Counter[int], missing: dict[int, int], sign: int) -> int:
    """Reduction of the squared distance from the quotas if a group is added (+1) or removed (-1)."""
    return sum(missing[label] ** 2 - (missing[label] - sign * count) ** 2 for label, count in group.items())
