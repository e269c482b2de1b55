"""Numbers of images, and of independent groups of images, per class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.data.inventory import SPLITS, Inventory

__all__ = ["class_counts", "train_group_counts"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]


def class_counts(inventory: Inventory, rows: Ints, splits: Names) -> dict[str, tuple[int, ...]]:
    """Split -> (K,) images per class, or with each label, for the splits that have any, and for train."""
    if inventory.targets is not None:
        return {
            split: tuple(inventory.targets.take(rows[splits == split]).counts.tolist())
            for split in SPLITS
            if split == "train" or (splits == split).any()
        }
    labels, classes = inventory.labels[rows], len(inventory.classes)
    return {
        split: tuple(np.bincount(labels[splits == split], minlength=classes).tolist())
        for split in SPLITS
        if split == "train" or (splits == split).any()
    }


def train_group_counts(inventory: Inventory, rows: Ints, splits: Names, groups: Ints) -> tuple[int, ...]:
    """(K,) number of groups in train that each class occurs in; empty if every image is a group of its own."""
    train = splits == "train"
    inside, labels = groups[train], inventory.labels[rows[train]]
    if len(np.unique(inside)) == len(inside):
        return ()
    if inventory.targets is not None:
        return (len(np.unique(inside)),) * len(inventory.classes)
    pairs = np.unique(np.stack([labels, inside]), axis=1)
    return tuple(np.bincount(pairs[0], minlength=len(inventory.classes)).tolist())
