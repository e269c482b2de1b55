"""Corrected labels: a table of images with what a person wrote about their labels, put in the place of a source's.

The table is what `transferkit doctor labels` writes, or any CSV with the columns `path` and `corrected` or `label`. Its
cells are read exactly as they were written, so that any file name survives; manifests, which people write by hand, are
read more leniently (`tables`).
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.core.file_kinds import kind_of
from transferkit.core.paths import expand
from transferkit.data.class_names import alike_names, normal_name
from transferkit.data.inventory import FileReader, Inventory
from transferkit.data.phrases import counted, first_names
from transferkit.records import CORRECTED, REMOVED, CorrectedLabel, Finding, removal_word

__all__ = ["Applied", "Correction", "Corrections", "apply_corrections", "read_corrections"]

DELIMITERS = ",;\t|"
"""The first is the default; spreadsheets write the second where the decimal mark is a comma."""

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

SHOWN = 5

KEPT_SPLIT = "test"
"""Labels of test images are never changed: what is measured on them must not depend on what a model suggested."""

REVIEW = "transferkit doctor labels and transferkit doctor images write such tables."

UTF8 = "Is the table saved as UTF-8? In a spreadsheet, choose CSV UTF-8"


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A line of the table: which image, what it is to become, and whether that was written by a person."""

    line: int
    name: str
    wanted: str
    is_filled: bool


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """A table of corrections that was read.

    Args:
        file: As it was named.
        rows: Its lines.
    """

    file: str
    rows: tuple[Correction, ...]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """Corrections put in place.

    Args:
        labels: (N,) of all rows of the inventory.
        removed: (N,) whether a row is removed.
        changes: One for each image that is removed or has another class now.
        finding: What was changed.
    """

    labels: npt.NDArray[np.int64]
    removed: npt.NDArray[np.bool_]
    changes: tuple[CorrectedLabel, ...]
    finding: Finding


def read_corrections(file: str | Path) -> Corrections:
    """The rows of a table of corrections.

    Args:
        file: CSV with a header line; columns `path`, and `corrected` or `label`. Where `corrected` is empty, `label`
            counts.

    Raises:
        OptionError: It is no path.
        DataError: It is missing, no table, or lacks columns.
    """
    if not isinstance(file, (str, Path)) or not str(file).strip():
        raise OptionError(f"labels must be the path of a CSV table of corrected labels, got {file!r}. {REVIEW}")
    path = expand(file)
    if not path.is_file():
        what = "is a folder, not a CSV table" if path.is_dir() else "There is no such file"
        told = f"labels={file} {what}." if path.is_dir() else f"{what}: labels={file}."
        raise DataError(f"{told} {REVIEW}")
    table = [(line, row) for line, row in _read_rows(path, str(file)) if any(cell.strip() for cell in row)]
    header = [cell.strip().casefold() for cell in table[0][1]] if table else []
    if missing := _missing_columns(header):
        there = f"its first line has {', '.join(filter(None, header))}" if any(header) else "it is empty"
        raise DataError(f"labels={file} has no column {missing}; {there}. {REVIEW}")
    return Corrections(file=str(file), rows=tuple(_as_rows(header, table[1:], str(file))))


def _missing_columns(header: Sequence[str]) -> str:
    """What is missing, as words; "" if nothing is."""
    lacking = [] if "path" in header else ["path"]
    lacking += [] if CORRECTED in header or "label" in header else [f"{CORRECTED} (nor label)"]
    return ", and no column ".join(lacking)


def _as_rows(header: Sequence[str], table: Sequence[tuple[int, list[str]]], file: str) -> Iterator[Correction]:
    if long := [line for line, row in table if any(row[len(header) :])]:
        raise DataError(
            f"labels={file}: {_lines(long)} {'has' if len(long) == 1 else 'have'} more cells than the header's "
            f"{len(header)}. Quote cells that contain the delimiter."
        )
    if repeated := [
        name for name, count in Counter(header).items() if count > 1 and name in ("path", CORRECTED, "label")
    ]:
        raise DataError(f"labels={file} has more than one column {repeated[0]!r}. Remove all but one of them.")
    for line, row in table:
        cells = {**dict.fromkeys(header, ""), **dict(zip(header, row, strict=False))}
        filled = cells.get(CORRECTED, "")
        yield Correction(
            line=line,
            name=cells["path"],
            wanted=filled if filled.strip() else cells.get("label", ""),
            is_filled=bool(filled.strip()) or CORRECTED not in cells,
        )


