"""Manifests: a CSV, TSV or Parquet table with a path and a label per image, and maybe a split and a group."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from transferkit.data.inventory import UNSPLIT, Inventory, split_name, take_files
from transferkit.errors import DataError, MissingDependencyError, OptionError, list_problems, unknown_name
from transferkit.types import Finding

__all__ = ["COLUMNS", "MANIFEST_EXTENSIONS", "take_manifest"]

COLUMNS = ("path", "label", "split", "group")
MANIFEST_EXTENSIONS = (".csv", ".tsv", ".parquet", ".pq")
_SHOWN = 5

Table = dict[str, list[str]]


def take_manifest(
    file: Path,
    *,
    root: Path | None,
    columns: Mapping[str, str] | None,
    max_pixels: int,
    progress: bool,
    cache: Path | None = None,
) -> Inventory:
    """The inventory of a manifest.

    Args:
        file: The table.
        root: Folder that relative paths start from; None: the manifest's own.
        columns: Our column name -> the manifest's, where they differ.
        max_pixels: As in `decode`.
        progress: Whether to show a bar.
        cache: As in `take_files`.

    Raises:
        DataError: Columns are missing, cells are empty or unknown, or no file is where the manifest says.
        MissingDependencyError: It is a Parquet file and pyarrow is not installed.
    """
    table = _chosen_columns(_read(file), dict(columns or {}), file)
    base = file.parent if root is None else root
    paths = [base / name for name in table["path"]]
    _check_cells(table, file)
    _check_some_exist(paths, base, file)
    splits = [split_name(cell) or UNSPLIT for cell in table["split"]] if "split" in table else [UNSPLIT] * len(paths)
    groups = table.get("group")
    return take_files(
        origin=f"manifest {file}",
        paths=paths,
        names=table["path"],
        class_names=table["label"],
        classes=sorted(set(table["label"])),
        splits=splits,
        groups=groups,
        findings=_straddling(splits, groups) if groups and "split" in table else [],
        max_pixels=max_pixels,
        progress=progress,
        cache=cache,
    )


def _read(file: Path) -> Table:
    if not file.is_file():
        raise DataError(f"There is no manifest {str(file)!r}.")
    return _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_text(file)


def _read_text(file: Path) -> Table:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"Manifest {str(file)!r} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    lines = text.splitlines()
    rows = [row for row in csv.reader(lines, delimiter=_delimiter(file, lines)) if row]
    if len(rows) < 2:
        raise DataError(f"Manifest {str(file)!r} has no rows. Expected a header line, then one line per image.")
    header = [cell.strip() for cell in rows[0]]
    ragged = [str(number) for number, row in enumerate(rows[1:], start=2) if len(row) != len(header)]
    if ragged:
        raise DataError(
            f"Manifest {str(file)!r}: rows {', '.join(ragged[:_SHOWN])} do not have the header's {len(header)} cells. "
            "Quote cells that contain the delimiter."
        )
    return {name: [row[index].strip() for row in rows[1:]] for index, name in enumerate(header)}


def _delimiter(file: Path, lines: list[str]) -> str:
    if file.suffix.lower() == ".tsv":
        return "\t"
    header = lines[0] if lines else ""
    return max(",;\t", key=header.count)  # the first of the three where none occurs


def _read_parquet(file: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            "Reading a Parquet manifest needs pyarrow: pip install 'transferkit[parquet]'."
        ) from None
    table = parquet.read_table(file).to_pydict()
    return {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in table.items()}


def _chosen_columns(table: Table, renamed: dict[str, str], file: Path) -> Table:
    for ours in renamed:
        if ours not in COLUMNS:
            raise OptionError(unknown_name("manifest column", ours, COLUMNS))
    present = {name.lower(): name for name in table}
    chosen: Table = {}
    for ours in COLUMNS:
        theirs = renamed.get(ours, present.get(ours, ours))
        if theirs in table:
            chosen[ours] = table[theirs]
        elif ours in ("path", "label") or ours in renamed:
            raise DataError(
                f"Manifest {str(file)!r} has no column {theirs!r}; it has {', '.join(table)}. "
                f"Rename it, or say which column it is: columns={{{ours!r}: ...}}."
            )
    return chosen


def _check_cells(table: Table, file: Path) -> None:
    problems = []
    if not table["path"]:
        problems.append("there are no rows")
    for column in ("path", "label", "group"):
        empty = [str(row) for row, cell in enumerate(table.get(column, ()), start=2) if not cell]
        if empty:
            problems.append(f"column {column!r} is empty in {len(empty)} rows (first: {', '.join(empty[:_SHOWN])})")
    unknown = sorted({cell for cell in table.get("split", ()) if split_name(cell) is None})
    if unknown:
        shown = ", ".join(repr(cell) for cell in unknown[:_SHOWN])
        problems.append(f"column 'split' holds {shown}; expected train, val or test in every row")
    if not unknown and "split" in table and "train" not in {split_name(cell) for cell in table["split"]}:
        problems.append("column 'split' names no training image")
    if problems:
        raise DataError(list_problems(f"Manifest {str(file)!r} cannot be used:", problems))


def _check_some_exist(paths: list[Path], base: Path, file: Path) -> None:
    if not any(path.exists() for path in paths):
        raise DataError(
            f"None of the {len(paths)} files that manifest {str(file)!r} lists exists; the first was looked for at "
            f"{str(paths[0])!r}. Relative paths start from {str(base)!r}: pass root= if that is wrong."
        )


def _straddling(splits: list[str], groups: list[str]) -> list[Finding]:
    """The warning for groups that the manifest's own splits tear apart; official splits are never changed."""
    homes: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        homes.setdefault(group, set()).add(split)
    torn = tuple(sorted(group for group, found in homes.items() if len(found) > 1))
    if not torn:
        return []
    message = (
        f"{len(torn)} of {len(homes)} groups have images in more than one split (first: {', '.join(torn[:_SHOWN])}); "
        "held-out accuracy may be too high. The manifest's splits are kept as they are."
    )
    return [Finding(kind="group_across_splits", severity="warning", message=message, items=torn)]
