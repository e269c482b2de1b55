"""Findings of the audit about classes: empty, too small to be split, not trained on, not tested, imbalanced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.class_counts import class_counts, train_group_counts
from transferkit.data.class_names import alike_names
from transferkit.data.image_errors import FAULTS
from transferkit.data.inventory import NO_LABEL, SPLITS, Inventory
from transferkit.data.label_findings import describe_many_labels
from transferkit.data.phrases import MOST_NAMES, counted, first_names, quoted
from transferkit.data.split_findings import DEFAULT_TEST, Shares
from transferkit.records import Finding

__all__ = ["class_findings", "split_size_findings", "untrained_class_findings", "unusable_class_findings"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]
ContentIds = npt.NDArray[np.bytes_]

_SMALL_CLASS = 5
"""Training images under which a class's accuracy is mostly chance."""

_IMBALANCE = 10
"""Ratio of the largest class to the smallest from which on classes count as imbalanced."""

_OWN_SPLITS = {
    "folder": "sort the images into train/<class>/ and test/<class>/",
    "manifest": "name each image's split in a column split",
    "shards": "name the shards train-*.tar and test-*.tar",
    "dataset": 'give {"train": ..., "test": ...}',
}
"""Kind of source -> how to bring splits of one's own."""


def unusable_class_findings(inventory: Inventory, usable: Bools) -> list[Finding]:
    """Errors for fewer than two classes, and for classes without a usable image.

    Args:
        inventory: The source.
        usable: (N,) whether each image can be used.
    """
    findings = []
    if not inventory.classes:
        return [
            Finding(kind="one_class", severity="error", message="No image has a label. Give every image its class.")
        ]
    if len(inventory.classes) < 2:
        message = f"There is only one class, {quoted(inventory.classes)}; at least 2 are needed. "
        message += {
            "folder": "Add another class, or check that the classes are the folders directly below.",
            "manifest": "Add images of another class, or check that the column label holds the classes.",
            "shards": "Add images of another class, or check the labels in .cls or .json.",
            "dataset": "Add images of another class, or check the labels that the dataset returns.",
        }[inventory.kind]
        findings.append(Finding(kind="one_class", severity="error", message=message, items=inventory.classes))
    listed = np.bincount(inventory.labels[inventory.labels != NO_LABEL], minlength=len(inventory.classes))
    left = np.bincount(inventory.labels[usable], minlength=len(inventory.classes))
    empty = np.flatnonzero(left == 0)
    if len(empty) > MOST_NAMES:
        names = tuple(inventory.classes[index] for index in empty)
        message = f"{len(names)} of {len(left)} classes have no usable image ({first_names(names)}). "
        message += "Add images, or remove them."
        return [*findings, Finding(kind="empty_class", severity="error", message=message, items=names)]
    for index in empty:
        name = inventory.classes[index]
        why = (
            f"no usable image, {listed[index]} set aside{_why(inventory, int(index))}"
            if listed[index]
            else "it has no image"
        )
        message = f"Class {name!r} is empty: {why}. Add images, or remove the class."
        findings.append(Finding(kind="empty_class", severity="error", message=message, items=(name,)))
    return findings


def _why(inventory: Inventory, label: int) -> str:
    """The fault of the images of a class, if all have the same."""
    faults = {one.fault for one, own in zip(inventory.inspections, inventory.labels, strict=True) if own == label}
    return f" ({FAULTS[faults.pop()]})" if len(faults) == 1 and "" not in faults else ""


def untrained_class_findings(inventory: Inventory, ids: ContentIds, rows: Ints, leaking: Bools) -> list[Finding]:
    """Errors for classes with held-back images and no training images, first those whose training images were copies.

    Args:
        inventory: The source.
        ids: (N,) content of each image.
        rows: (M,) usable rows.
        leaking: (N,) whether an image was set aside as a copy of a held-back one.
    """
    if not inventory.official:
        return []
    counts = class_counts(inventory, rows, inventory.splits[rows])
    trained = np.array(counts["train"])
    held = np.sum([counts[split] for split in SPLITS[1:] if split in counts], axis=0) + np.zeros_like(trained)
    copies = leaking & (inventory.splits == "train")
    copied = np.bincount(inventory.labels[copies], minlength=len(trained)) * (trained == 0)
    trained_names = [name for name, count in zip(inventory.classes, trained, strict=True) if count]
    return [
        *_all_copies(inventory, ids, copies & (copied > 0)[inventory.labels]),
        *(
            Finding(
                kind="untrained_class",
                severity="error",
                message=f"Class {name!r} has {counted(int(kept), 'held-back image')} but none in train. "
                + (_same_class(name, trained_names) or "Add training images of it, or remove it."),
                items=(name,),
            )
            for name, count, kept, same in zip(inventory.classes, trained, held, copied, strict=True)
            if count == 0 and kept > 0 and same == 0
        ),
    ]