def _read_rows(path: Path, file: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a CSV file."""
    encoded = path.read_bytes()
    if (kind := kind_of(encoded)) is not None:
        raise DataError(f"labels={file} is {kind.name}, not a CSV table. Save it as CSV UTF-8.")
    encoding = next((name for mark, name in MARKS if encoded.startswith(mark)), "utf-8")
    # File names that are no valid UTF-8 are written as their bytes and come back the same.
    text = encoded.decode(encoding, "surrogateescape")
    if "\0" in text:
        raise DataError(f"labels={file} is not a text file. Save the table as CSV UTF-8.")
    line = 1
    if text[:4].lower() == "sep=":  # a line of spreadsheets
        text, line = text.partition("\n")[2], 2
    shift = line - 1
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1 + shift
    except csv.Error as error:
        raise DataError(
            f"labels={file} cannot be read as a table: {error}, near line {line}. Every quotation mark that opens a "
            "cell must be closed; double those inside a cell."
        ) from None


# ---- Applied to a source ---------------------------------------------------------------------------------------------


def apply_corrections(
    corrections: Corrections, inventory: Inventory, rows: npt.NDArray[np.int64], splits: npt.NDArray[np.str_]
) -> Applied:
    """The labels of a source with corrections in place.

    Args:
        corrections: As they were read.
        inventory: The source.
        rows: (M,) its usable rows.
        splits: (M,) their splits, drawn with the source's own labels.

    Raises:
        DataError: They do not fit the source, or change nothing; all that is wrong is in the message.
    """
    split_of = dict(zip(rows.tolist(), splits.tolist(), strict=True))
    matched = _match(corrections, inventory)
    problems = [*matched.problems]
    labels, removed = inventory.labels.copy(), np.zeros(len(inventory.labels), dtype=bool)
    changes, tested = list[CorrectedLabel](), list[str]()
    for row, wanted in matched.wanted.items():
        if row not in split_of or wanted == inventory.labels[row]:
            continue
        if split_of[row] == KEPT_SPLIT:
            tested.append(inventory.names[row])
            continue
        if wanted is None:
            removed[row] = True
        else:
            labels[row] = wanted
        changes.append(_change(inventory, row, wanted, split_of[row]))
    if tested:
        problems.append(
            f"{counted(len(tested), 'row')} would change test images ({first_names(tested)}), which keep their "
            "labels: a test of labels that a model suggested would flatter it. Leave these rows out; if the images "
            "were for training in the review, use its seed= and shares again"
        )
    problems += _emptied(inventory, rows, splits, labels, removed)
    if not changes and not problems:
        problems.append(
            "no row says anything but the class that the image has. Write the right class, or "
            f"{removal_word(inventory.classes)}, into the column {CORRECTED} and save the file; or leave labels= out"
        )
    if problems:
        raise DataError(list_problems(f"The corrections in labels={corrections.file} cannot be used:", problems))
    return Applied(labels=labels, removed=removed, changes=tuple(changes), finding=_finding(corrections.file, changes))


def _change(inventory: Inventory, row: int, wanted: int | None, split: str) -> CorrectedLabel:
    return CorrectedLabel(
        item=inventory.names[row],
        split=split,
        label=inventory.classes[inventory.labels[row]],
        corrected=removal_word(inventory.classes) if wanted is None else inventory.classes[wanted],
    )


def _finding(file: str, changes: Sequence[CorrectedLabel]) -> Finding:
    gone = sum(one.corrected in REMOVED for one in changes)
    parts = [counted(len(changes) - gone, "label") + " changed"] if len(changes) > gone else []
    parts += [counted(gone, "image") + " removed"] if gone else []
    items = tuple(f"{one.item}: {one.label} -> {one.corrected}" for one in changes)
    return Finding(kind="labels_corrected", severity="info", message=f"labels={file}: {', '.join(parts)}.", items=items)


def _emptied(
    inventory: Inventory,
    rows: npt.NDArray[np.int64],
    splits: npt.NDArray[np.str_],
    labels: npt.NDArray[np.int64],
    removed: npt.NDArray[np.bool_],
) -> list[str]:
    """A problem for each class that loses its last training image."""
    train = rows[splits == "train"]
    before = np.bincount(inventory.labels[train], minlength=len(inventory.classes))
    after = np.bincount(labels[train[~removed[train]]], minlength=len(inventory.classes))
    return [
        f"no training image of class {inventory.classes[label]!r} would be left. Keep one, or remove the class from "
        "the data"
        for label in np.flatnonzero((before > 0) & (after == 0))
    ]


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """Row of the inventory -> the class wanted, None to remove it; and what did not fit."""

    wanted: dict[int, int | None]
    problems: list[str]


def _match(corrections: Corrections, inventory: Inventory) -> _Matched:
    find = _finder(inventory)
    classes: dict[str, int | str | None] = {}
    wanted: dict[int, int | None] = {}
    said: dict[int, int] = {}
    unknown, silent, torn = list[Correction](), list[Correction](), list[str]()
    unnamed: dict[str, list[int]] = {}
    for row in sorted(corrections.rows, key=lambda row: not row.is_filled):
        places = find(row.name)
        if not places:
            (unknown if row.is_filled else silent).append(row)
        if not row.wanted.strip():
            continue
        if row.wanted not in classes:
            classes[row.wanted] = _class_of(row.wanted, inventory.classes)
        label = classes[row.wanted]
        if isinstance(label, str):
            unnamed.setdefault(label, []).append(row.line)
            continue
        if not row.is_filled and any(inventory.labels[place] == label for place in places):
            continue  # a row as it was written, of an image that may be listed twice, says nothing
        for place in places:
            if wanted.setdefault(place, label) != label and row.is_filled:
                torn.append(f"{inventory.names[place]!r} in lines {said[place]} and {row.line}")
            said.setdefault(place, row.line)
    if len(unknown) + len(silent) == len(corrections.rows):  # else an image that is gone, and unchanged, does no harm
        unknown = sorted([*unknown, *silent], key=lambda row: row.line)
    problems = [f"{_lines(lines)}: {message}" for message, lines in list(unnamed.items())[:SHOWN]]
    if len(unnamed) > SHOWN:
        problems.append(f"and {counted(len(unnamed) - SHOWN, 'more unknown class')}")
    if torn:
        problems.append(f"rows say different things of one image: {first_names(torn)}. Keep one row of each")
    if unknown:
        problems.append(_unknown_paths(unknown, inventory))
    return _Matched(wanted=wanted, problems=problems)


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:SHOWN])) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
    return f"line {shown}" if len(lines) == 1 else f"lines {shown}"


def _class_of(text: str, classes: Sequence[str]) -> int | str | None:
    """The number of the class that a text names; None for a word that removes the image; else what is wrong."""
    for name in (normal_name(text), normal_name(text.strip())):
        if name in classes:
            return classes.index(name)
    if text.strip().casefold() in REMOVED:
        return None
    # Spreadsheets write 007 as 7, and people write "Cat".
    alike = [number for number, known in enumerate(classes) if alike_names([known, name])]
    if len(alike) == 1:
        return alike[0]
    if _holds_bytes(name):
        return f"The class {text.strip()!r} cannot be read. {UTF8}"
    word = removal_word(classes)
    return unknown_name(
        "class", text.strip(), classes, remedy=f"Corrections name a class of the data; {word} removes an image"
    ).rstrip(".")


def _finder(inventory: Inventory) -> Callable[[str], list[int]]:
    """Name or absolute path of an image -> its rows: as written, else in another spelling of Unicode or of folders."""
    exact: dict[str, list[int]] = {}
    spelled: dict[str, list[int]] = {}
    files = inventory.reader.paths if isinstance(inventory.reader, FileReader) else ()
    for row, name in enumerate(inventory.names):
        exact.setdefault(name, []).append(row)
    for row, file in enumerate(files):
        place = os.path.abspath(str(file))
        if place != inventory.names[row]:
            exact.setdefault(place, []).append(row)
    for name, rows in exact.items():
        spelled.setdefault(_spelling(name), []).extend(rows)

    def find(name: str) -> list[int]:
        return exact.get(name) or exact.get(name.strip()) or spelled.get(_spelling(name)) or []

    return find


def _spelling(name: str) -> str:
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return plain.removeprefix("./")


def _holds_bytes(text: str) -> bool:
    """Whether there are bytes in it that were no UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def _unknown_paths(rows: Sequence[Correction], inventory: Inventory) -> str:
    names = [row.name for row in rows]
    example = f"Here images are called such as {inventory.names[0]!r}"
    if any(map(_holds_bytes, names)):
        example = UTF8
    shown = first_names([repr(name) for name in names])
    what = "no image of the data" if len(names) == 1 else "no images of the data"
    return f"{counted(len(rows), 'path')} {'is' if len(rows) == 1 else 'are'} {what}: {shown}. {example}"
