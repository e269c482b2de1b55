"""Targets of images from tables and datasets: several labels per image, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.data.class_names import normal_name, order_names
from transferkit.data.inventory import NO_LABEL
from transferkit.data.labels import UNREAD
from transferkit.data.phrases import first_names
from transferkit.records import TASK_NAMES, Finding, Targets

__all__ = ["FoundTargets", "check_task", "read_cells", "read_values", "recognise_task"]

_SEPARATORS = (";", "|", ",")
"""Between labels in one cell, the likeliest first: a label may contain those that come later."""

_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "y"), 1.0),
    **dict.fromkeys(("0", "0.0", "false", "no", "n"), 0.0),
}

_MISSING = frozenset({"", "nan", "<na>", "nat", "na", "n/a", "none", "null", "#n/a", "-nan"})

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class FoundTargets:
    """Targets as they were read.

    Args:
        targets: Of all N rows; those without have zeros.
        known: (N,) bool, whether a row has targets.
        findings: Findings about them.
    """

    targets: Targets
    known: npt.NDArray[np.bool_]
    findings: tuple[Finding, ...] = ()

    @property
    def strata(self) -> npt.NDArray[np.int64]:
        """(N,) int >= 0 that splits are spread evenly over, or `NO_LABEL`."""
        found = np.full(len(self.known), NO_LABEL, dtype=np.int64)
        if self.known.any():
            found[self.known] = self.targets.take(np.flatnonzero(self.known)).strata
        return found


def check_task(task: str) -> None:
    """Raise `OptionError` unless it is "auto" or the name of a task."""
    if task not in ("auto", *TASK_NAMES):
        raise OptionError(unknown_name("task", task, ["auto", *TASK_NAMES]))


# Cells of a table


def read_cells(
    columns: Mapping[str, Sequence[str]], task: str, *, lines: Sequence[int], names: Sequence[str], file: str
) -> FoundTargets:
    """Targets in the columns of a table.

    Args:
        columns: Name -> N cells; one column of several labels each, columns of 0 and 1, or columns of numbers.
        task: "auto" (of several columns only), "multi_label" or "regression".
        lines: Line of each row in the file.
        names: N names of the images.
        file: Of the table, for messages.

    Raises:
        DataError: A cell cannot be read.
    """
    flags = {name: _are_flags(cells) for name, cells in columns.items()}
    if task == "auto":
        task = "multi_label" if all(flags.values()) else "regression"
    if task == "regression":
        return _read_numbers(columns, lines=lines, names=names, file=file)
    if len(columns) == 1 and not all(flags.values()) and not _are_numbers(next(iter(columns.values()))):
        return _several_in_a_cell(next(iter(columns.values())))
    return _read_flags(columns, lines=lines, file=file)


def _are_flags(cells: Sequence[str]) -> bool:
    return all(cell.lower() in _FLAGS for cell in cells)


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether the cells are numbers, one each: 0, 1 and 2 are no names of labels."""
    filled = [cell for cell in cells if cell.lower() not in _MISSING]
    return bool(filled) and all(map(_parses, filled))


def _read_flags(columns: Mapping[str, Sequence[str]], *, lines: Sequence[int], file: str) -> FoundTargets:
    problems = []
    for name, cells in columns.items():
        strange = [(cell, line) for cell, line in zip(cells, lines, strict=True) if cell.lower() not in _FLAGS]
        if strange:
            shown = ", ".join(f"{cell!r} (line {line})" for cell, line in strange[:_SHOWN])
            problems.append(
                f"column {name!r} contains {shown}; expected 0 or 1 (or no and yes) in every row. For numbers to "
                "predict use task=regression"
            )
    if problems:
        raise DataError(list_problems(f"Manifest {file!r} cannot be used:", problems))
    values = np.array([[_FLAGS[cell.lower()] for cell in cells] for cells in columns.values()], dtype=np.float64).T
    names = tuple(normal_name(name) for name in columns)
    targets = Targets(task="multi_label", names=names, values=np.ascontiguousarray(values))
    return FoundTargets(targets=targets, known=np.ones(len(lines), dtype=bool))


def _several_in_a_cell(cells: Sequence[str]) -> FoundTargets:
    """Labels separated by ; or | or a comma; an empty cell is an image without any label."""
    separator = next((one for one in _SEPARATORS if any(one in cell for cell in cells)), None)
    labels = [_labels_in(cell, separator) for cell in cells]
    return _from_names(labels, np.ones(len(cells), dtype=bool))


