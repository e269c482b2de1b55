"""Findings of the audit about several labels per image, or numbers; where there is one class, `class_findings`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.inventory import Inventory
from transferkit.data.phrases import counted, first_names
from transferkit.records import Finding, Targets

__all__ = ["target_errors", "target_warnings"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]

_FEW = 5
"""Training images with a label under which its average precision is mostly chance."""


def target_errors(inventory: Inventory, rows: Ints, splits: Names) -> list[Finding]:
    """Errors for what cannot be learned: labels on no or on every training image, numbers that do not vary.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their splits.
    """
    assert inventory.targets is not None
    train = inventory.targets.take(rows[splits == "train"])
    if len(train) < 2:
        message = f"There are {len(train)} training images with a target; at least 2 are needed. Add images."
        return [Finding(kind="few_images", severity="error", message=message)]
    return _labels_not_learnable(train, inventory.targets.take(rows)) if train.is_labels else _constant(train)


def _labels_not_learnable(train: Targets, everywhere: Targets) -> list[Finding]:
    findings = []
    counts, elsewhere = train.counts, everywhere.counts
    for name, count, total in zip(train.names, counts, elsewhere, strict=True):
        if count == 0:
            held = f", but on {counted(int(total), 'held-back image')}" if total else ""
            message = f"Label {name!r} is on no training image{held}. Add training images with it, or leave it out."
        elif count == len(train):
            message = f"Label {name!r} is on every training image, so there is nothing to learn. Leave it out."
        else:
            continue
        findings.append(Finding(kind="untrained_label", severity="error", message=message, items=(name,)))
    return findings


def _constant(train: Targets) -> list[Finding]:
    findings = []
    for name, column in zip(train.names, train.values.T, strict=True):
        if (column == column[0]).all():
            message = f"Target {name!r} is {column[0]:g} on every training image. Leave it out, or check the column."
            findings.append(Finding(kind="constant_target", severity="error", message=message, items=(name,)))
    return findings


def target_warnings(inventory: Inventory, rows: Ints, splits: Names) -> list[Finding]:
    """Warnings about rare labels, labels that no test image has, and numbers that look like classes.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their splits.
    """
    assert inventory.targets is not None
    train, test = (inventory.targets.take(rows[splits == split]) for split in ("train", "test"))
    findings = []
    if not train.is_labels:
        return _outside(train, test)
    few = _named(train.names, train.counts < _FEW)
    if few:
        message = f"On fewer than {_FEW} training images: {counted(len(few), 'label')} ({first_names(few)})."
        findings.append(Finding(kind="small_class", severity="warning", message=message, items=few))
    if len(test):
        unseen = _named(test.names, test.counts == 0)
        if unseen:
            message = (
                f"On no test image, so left out of the mean average precision there: {counted(len(unseen), 'label')} "
                f"({first_names(unseen)})."
            )
            findings.append(Finding(kind="untested_class", severity="warning", message=message, items=unseen))
    return findings


def _outside(train: Targets, test: Targets) -> list[Finding]:
    """The warning for test images far outside the range of the training targets: a linear model extrapolates."""
    if not len(test):
        return []
    low, high = train.values.min(axis=0), train.values.max(axis=0)
    margin = 0.1 * (high - low)
    beyond = ((test.values < low - margin) | (test.values > high + margin)).sum(axis=0)
    return [
        Finding(
            kind="outside_range",
            severity="warning",
            message=f"{name!r} is far outside the training images' range ({low[at]:.4g} to {high[at]:.4g}) on "
            f"{counted(int(beyond[at]), 'test image')}; errors there are larger.",
            items=(name,),
        )
        for at, name in enumerate(train.names)
        if beyond[at]
    ]


def _named(names: Sequence[str], which: Bools) -> tuple[str, ...]:
    return tuple(name for name, is_meant in zip(names, which, strict=True) if is_meant)
