"""Class names and labels of torch datasets, in all their common forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError
from transferkit.data.class_names import normal_name, order_names
from transferkit.data.inventory import NO_LABEL
from transferkit.data.phrases import first_names
from transferkit.records import Finding

__all__ = ["UNREAD", "Labels", "class_names", "read_labels"]

UNREAD = object()
"""Placeholder for the label of an item that could not be read; it has a finding already."""

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels as class numbers.

    Args:
        labels: (N,) int64 in [0, K), or `NO_LABEL`.
        classes: K names of classes that have an item.
        findings: Findings about labels.
    """

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]


def read_labels(
    values: Sequence[Any],
    names: Sequence[Mapping[int, str]],
    declared: Mapping[str, Mapping[int, str]],
    *,
    where: Sequence[str],
) -> Labels:
    """Labels of dataset items, in any common form, as class indices.

    Args:
        values: N labels: a whole number, a name, a truth value, a one-hot vector, a tensor or array of one of these, or
            None for an item without a label.
        names: For each of the N items, class index -> name as its dataset declares them.
        declared: Split -> class index -> name; empty if the dataset declares none.
        where: N names of the items, for display.

    Raises:
        DataError: A label is something else, or not one of the declared classes.
    """
    found = [
        None if value is UNREAD else _label_name(value, known, item)
        for value, known, item in zip(values, names, where, strict=True)
    ]
    present = {name for name in found if name is not None}
    order = dict.fromkeys(known[number] for known in declared.values() for number in sorted(known))
    classes = [name for name in order if name in present] + order_names(present - set(order))
    index_of = {name: index for index, name in enumerate(classes)}
    unlabelled = [
        item for item, name, value in zip(where, found, values, strict=True) if name is None and value is not UNREAD
    ]
    return Labels(
        labels=np.array([NO_LABEL if name is None else index_of[name] for name in found], dtype=np.int64),
        classes=tuple(classes),
        findings=(*_unlabelled(unlabelled), *_absent([name for name in order if name not in present])),
    )


def _unlabelled(items: Sequence[str]) -> list[Finding]:
    if not items:
        return []
    message = (
        f"Left out, as they have no label: {len(items)} images ({first_names(items)}). Label them, or remove them."
    )
    return [Finding(kind="unlabelled", severity="set_aside", message=message, items=tuple(items))]