def _labels_in(cell: str, separator: str | None) -> list[str]:
    if cell.lower() in _MISSING:
        return []
    bare = cell.strip("[](){} ")
    parts = [bare] if separator is None else bare.split(separator)
    return [normal_name(part) for part in (part.strip(" '\"") for part in parts) if part]


def _from_names(
    labels: Sequence[Sequence[str]], known: npt.NDArray[np.bool_], order: Sequence[str] = ()
) -> FoundTargets:
    present = {name for those in labels for name in those}
    names = [name for name in order if name in present] + order_names(present - set(order))
    if not names:
        raise DataError("No image has a label. Expected several labels per image, separated by ; in the column label.")
    index_of = {name: index for index, name in enumerate(names)}
    values = np.zeros((len(labels), len(names)))
    for row, those in enumerate(labels):
        values[row, [index_of[name] for name in those]] = 1.0
    return FoundTargets(targets=Targets(task="multi_label", names=tuple(names), values=values), known=known)


def _read_numbers(
    columns: Mapping[str, Sequence[str]], *, lines: Sequence[int], names: Sequence[str], file: str
) -> FoundTargets:
    problems, values = [], np.empty((len(lines), len(columns)))
    for place, (name, cells) in enumerate(columns.items()):
        found = [_number(cell) for cell in cells]
        strange = [(cell, line) for cell, line, value in zip(cells, lines, found, strict=True) if value is None]
        if strange:
            shown = ", ".join(f"{cell!r} (line {line})" for cell, line in strange[:_SHOWN])
            problems.append(f"column {name!r} contains {shown}; expected finite numbers, such as 2.5{_hint(strange)}")
        values[:, place] = [math.nan if value is None else value for value in found]
    if problems:
        raise DataError(list_problems(f"Manifest {file!r} cannot be used:", problems))
    return _with_gaps(tuple(normal_name(name) for name in columns), values, names)


def _hint(strange: Sequence[tuple[str, int]]) -> str:
    if all(re.fullmatch(r"[+-]?\d+,\d+", cell) for cell, _ in strange):
        return " with a point instead of the comma"
    if all(math.isinf(float(cell)) for cell, _ in strange if _parses(cell)) and any(
        _parses(cell) for cell, _ in strange
    ):
        return ": leave the cell empty where the number is not known"
    return ". For names use task=single_label or task=multi_label"


