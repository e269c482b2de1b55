"""A table of classes and their attributes: read, checked, and matched with the classes that have images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.core.paths import expand
from transferkit.data.class_names import alike_names, normal_name
from transferkit.data.tables import TABLE_EXTENSIONS, read_table

__all__ = ["AttributeTable", "match_classes", "read_attributes"]

FEWEST_ATTRIBUTES = 2

SHOWN = 5
"""Problems of one kind that are listed."""

FLAGS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True, kw_only=True)
class AttributeTable:
    """Classes and their attributes.

    Args:
        origin: Where it is from, for messages.
        classes: K names.
        attributes: A names; columns that are equal for all classes are not among them.
        values: (K, A) float.
        constant: Names of the columns that were left out, because all classes have the same value there.
    """

    origin: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    values: npt.NDArray[np.float64]
    constant: tuple[str, ...] = ()


def read_attributes(source: Any) -> AttributeTable:
    """The table, checked: every problem is in one message.

    Args:
        source: A CSV, TSV or Parquet file whose first column names the classes and whose other columns are attributes
            (numbers, or true and false); or a mapping from class to its attributes, {"zebra": {"stripes": 1}}.

    Raises:
        DataError: It is no such table.
        OptionError: It is neither a path nor a mapping.

    Example:
        >>> table = read_attributes({"zebra": {"stripes": 1, "hooves": 1}, "tiger": {"stripes": 1, "hooves": 0},
        ...                          "horse": {"stripes": 0, "hooves": 1}})
        >>> table.classes, table.attributes, table.values.tolist()
        (('zebra', 'tiger', 'horse'), ('stripes', 'hooves'), [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    """
    if isinstance(source, Mapping):
        return _checked("the attributes", *_from_mapping(source))
    if not isinstance(source, (str, Path)) or not str(source):
        raise OptionError(
            "attributes must be the path of a table, a row per class and a column per attribute, or a mapping "
            f"{{class: {{attribute: value}}}}, got {source!r}."
        )
    path = expand(source)
    if not path.is_file():
        raise DataError(
            f"There is no file {str(path)!r}. attributes= takes a table, a row per class: name,big,striped."
        )
    if path.suffix.lower() not in TABLE_EXTENSIONS:
        raise DataError(f"{str(path)!r} is no table. attributes= reads {', '.join(TABLE_EXTENSIONS)}.")
    table = read_table(path)
    first, *others = table.columns
    if bad := [name for name in others if name in table.repeated]:
        raise DataError(f"{str(path)!r} has several columns {', '.join(map(repr, bad))}. Rename or remove them.")
    columns = {name: table.columns[name] for name in others}
    return _checked(repr(str(path)), table.columns[first], columns)


def _from_mapping(source: Mapping[Any, Any]) -> tuple[list[str], dict[str, list[str]]]:
    if wrong := [name for name, row in source.items() if not isinstance(row, Mapping)]:
        raise OptionError(f"attributes of {wrong[0]!r} must be values by name, such as {{'striped': 1}}.")
    names = list(dict.fromkeys(str(name) for row in source.values() for name in row))
    rows = [{str(name): value for name, value in row.items()} for row in source.values()]
    return [str(name) for name in source], {name: [str(row.get(name, "")) for row in rows] for name in names}


def _checked(origin: str, classes: Sequence[str], columns: Mapping[str, Sequence[str]]) -> AttributeTable:
    classes = [normal_name(name.strip()) for name in classes]
    cells = {name: [_number(cell) for cell in column] for name, column in columns.items()}
    problems = [*_class_problems(classes), *_cell_problems(classes, columns, cells)]
    constant = tuple(name for name, column in cells.items() if len(set(column)) == 1)
    kept = [name for name in cells if name not in constant]
    if not problems and len(kept) < FEWEST_ATTRIBUTES:
        same = f" ({', '.join(map(repr, constant[:SHOWN]))} {'is' if len(constant) == 1 else 'are'} the same for all)"
        problems.append(
            f"at least {FEWEST_ATTRIBUTES} attributes must differ between classes, got {len(kept)}"
            f"{same if constant else ''}; a column per attribute follows the class names"
        )
    if problems:
        raise DataError(list_problems(f"{origin} is no table of attributes:", problems))
    values = np.array([cells[name] for name in kept], dtype=np.float64).T
    return AttributeTable(
        origin=origin, classes=tuple(classes), attributes=tuple(kept), values=values, constant=constant
    )


def _number(cell: str) -> float:
    """NaN if it is no finite number."""
    text = cell.strip()
    if text.lower() in FLAGS:
        return FLAGS[text.lower()]
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _class_problems(classes: Sequence[str]) -> list[str]:
    counts, problems = Counter(classes), []
    if counts[""]:
        problems.append(f"{counts['']} rows have no class name in the first column")
    if repeated := [name for name, count in counts.items() if count > 1 and name]:
        problems.append(f"several rows of the same class: {_list(map(repr, repeated))}; keep one row per class")
    return problems


def _cell_problems(
    classes: Sequence[str], columns: Mapping[str, Sequence[str]], cells: Mapping[str, Sequence[float]]
) -> list[str]:
    wrong = [
        f"{classes[row] or f'row {row + 1}'}, {name}: {columns[name][row]!r}"
        for name, column in cells.items()
        for row, value in enumerate(column)
        if math.isnan(value)
    ]
    if not wrong:
        return []
    count = "1 cell is" if len(wrong) == 1 else f"{len(wrong)} cells are"
    return [f"{count} no number ({_list(wrong)}); write numbers, or true and false, and leave no cell empty"]


def _list(items: Any) -> str:
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def match_classes(table: AttributeTable, seen: Sequence[str]) -> tuple[AttributeTable, int]:
    """The table with the rows of classes with images first, in their order; and the number of these.

    Args:
        table: Of all classes.
        seen: Names of the classes with images, in label order.

    Raises:
        DataError: A class with images has no row, a row's name nearly matches such a class, or no class is without
            images; all of it in one message.

    Example:
        >>> made = read_attributes({"a": {"p": 0, "q": 1}, "new": {"p": 1, "q": 0}, "b": {"p": 1, "q": 1}})
        >>> ordered, number = match_classes(made, ["b", "a"])
        >>> ordered.classes, number
        (('b', 'a', 'new'), 2)
    """
    place = {name: row for row, name in enumerate(table.classes)}
    unseen = [name for name in table.classes if name not in set(seen)]
    problems = []
    for name in seen:
        if name in place:
            continue
        near = [other for other in unseen if alike_names([name, other])]
        if near:
            problems.append(f"class {name!r} has images and no row; is it {near[0]!r}? Write both alike")
        else:
            hint = unknown_name("row", name, table.classes).partition(". ")[2]
            problems.append(f"class {name!r} has images and no row; add one, or remove its images. {hint}")
    missing = len(problems)
    problems = problems[:SHOWN] + ([f"and {missing - SHOWN} more without a row"] if missing > SHOWN else [])
    if not missing:
        problems += _near_names(unseen, seen)
        if not unseen:
            problems.append(
                "every class has images, so there is nothing to learn from attributes: add rows of classes without "
                "images, or use transferkit adapt"
            )
    if problems:
        raise DataError(list_problems(f"The classes of {table.origin} do not fit those of the images:", problems))
    order = np.array([place[name] for name in (*seen, *unseen)])
    ordered = AttributeTable(
        origin=table.origin,
        classes=(*seen, *unseen),
        attributes=table.attributes,
        values=table.values[order],
        constant=table.constant,
    )
    return ordered, len(seen)


def _near_names(unseen: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Rows without images whose name is that of a class with images in another spelling."""
    alike = alike_names([*seen, *unseen])
    found = [group for group in alike if set(group) & set(unseen) and set(group) & set(seen)]
    return [
        f"rows that look like one class: {', '.join(map(repr, group))}; remove one, or rename it"
        for group in found[:SHOWN]
    ]