def _absent(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    which = "class that the dataset declares has" if len(names) == 1 else "classes that the dataset declares have"
    message = f"Left out, as {len(names)} {which} no image: {', '.join(names[:5])}."
    return [Finding(kind="unused_class", severity="info", message=message, items=tuple(names))]


# The label of one item


def _label_name(label: Any, classes: Mapping[int, str], where: str) -> str | None:
    """The class name of an item; None if it has no label."""
    label = _plain(label)
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    if isinstance(label, bytes):
        label = _decoded(label, where)
    if isinstance(label, str):
        return normal_name(str(label))
    if isinstance(label, list):
        label = _hot_index(label, classes, where)
    if isinstance(label, bool) and not classes:
        return str(label)
    if not isinstance(label, int):
        raise DataError(
            f"{where}: expected one class index or class name as label, got {_described(label)}. For class indices, "
            "return int(label); for numbers to predict, or several labels per image, pass task='regression' or "
            "task='multi_label' (docs/targets.md)."
        )
    if classes and int(label) not in classes:
        raise DataError(f"{where}: label {int(label)} is outside the {len(classes)} names in the dataset's .classes.")
    return classes[int(label)] if classes else str(int(label))


def _plain(label: Any) -> Any:
    """Tensors, arrays and NumPy scalars as Python values; a vector of one value as that value."""
    if isinstance(label, torch.Tensor):
        label = label.detach().cpu().numpy()
    if isinstance(label, (np.ndarray, np.generic)):
        label = label.tolist()
    if isinstance(label, tuple):
        label = list(label)
    while isinstance(label, list) and len(label) == 1:
        (label,) = label
    return label


def _decoded(label: bytes, where: str) -> str:
    try:
        return label.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: the label's bytes {label[:20]!r} are not UTF-8 text. Pass names as str.") from None


def _hot_index(label: list[Any], classes: Mapping[int, str], where: str) -> int:
    """The class index of a one-hot vector."""
    is_hot = all(isinstance(value, (int, float)) and value in (0, 1) for value in label) and sum(label) == 1
    if not is_hot or (classes and len(label) != len(classes)):
        wanted = f"a one-hot vector of {len(classes)} values" if classes else "a one-hot vector"
        raise DataError(
            f"{where}: expected one class index or class name as label, or {wanted}, got {_described(label)}. For "
            "several labels per image, pass task='multi_label', for numbers to predict task='regression' "
            "(docs/targets.md)."
        )
    return label.index(1)


def _described(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} values ({', '.join(map(str, value[:_SHOWN]))}{', ...' if len(value) > _SHOWN else ''})"
    return f"{type(value).__name__} {value!r}"[:80]


# Class names that a dataset declares


def class_names(dataset: Any) -> dict[int, str]:
    """Class index -> name, from a dataset's `.classes` or `.class_to_idx`; {} if it has neither.

    Looks inside Subset, random_split and ConcatDataset, to any depth.

    Raises:
        DataError: The names have no order, or concatenated datasets contradict each other.
    """
    for attribute in ("classes", "class_to_idx"):
        names = getattr(dataset, attribute, None)
        if names is not None and not isinstance(names, int) and not callable(names):  # an int is their number
            return _with_unique_names(_numbered(names, f"{type(dataset).__name__}.{attribute}"))
    if (inner := getattr(dataset, "dataset", None)) is not None:
        return class_names(inner)
    joined = getattr(dataset, "datasets", None)
    return _merged([class_names(part) for part in joined]) if isinstance(joined, (list, tuple)) else {}


def _numbered(names: Any, where: str) -> dict[int, str]:
    if isinstance(names, Mapping):
        return _from_mapping(names, where)
    if isinstance(names, (str, bytes, set, frozenset)):
        raise DataError(
            f"{where} is a {type(names).__name__}, which does not define the index of each class. Make it a list of "
            "names in index order."
        )
    try:
        return {number: _named(entry) for number, entry in enumerate(names)}
    except TypeError:
        raise DataError(f"{where} is {_described(names)}; expected a list of names in index order.") from None


def _from_mapping(mapping: Mapping[Any, Any], where: str) -> dict[int, str]:
    """Class index -> name from {name: index} or {index: name}."""
    if all(_is_number(key) for key in mapping):
        return {int(number): _named(name) for number, name in mapping.items()}
    if not all(_is_number(value) for value in mapping.values()):
        raise DataError(f"{where} is a dict of neither {{name: index}} nor {{index: name}}. Make it one of these.")
    names: dict[int, list[str]] = {}
    for name, number in mapping.items():
        names.setdefault(int(number), []).append(_named(name))
    return {number: ", ".join(same) for number, same in names.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _named(entry: Any) -> str:
    return normal_name(", ".join(map(str, entry)) if isinstance(entry, (tuple, list)) else str(entry))


def _with_unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """The names, with the index appended to those that occur twice."""
    counted = list(names.values())
    return {number: f"{name} ({number})" if counted.count(name) > 1 else name for number, name in names.items()}


def _merged(parts: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """The names of concatenated datasets: labels are indices, so an index must mean the same class in all."""
    names: dict[int, str] = {}
    for part in parts:
        for number, name in part.items():
            if names.setdefault(number, name) != name:
                raise DataError(
                    f"Datasets in a ConcatDataset disagree: label {number} is {names[number]!r} in one and "
                    f"{name!r} in another. Use the same class indices in all of them, or return names as labels."
                )
    return names
