"""Findings about class names: duplicates in another spelling, numeric targets, missing values."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.class_names import alike_names, are_numbers
from transferkit.data.inventory import Inventory
from transferkit.data.phrases import first_names
from transferkit.records import Finding

__all__ = ["describe_many_labels", "label_findings"]

_MANY = 20
"""Number of distinct labels from which on they may be numeric targets instead of classes."""

_IMAGES_PER_NUMBER = 3
"""Images per label below which integers look like numeric targets."""

_SHOWN = 5

_BETWEEN = re.compile(r"[|;,+&]")

_MISSING_WORDS = frozenset({"none", "null", "na", "n/a", "nan", "nil", "?", "-", "--"})

REGRESSION = "To predict numbers, pass task='regression' (command line: data.task=regression)"


def label_findings(inventory: Inventory, counts: npt.NDArray[np.int64]) -> list[Finding]:
    """Warnings about the names of the classes.

    Args:
        inventory: The source.
        counts: (K,) images per class.
    """
    findings = _alike(inventory.classes, counts)
    if inventory.kind == "folder":
        return findings
    if missing := [k for k, name in enumerate(inventory.classes) if _may_be_missing(name, inventory.classes)]:
        listed = ", ".join(f"{inventory.classes[k]!r} ({counts[k]} images)" for k in missing)
        message = f"Used as classes, but they look like missing labels: {listed}. If they are, remove these images."
        names = tuple(inventory.classes[k] for k in missing)
        findings.append(Finding(kind="missing_label_as_class", severity="warning", message=message, items=names))
    if several := _several_in_one(inventory.classes):
        listed = ", ".join(map(repr, several[:_SHOWN]))
        message = (
            f"Labels that look like several classes in one: {listed}. Each is used as a separate class. For "
            "several labels per image, pass task='multi_label' (command line: data.task=multi_label)."
        )
        findings.append(Finding(kind="several_labels", severity="warning", message=message, items=several))
    if look_like_numbers(inventory.classes, counts):
        message = f"The {len(inventory.classes)} labels look like numbers to predict, not classes. {REGRESSION}."
        findings.append(Finding(kind="numeric_labels", severity="warning", message=message))
    return findings


def _may_be_missing(name: str, classes: Sequence[str]) -> bool:
    """Whether a class looks like a missing label: a word such as "none", or the number -1 next to 0, 1, 2 and so on."""
    lone = name == "-1" and len(classes) > 2 and sum(other.startswith("-") for other in classes) == 1
    return name.casefold() in _MISSING_WORDS or (lone and are_numbers(classes))


def _several_in_one(classes: Sequence[str]) -> tuple[str, ...]:
    """Names composed of other class names: "cat|dog" or "['cat', 'dog']" where "cat" is a class too."""
    names = set(classes)
    found = []
    for name in classes:
        parts = {part.strip(" []()'\"") for part in _BETWEEN.split(name)} - {""}
        if len(parts) > 1 and parts & names:
            found.append(name)
    return tuple(found)


def look_like_numbers(classes: Sequence[str], counts: npt.NDArray[np.int64]) -> bool:
    """Whether labels are numbers to predict, not classes: many, all numbers, with few images each or decimals."""
    if len(classes) < _MANY or not are_numbers(classes):
        return False
    return counts.sum() < _IMAGES_PER_NUMBER * len(classes) or any("." in name.rstrip("0.") for name in classes)


def describe_many_labels(inventory: Inventory, counts: npt.NDArray[np.int64]) -> str:
    """A likely reason for many classes with one image each; "" if unknown."""
    if inventory.kind == "folder":
        return ""
    if look_like_numbers(inventory.classes, counts):
        return f"The labels look like numbers to predict, not classes. {REGRESSION}."
    if 2 * len(inventory.classes) > counts.sum() and inventory.kind == "manifest":
        return (
            "Nearly every image has a different label: if the classes are in another column, name it with "
            "columns={'label': 'NAME'} (command line: data.columns.label=NAME)."
        )
    return ""


def _alike(classes: Sequence[str], counts: npt.NDArray[np.int64]) -> list[Finding]:
    pairs = alike_names(classes)
    if not pairs:
        return []
    number = {name: int(count) for name, count in zip(classes, counts, strict=True)}
    items = tuple(" / ".join(f"{name!r} ({number[name]})" for name in same) for same in pairs)
    message = (
        f"Classes whose names differ only in case, spacing or number format: {first_names(items)}. "
        "If they are one class, give it one name."
    )
    return [Finding(kind="alike_classes", severity="warning", message=message, items=items)]
