"""Manifests: a table with a path and a label per image, and maybe a split and a group."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from transferkit.data.class_names import natural_key, normal_name, order_names
from transferkit.data.inventory import UNSPLIT, Inventory, split_name, take_files
from transferkit.data.tables import TABLE_EXTENSIONS, Table, read_table
from transferkit.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.types import Finding

__all__ = ["COLUMNS", "MANIFEST_EXTENSIONS", "take_manifest"]

COLUMNS = ("path", "label", "split", "group")
MANIFEST_EXTENSIONS = TABLE_EXTENSIONS
_SHOWN = 5

_MISSING = frozenset({"nan", "<na>", "nat", "#n/a", "-nan"})
"""What programs write for a missing value, and nobody calls a class; "" is one as well."""

_LIKELY = {
    "path": ("path", "file", "image", "img", "name"),
    "label": ("label", "class", "category", "target", "species", "diagnosis", "y"),
    "split": ("split", "fold", "set", "subset", "partition"),
    "group": ("group", "patient", "subject", "id"),
}
"""Our column -> words in the names that others give it, the likeliest first."""

Columns = dict[str, list[str]]


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
    if not file.is_file():
        raise DataError(f"There is no manifest {str(file)!r}.")
    table = read_table(file)
    base = file.parent if root is None else root
    chosen = _chosen_columns(table, dict(columns or {}), file, base)
    _check_cells(chosen, table.lines, file)
    paths = [_located(base, name) for name in chosen["path"]]
    _check_some_exist(paths, base, file)
    labels = [normal_name(label) for label in chosen["label"]]
    splits = [split_name(cell) or UNSPLIT for cell in chosen["split"]] if "split" in chosen else [UNSPLIT] * len(paths)
    groups = chosen.get("group")
    return take_files(
        kind="manifest",
        origin=f"manifest {file}",
        paths=paths,
        names=chosen["path"],
        class_names=labels,
        classes=order_names(labels),
        splits=splits,
        groups=groups,
        findings=_straddling(splits, groups) if groups and "split" in chosen else [],
        max_pixels=max_pixels,
        progress=progress,
        cache=cache,
    )


def _chosen_columns(table: Table, renamed: dict[str, str], file: Path, base: Path) -> Columns:
    for ours in renamed:
        if ours not in COLUMNS:
            raise OptionError(unknown_name("manifest column", ours, COLUMNS))
    chosen: Columns = {}
    for ours in COLUMNS:
        theirs = _their_name(ours, renamed, table, file)
        if theirs in table.repeated:
            raise DataError(
                f"Manifest {str(file)!r} has more than one column {theirs!r}. Rename all of them but one, or name "
                f"another with columns={{{ours!r}: 'NAME'}} (command line: data.columns.{ours}=NAME)."
            )
        if theirs in table.nested:
            raise DataError(
                f"Manifest {str(file)!r}: column {theirs!r} holds lists or records; expected one text or number a row."
            )
        if theirs in table.columns:
            chosen[ours] = table.columns[theirs]
        elif ours in ("path", "label") or ours in renamed:
            raise DataError(_no_column(ours, theirs, table, file, base))
    return chosen


def _their_name(ours: str, renamed: Mapping[str, str], table: Table, file: Path) -> str:
    """What the manifest calls one of our columns; its case does not matter where that is clear."""
    wanted = str(renamed.get(ours, ours))
    if wanted in table.columns:
        return wanted
    alike = [name for name in table.columns if name.lower() == wanted.lower()]
    if len(alike) > 1:
        raise DataError(
            f"Manifest {str(file)!r} has the columns {', '.join(map(repr, alike))}. Say which one it is: "
            f"columns={{{ours!r}: {alike[0]!r}}} (command line: data.columns.{ours}={alike[0]})."
        )
    return alike[0] if alike else wanted


def _no_column(ours: str, theirs: str, table: Table, file: Path, base: Path) -> str:
    message = f"Manifest {str(file)!r} has no column {theirs!r}; it has {', '.join(table.columns)}. "
    if any(_located(base, name).is_file() for name in table.columns):
        return f"{message}The first line is an image already: begin the file with a line of names, such as path,label."
    likely = _likely_column(ours, table)
    return (
        f"{message}Rename it, or say which column it is: columns={{{ours!r}: {likely!r}}} "
        f"(command line: data.columns.{ours}={likely})."
    )


def _likely_column(ours: str, table: Table) -> str:
    names = list(table.columns)
    for word in _LIKELY[ours]:
        for name in names:
            if word in name.lower():
                return name
    return names[0] if ours == "path" else names[-1]


def _check_cells(chosen: Columns, lines: list[int], file: Path) -> None:
    problems = []
    for column in ("path", "label", "group"):
        cells = chosen.get(column, [])
        missing = [str(line) for line, cell in zip(lines, cells, strict=False) if not cell or cell.lower() in _MISSING]
        if missing:
            where = f"{len(missing)} rows (first: {', '.join(missing[:_SHOWN])})"
            problems.append(f"column {column!r} is empty in {where}: fill it in, or leave these rows out")
    unknown = sorted({cell for cell in chosen.get("split", ()) if split_name(cell) is None}, key=natural_key)
    if unknown:
        shown = ", ".join(repr(cell) for cell in unknown[:_SHOWN])
        problems.append(f"column 'split' holds {shown}; expected train, val or test in every row")
    if not unknown and "split" in chosen and "train" not in {split_name(cell) for cell in chosen["split"]}:
        problems.append("column 'split' names no training image")
    if problems:
        raise DataError(list_problems(f"Manifest {str(file)!r} cannot be used:", problems))


def _located(base: Path, name: str) -> Path:
    """Where a row's file is: as written, or with Windows' separators or the other form of Unicode, if it is there."""
    path = base / name
    if (name.isascii() and "\\" not in name) or path.exists():
        return path
    return next((base / other for other in _other_spellings(name) if (base / other).exists()), path)


def _other_spellings(name: str) -> Iterator[str]:
    for spelling in (name, name.replace("\\", "/")):
        yield spelling
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, spelling)


def _check_some_exist(paths: list[Path], base: Path, file: Path) -> None:
    if any(path.exists() for path in paths):
        return
    raise DataError(
        f"None of the {len(paths)} files that manifest {str(file)!r} lists exists; the first was looked for at "
        f"{str(paths[0])!r}. Relative paths start from {str(base)!r}: pass root=DIR if that is wrong "
        f"(command line: data.root=DIR)."
    )


def _straddling(splits: list[str], groups: list[str]) -> list[Finding]:
    """The warning for groups that the manifest's own splits tear apart; official splits are never changed."""
    homes: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        homes.setdefault(group, set()).add(split)
    torn = tuple(sorted((group for group, found in homes.items() if len(found) > 1), key=natural_key))
    if not torn:
        return []
    message = (
        f"{len(torn)} of {len(homes)} groups have images in more than one split (first: {', '.join(torn[:_SHOWN])}); "
        "held-out accuracy may be too high. The manifest's splits are kept as they are."
    )
    return [Finding(kind="group_across_splits", severity="warning", message=message, items=torn)]