def _all_copies(inventory: Inventory, ids: ContentIds, copies: Bools) -> list[Finding]:
    """The error for classes of which every training image is a held-back image as well."""
    if not copies.any():
        return []
    names = tuple(inventory.classes[label] for label in np.unique(inventory.labels[copies]))
    theirs = np.isin(ids, ids[copies])
    where = [split for split in SPLITS[1:] if (theirs & (inventory.splits == split)).any()]
    places = " and ".join(where)
    folders = " and ".join(f"{split}/" for split in where)
    question = f"Is {places} a copy of train" if len(where) == 1 else f"Are {places} copies of train"
    remedy = {
        "folder": f"Remove the copies from {folders}, or delete {folders}",
        "manifest": "Correct the column split, or keep the rows of train only",
        "shards": f"Leave out the shards of {places}",
        "dataset": "Give datasets that have no image in common, or the training dataset only",
    }[inventory.kind]
    message = (
        f"All training images of {counted(len(names), 'class')} ({first_names(names)}) are also in {places}, exactly: "
        f"{counted(int(copies.sum()), 'image')}. {question}? {remedy} and hold images of train back "
        f"with test={DEFAULT_TEST} (command line: data.test={DEFAULT_TEST})."
    )
    return [Finding(kind="untrained_class", severity="error", message=message, items=names)]


def _same_class(name: str, trained: Sequence[str]) -> str:
    """A hint at the class of train that a class without training images may be, spelled in another way; or ""."""
    same = next((other for other in trained if alike_names([name, other])), None)
    return "" if same is None else f"If it is {same!r}, which train has, give it that name."


def split_size_findings(inventory: Inventory, rows: Ints, shares: Shares) -> list[Finding]:
    """Errors for classes of one image, of which none can be held back.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        shares: What is to be held back.
    """
    drawn = shares.drawn(inventory.splits[rows], official=inventory.official)
    if inventory.official or not drawn:
        return []
    counts = np.bincount(inventory.labels[rows], minlength=len(inventory.classes))
    purpose = "testing" if "test" in drawn else "validation"
    single = tuple(inventory.classes[index] for index in np.flatnonzero(counts == 1))
    remedy = (
        f"Add images, remove the class, bring your own splits ({_OWN_SPLITS[inventory.kind]}), or hold nothing back: "
    )
    remedy += "test=0 (command line: data.test=0)." if "test" in drawn else "val=0 (command line: data.val=0)."
    needed = f"2 are needed to hold one back for {purpose}."
    if len(single) > MOST_NAMES:
        message = f"{len(single)} of {len(counts)} classes have 1 image ({first_names(single)}); {needed} "
        message += describe_many_labels(inventory, counts) or remedy
        return [Finding(kind="small_class", severity="error", message=message, items=single)]
    return [
        Finding(
            kind="small_class",
            severity="error",
            message=f"Class {name!r} has 1 image; {needed} {remedy}",
            items=(name,),
        )
        for name in single
    ]


def class_findings(inventory: Inventory, rows: Ints, splits: Names, groups: Ints) -> list[Finding]:
    """Warnings about small, unmeasured, untested and imbalanced classes, each of which has a training image.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their splits.
        groups: (M,) their groups.
    """
    counts = class_counts(inventory, rows, splits)
    train = np.array(counts["train"])
    names = np.array(inventory.classes, dtype=object)
    findings = []
    few = tuple(str(name) for name in names[(train > 0) & (train < _SMALL_CLASS)])
    if few:
        message = f"Fewer than {_SMALL_CLASS} training images: {counted(len(few), 'class')} ({first_names(few)})."
        findings.append(Finding(kind="small_class", severity="warning", message=message, items=few))
    independent = np.array(train_group_counts(inventory, rows, splits, groups) or train)
    lone = tuple(str(name) for name in names[independent == 1])
    if lone:
        message = (
            f"With one independent training image or group, and so left out of held-back accuracy: "
            f"{counted(len(lone), 'class')} ({first_names(lone)}). Add images of another group."
        )
        findings.append(Finding(kind="unmeasured_class", severity="warning", message=message, items=lone))
    if "test" in counts:
        untested = np.flatnonzero((train > 0) & (np.array(counts["test"]) == 0))
        findings += _untested(names[untested], of_one_group=_of_one_group(inventory.labels[rows], groups, untested))
    if train.max() > _IMBALANCE * train.min():
        most, least = names[train.argmax()], names[train.argmin()]
        message = (
            f"Classes are unequal: {most!r} has {train.max()} training images and {least!r} has {train.min()}, "
            f"{train.max() / train.min():.0f} times fewer. Read balanced accuracy, not accuracy."
        )
        findings.append(Finding(kind="imbalance", severity="warning", message=message, items=(most, least)))
    return findings


def _of_one_group(labels: Ints, groups: Ints, classes: Ints) -> bool:
    """Whether each of the classes has two images or more, all of one group."""
    members = [groups[labels == label] for label in classes]
    return all(len(group) > 1 and len(np.unique(group)) == 1 for group in members)


def _untested(names: npt.NDArray[np.object_], *, of_one_group: bool) -> list[Finding]:
    absent = tuple(str(name) for name in names)
    if not absent:
        return []
    message = f"No test image, so nothing is measured on: {counted(len(absent), 'class')} ({first_names(absent)})."
    if of_one_group:
        message += " All images of such a class are of one group, and groups stay together."
    return [Finding(kind="untested_class", severity="warning", message=message, items=absent)]
