"""Exact and near duplicates: which images form a group, and the findings of the audit about them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from transferkit.data.fingerprints import near_twins
from transferkit.data.inventory import Inventory
from transferkit.data.phrases import counted, first_names
from transferkit.records import Finding, connected_groups

__all__ = [
    "find_groups",
    "find_leaks",
    "find_near_duplicates",
    "label_conflicts",
    "near_leak_findings",
    "repeat_findings",
]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]
ContentIds = npt.NDArray[np.bytes_]

_LATER = {"train": ("val", "test"), "val": ("test",)}
"""Split -> the later splits, whose images it must not hold; copies are set aside in the earlier split."""

_PAIRS_SHOWN = 20
"""Near duplicates that a finding lists."""


def _same_content(ids: ContentIds, rows: Ints) -> list[Ints]:
    """Sets of two or more rows with the same content, in order of their first row."""
    _, codes, counts = np.unique(ids[rows], return_inverse=True, return_counts=True)
    repeated = rows[counts[codes] > 1]
    by_id: dict[bytes, list[int]] = defaultdict(list)
    for row in repeated.tolist():
        by_id[bytes(ids[row])].append(row)
    return [np.array(same, dtype=np.int64) for same in by_id.values()]


def label_conflicts(inventory: Inventory, ids: ContentIds, usable: Bools) -> list[Finding]:
    """The warning about images that are there under more than one class.

    Args:
        inventory: The source.
        ids: (N,) content of each image.
        usable: (N,) whether each image can be used.
    """
    sets = [same for same in _same_content(ids, np.flatnonzero(usable)) if _disagree(inventory, same)]
    if not sets:
        return []
    items = tuple(
        " = ".join(f"{inventory.names[row]} ({_label_text(inventory, row)})" for row in same) for same in sets
    )
    what = "Under more than one class" if inventory.targets is None else "With different targets"
    message = f"{what}: {counted(len(sets), 'image')} ({first_names(items)}). "
    message += "At most one label can be right."
    return [Finding(kind="label_conflict", severity="warning", message=message, items=items)]


def _disagree(inventory: Inventory, same: Ints) -> bool:
    """Whether images that are equal have different labels."""
    if inventory.targets is not None:
        return len(np.unique(inventory.targets.values[same], axis=0)) > 1
    return len(set(inventory.labels[same])) > 1


def _label_text(inventory: Inventory, row: int) -> str:
    if inventory.targets is not None:
        return inventory.targets.text(row) or "no label"
    return inventory.classes[inventory.labels[row]]


def repeat_findings(inventory: Inventory, ids: ContentIds, rows: Ints, splits: Names) -> list[Finding]:
    """The warning about exact duplicates within train.

    Args:
        inventory: The source.
        ids: (N,) content of each image.
        rows: (M,) usable rows.
        splits: (M,) their splits.
    """
    sets = _same_content(ids, rows[splits == "train"])
    if not sets:
        return []
    items = tuple(" = ".join(inventory.names[row] for row in same) for same in sets)
    extra = sum(len(same) - 1 for same in sets)
    message = (
        f"Exact repeats within train: {counted(extra, 'image')} ({first_names(items)}). They are held back together "
        "and count as one image in held-back accuracy; in the fit each counts."
    )
    return [Finding(kind="duplicate", severity="warning", message=message, items=items)]


def find_leaks(inventory: Inventory, ids: ContentIds, usable: Bools) -> tuple[list[Finding], Bools]:
    """Exact copies of images of a later split in an earlier one: the findings, and (N,) whether to set a row aside."""
    leaking = np.zeros(len(ids), dtype=bool)
    findings = []
    for split, later in _LATER.items():
        theirs = ids[usable & np.isin(inventory.splits, later)]
        copies = usable & (inventory.splits == split) & np.isin(ids, theirs)
        leaking |= copies
        if copies.any():
            names = tuple(inventory.names[row] for row in np.flatnonzero(copies))
            message = (
                f"In {' or '.join(later)} too, exactly: {counted(len(names), f'{split} image')} "
                f"({first_names(names)}). The {split} copies are set aside, so that held-out "
                "accuracy is measured on unseen images."
            )
            kind = "duplicate_across_splits"
            findings.append(Finding(kind=kind, severity="set_aside", message=message, items=names))
    return findings, leaking


def near_leak_findings(inventory: Inventory, rows: Ints, splits: Names, twins: Ints) -> list[Finding]:
    """The warning about validation and test images that are near duplicates of training images.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their splits.
        twins: (P, 2) near duplicates, by their place in `rows`.
    """
    train = splits == "train"
    pairs = twins[train[twins[:, 0]] != train[twins[:, 1]]]
    pairs = np.where(train[pairs[:, :1]], pairs, pairs[:, ::-1])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if not len(pairs):
        return []
    held = len(np.unique(pairs[:, 1]))
    items = tuple(
        f"{inventory.names[rows[left]]} ~ {inventory.names[rows[right]]}" for left, right in pairs[:_PAIRS_SHOWN]
    )
    message = (
        f"Almost the same as a training image: {counted(held, 'held-back image')} ({counted(len(pairs), 'pair')}, "
        f"e.g. {items[0]}). If they show the same thing, accuracy on them is too high: give such images one group."
    )
    return [Finding(kind="near_duplicate", severity="warning", message=message, items=items)]


def find_near_duplicates(inventory: Inventory, rows: Ints) -> Ints:
    """(P, 2) pairs of usable images that are near duplicates, by their place in `rows`, the smaller first."""
    inspections = [inventory.inspections[row] for row in rows]
    hashes = np.array([one.hash for one in inspections], dtype=np.uint64)
    return near_twins(hashes, np.stack([one.thumb for one in inspections]))


def find_groups(inventory: Inventory, ids: ContentIds, rows: Ints, twins: Ints) -> tuple[Ints, list[Finding]]:
    """(M,) group of each usable image, by the source's groups and by exact and near duplicates; and the findings."""
    same_image = np.unique(ids[rows], return_inverse=True)[1].reshape(-1).astype(np.int64)
    memberships = [same_image, *([] if inventory.groups is None else [inventory.groups[rows]])]
    known, labels = connected_groups(memberships), inventory.labels[rows]
    pairs = twins[known[twins[:, 0]] != known[twins[:, 1]]]
    if not len(pairs):
        return known, []
    alike = connected_groups([np.arange(len(rows), dtype=np.int64)], pairs)
    sets, sizes = np.unique(alike, return_counts=True)
    common = _too_common(alike, labels)
    copies = pairs[~np.isin(alike[pairs[:, 0]], common)]
    is_common = np.isin(sets, common)
    grouped, apart = int(sizes[(sizes > 1) & ~is_common].sum()), int(sizes[is_common].sum())
    return connected_groups([known], copies), [*_near_duplicate_findings(grouped), *_look_alike_findings(apart)]


def _too_common(alike: Ints, labels: Ints) -> Ints:
    """Sets of near duplicates with more than half of the images of a class: all of such a class look alike."""
    sets, inverse = np.unique(alike, return_inverse=True)
    table = np.zeros((len(sets), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (inverse.reshape(-1), labels), 1)
    return sets[((table > 1) & (2 * table > table.sum(axis=0))).any(axis=1)]


def _near_duplicate_findings(grouped: int) -> list[Finding]:
    if not grouped:
        return []
    message = (
        f"Almost the same as another image: {counted(grouped, 'image')}. They are treated as one group: held back "
        "together and never parted by a split."
    )
    return [Finding(kind="near_duplicate_group", severity="info", message=message)]


def _look_alike_findings(images: int) -> list[Finding]:
    if not images:
        return []
    message = (
        f"Almost the same as more than half of their class, and so not treated as copies: {counted(images, 'image')}. "
        "If they are, held-back accuracy is too high: give copies one group (a manifest with a column 'group')."
    )
    return [Finding(kind="look_alikes", severity="warning", message=message)]