def _parses(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float | None:
    """The number in a cell, NaN for an empty one; None if it is none, or infinite."""
    if cell.lower() in _MISSING:
        return math.nan
    if not _parses(cell):
        return None
    value = float(cell)
    return None if math.isinf(value) else value


def _with_gaps(
    names: tuple[str, ...],
    values: npt.NDArray[np.float64],
    items: Sequence[str],
    read: npt.NDArray[np.bool_] | None = None,
) -> FoundTargets:
    """Numbers; rows with a gap are set aside."""
    known = np.asarray(np.isfinite(values).all(axis=1), dtype=bool)
    read = np.ones(len(values), dtype=bool) if read is None else read
    missing = tuple(items[int(row)] for row in np.flatnonzero(~known & read))
    findings: tuple[Finding, ...] = ()
    if missing:
        message = (
            f"Left out, as a number is missing: {len(missing)} images ({first_names(missing)}). Fill it in, or remove "
            "them."
        )
        findings = (Finding(kind="unlabelled", severity="set_aside", message=message, items=missing),)
    filled = np.where(known[:, None], values, 0.0)
    return FoundTargets(targets=Targets(task="regression", names=names, values=filled), known=known, findings=findings)


# Targets of a dataset's items


def recognise_task(values: Sequence[Any]) -> str:
    """The task that a dataset's targets suggest: "multi_label" for vectors of 0 and 1 that are not all one-hot,
    "regression" for vectors of other floats; else "single_label".

    Example:
        >>> recognise_task([[0, 1, 1], [0, 0, 0]]), recognise_task([[0.5, 2.0]]), recognise_task([[0, 1], [1, 0]])
        ('multi_label', 'regression', 'single_label')
    """
    plain = [_plain(value) for value in values if value is not UNREAD and value is not None]
    if not plain or not all(isinstance(value, list) and len(value) > 1 for value in plain):
        return "single_label"
    if len({len(value) for value in plain}) != 1 or not all(_is_number(part) for value in plain for part in value):
        return "single_label"
    if all(part in (0, 1) for value in plain for part in value):
        return "single_label" if all(sum(value) == 1 for value in plain) else "multi_label"
    return "regression" if any(isinstance(part, float) for value in plain for part in value) else "single_label"


def read_values(
    values: Sequence[Any], task: str, *, declared: Mapping[str, Mapping[int, str]], where: Sequence[str]
) -> FoundTargets:
    """Targets of dataset items.

    Args:
        values: N targets: for labels vectors of 0 and 1, or lists of names or of class numbers; for numbers a number or
            a vector of them. None is an item without; `UNREAD` one that could not be read.
        task: "multi_label" or "regression".
        declared: Split -> class index -> name; empty if the dataset declares none.
        where: N names of the items, for display.

    Raises:
        DataError: A target is something else.
    """
    plain = [value if value is UNREAD else _plain(value) for value in values]
    read = np.array([value is not UNREAD for value in plain], dtype=bool)
    names = next(iter(declared.values()), {})
    if task == "regression":
        return _numbers_of(plain, names, read, where)
    return _labels_of(plain, names, read, where)


def _plain(value: Any) -> Any:
    """Tensors, arrays and NumPy scalars as Python values; tuples and sets as lists."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _numbers_of(
    plain: Sequence[Any], names: Mapping[int, str], read: npt.NDArray[np.bool_], where: Sequence[str]
) -> FoundTargets:
    rows: list[list[float] | None] = []
    for value, item in zip(plain, where, strict=True):
        if value is UNREAD or value is None:
            rows.append(None)
            continue
        row = value if isinstance(value, list) else [value]
        if not row or not all(_is_number(part) for part in row):
            raise DataError(f"{item}: expected a number or a vector of numbers as target, got {_described(value)}.")
        if any(math.isinf(part) for part in row):
            raise DataError(f"{item}: the target is not finite. Return None where the number is not known.")
        rows.append([float(part) for part in row])
    width = _width([row for row in rows if row is not None], where)
    values = np.array([[math.nan] * width if row is None else row for row in rows], dtype=np.float64)
    known = tuple(names[index] for index in sorted(names)) if len(names) == width else ()
    numbered = ("target",) if width == 1 else tuple(f"target {index}" for index in range(width))
    return _with_gaps(known or numbered, values.reshape(len(rows), width), where, read)


def _width(rows: Sequence[Sequence[Any]], where: Sequence[str]) -> int:
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        shown = " and ".join(map(str, widths[:_SHOWN])) if widths else "none"
        raise DataError(f"Expected targets of one length in all items ({where[0]} and so on), got lengths {shown}.")
    return widths[0]


def _labels_of(
    plain: Sequence[Any], names: Mapping[int, str], read: npt.NDArray[np.bool_], where: Sequence[str]
) -> FoundTargets:
    rows = [
        [] if value is UNREAD or value is None else value if isinstance(value, list) else [value] for value in plain
    ]
    vectors = [row for row, is_read in zip(rows, read, strict=True) if is_read]
    lengths = {len(row) for row in vectors}
    is_hot = (
        len(lengths) == 1
        and lengths != {0}
        and all(_is_number(part) and part in (0, 1) for row in vectors for part in row)
        and (len(names) in (0, *lengths))
    )
    if is_hot:
        (width,) = lengths
        values = np.array([row if row else [0.0] * width for row in rows], dtype=np.float64)
        numbered = tuple(names.get(index, str(index)) for index in range(width))
        return FoundTargets(targets=Targets(task="multi_label", names=numbered, values=values), known=read)
    labels = [[_label(part, names, item) for part in row] for row, item in zip(rows, where, strict=True)]
    return _from_names(labels, read, [names[index] for index in sorted(names)])


def _label(part: Any, names: Mapping[int, str], where: str) -> str:
    if isinstance(part, str):
        return normal_name(part)
    if isinstance(part, int) and not isinstance(part, bool):
        if names and part not in names:
            raise DataError(f"{where}: label {part} is outside the {len(names)} names in the dataset's .classes.")
        return names.get(part, str(part))
    raise DataError(
        f"{where}: expected a vector of 0 and 1, or a list of names or class numbers as labels, got "
        f"{_described(part)}. For numbers to predict use task='regression'."
    )


def _described(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} values ({', '.join(map(str, value[:_SHOWN]))}{', ...' if len(value) > _SHOWN else ''})"
    return f"{type(value).__name__} {value!r}"[:80]
