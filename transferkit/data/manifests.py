"""Manifests: tables with a path and a label per image, and optionally a split and a group."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import DataError, OptionError, list_problems, unknown_name
from transferkit.core.paths import expand
from transferkit.data.class_names import natural_key, normal_name, order_names
from transferkit.data.inventory import UNSPLIT, FileListing, split_name
from transferkit.data.tables import TABLE_EXTENSIONS, Table, read_table
from transferkit.data.target_values import read_cells
from transferkit.records import Finding

__all__ = ["COLUMNS", "MANIFEST_EXTENSIONS", "list_manifest"]

COLUMNS = ("path", "label", "split", "group")
MANIFEST_EXTENSIONS = TABLE_EXTENSIONS
_SHOWN = 5

_MISSING = frozenset({"nan", "<na>", "nat", "#n/a", "-nan"})
"""Texts that programs write for a missing value, besides ""."""

_LIKELY = {
    "path": ("path", "file", "image", "img", "name"),
    "label": ("label", "class", "category", "target", "species", "diagnosis", "y"),
    "split": ("split", "fold", "set", "subset", "partition"),
    "group": ("group", "patient", "subject", "id"),
}
"""Our column -> words found in other names for it, the likeliest first."""

_GROUP_WORDS = ("group", "patient", "subject", "participant", "person", "individual", "video", "specimen")

Columns = dict[str, list[str]]


def list_manifest(
    file: Path, *, root: Path | None, columns: Mapping[str, Any] | None, task: str = "single_label"
) -> FileListing:
    """The images of a manifest.

    Args:
        file: The table.
        root: Folder that relative paths are relative to; None: the manifest's folder.
        columns: Our column name -> the manifest's, if they differ; for "label" also a list of columns.
        task: "auto", "single_label", "multi_label" or "regression".

    Raises:
        DataError: Columns are missing, cells are empty or invalid, or none of the listed files exists.
        MissingDependencyError: It is a Parquet file and pyarrow is not installed.
    """
    if not file.is_file():
        raise DataError(f"There is no manifest {str(file)!r}.")
    table = read_table(file)
    base = file.parent if root is None else root
    renamed = dict(columns or {})
    several = _label_columns(renamed, task)
    chosen = _chosen_columns(table, renamed, file, base, several=several)
    _check_cells(chosen, table.lines, file)
    if several:
        return _list_targets(chosen, several, table, file=file, base=base, task=task)
    paths = [_located(base, name) for name in chosen["path"]]
    _check_some_exist(paths, chosen["path"], base, file)
    labels = [normal_name(label) for label in chosen["label"]]
    splits = [split_name(cell) or UNSPLIT for cell in chosen["split"]] if "split" in chosen else [UNSPLIT] * len(paths)
    groups = chosen.get("group")
    return FileListing(
        kind="manifest",
        origin=f"manifest {file}",
        files=paths,
        names=chosen["path"],
        class_names=labels,
        classes=order_names(labels),
        splits=splits,
        groups=groups,
        findings=[
            *(_straddling(splits, groups) if groups and "split" in chosen else []),
            *_unused_columns(table, chosen, renamed),
        ],
    )


def _label_columns(columns: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """The columns of labels or numbers; () for one class per image."""
    named = columns.get("label", "label")
    if isinstance(named, (str, int)):
        return (str(named),) if task in ("multi_label", "regression") else ()
    names = tuple(map(str, named)) if isinstance(named, (list, tuple)) else ()
    if not names or len(set(names)) < len(names):
        raise OptionError(f"columns label= must be a name, or a list of different names, got {named!r}.")
    if task == "single_label":
        raise OptionError(
            f"task=single_label takes one column of labels, got {len(names)}. Leave task out: columns of 0 and 1 are "
            "labels, others numbers to predict."
        )
    return names


def _list_targets(
    chosen: Columns, several: tuple[str, ...], table: Table, *, file: Path, base: Path, task: str
) -> FileListing:
    """The images of a manifest with several labels, or numbers, each."""
    paths = [_located(base, name) for name in chosen["path"]]
    _check_some_exist(paths, chosen["path"], base, file)
    columns = {name: chosen[f"label {name}"] for name in several}
    found = read_cells(columns, task, lines=table.lines, names=chosen["path"], file=str(file))
    splits = [split_name(cell) or UNSPLIT for cell in chosen["split"]] if "split" in chosen else [UNSPLIT] * len(paths)
    groups = chosen.get("group")
    return FileListing(
        kind="manifest",
        origin=f"manifest {file}",
        files=paths,
        names=chosen["path"],
        class_names=[""] * len(paths),
        classes=found.targets.names,
        splits=splits,
        groups=groups,
        findings=[*found.findings, *(_straddling(splits, groups) if groups and "split" in chosen else [])],
        targets=found.targets,
        strata=found.strata,
    )


def _chosen_columns(
    table: Table, renamed: Mapping[str, Any], file: Path, base: Path, *, several: Sequence[str] = ()
) -> Columns:
    """Our name -> cells; several columns of labels or numbers are "label NAME" each."""
    for ours in renamed:
        if ours not in COLUMNS:
            raise OptionError(unknown_name("manifest column", ours, COLUMNS))
    chosen: Columns = {}
    for ours in COLUMNS:
        for name in several if ours == "label" and several else [str(renamed.get(ours, ours))]:
            cells = _cells_of(ours, name, table, file, base, is_needed=ours in ("path", "label") or ours in renamed)
            if cells is not None:
                chosen[f"label {name}" if ours == "label" and several else ours] = cells
    return chosen


def _cells_of(ours: str, wanted: str, table: Table, file: Path, base: Path, *, is_needed: bool) -> list[str] | None:
    """The cells of a column; None if there is no such column, and none is needed."""
    theirs = _their_name(ours, wanted, table, file)
    if theirs in table.repeated:
        raise DataError(
            f"Manifest {str(file)!r} has more than one column {theirs!r}. Rename all but one of them, or name "
            f"another with columns={{{ours!r}: 'NAME'}} (command line: data.columns.{ours}=NAME)."
        )
    if theirs in table.nested:
        raise DataError(
            f"Manifest {str(file)!r}: column {theirs!r} contains lists or records; expected one text or number per row."
        )
    if theirs in table.columns:
        return table.columns[theirs]
    if is_needed:
        raise DataError(_no_column(ours, theirs, table, file, base))
    return None


def _their_name(ours: str, wanted: str, table: Table, file: Path) -> str:
    """The manifest's name of one of our columns, ignoring case if that is unambiguous."""
    if wanted in table.columns:
        return wanted
    alike = [name for name in table.columns if name.lower() == wanted.lower()]
    if len(alike) > 1:
        raise DataError(
            f"Manifest {str(file)!r} has the columns {', '.join(map(repr, alike))}. Choose one: "
            f"columns={{{ours!r}: {alike[0]!r}}} (command line: {_on_command_line(ours, alike[0])})."
        )
    return alike[0] if alike else wanted


def _no_column(ours: str, theirs: str, table: Table, file: Path, base: Path) -> str:
    message = f"Manifest {str(file)!r} has no column {theirs!r}; it has {', '.join(table.columns)}. "
    if any(_located(base, name).is_file() for name in table.columns):
        return f"{message}The first line is already an image: add a header line, such as path,label."
    if (line := _later_header(table)) is not None:
        return f"{message}The column names are in line {line}: remove the lines above it, or start each of them with #."
    if ours == "label" and (flags := _flags(table)):
        listed = f"[{','.join(flags)}]"
        return (
            f"{message}The columns {', '.join(flags)} look like one class each, with 1 for yes. For several labels per "
            f"image name them: columns={{'label': {flags!r}}} (command line: {_on_command_line(ours, listed)}). For "
            f"one class each merge them into one column label; with pandas: table['label'] = "
            f"table[{flags!r}].idxmax(axis=1)."
        )
    likely = _likely_column(ours, table)
    if likely is None:
        return f"{message}Add a column {ours!r}: expected {_EXPECTED[ours]}."
    return (
        f"{message}Rename it, or name the column to use: columns={{{ours!r}: {likely!r}}} "
        f"(command line: {_on_command_line(ours, likely)})."
    )


_EXPECTED = {
    "path": "the file of an image in every row",
    "label": "the class of the image in every row",
    "split": "train, val or test in every row",
    "group": "what the image belongs to (a patient, a video) in every row",
}


def _on_command_line(ours: str, theirs: str) -> str:
    return shlex.quote(f"data.columns.{ours}={theirs}")


def _later_header(table: Table) -> int | None:
    """Line number of a row that contains the column names."""
    for line, *row in zip(table.lines[:_SHOWN], *table.columns.values(), strict=False):
        if {"path", "label"} <= {str(cell).lower() for cell in row}:
            return line
    return None


def _flags(table: Table) -> list[str]:
    """Columns that contain only 0 and 1, if there are several."""
    flags = [name for name, cells in table.columns.items() if set(cells) == {"0", "1"}]
    return flags if len(flags) > 1 else []


def _likely_column(ours: str, table: Table) -> str | None:
    names = [name for name in table.columns if name.lower() not in COLUMNS or name.lower() == ours]
    for word in _LIKELY[ours]:
        for name in names:
            if word in name.lower():
                return name
    if ours in ("path", "label") and names:
        return names[0] if ours == "path" else names[-1]
    return None


def _unused_columns(table: Table, chosen: Columns, renamed: Mapping[str, str]) -> list[Finding]:
    """The warning for columns that look like splits or groups but have another name."""
    used = {id(cells) for cells in chosen.values()}
    findings = []
    for name, cells in table.columns.items():
        ours = _likely_meaning(name, cells)
        if ours is None or ours in chosen or ours in renamed or id(cells) in used:
            continue
        message = (
            f"The column {name!r} looks like a {ours} but is not used. If it is one, name it: "
            f"columns={{{ours!r}: {name!r}}} (command line: {_on_command_line(ours, name)})."
        )
        findings.append(Finding(kind="column_not_read", severity="warning", message=message, items=(name,)))
    return findings


def _likely_meaning(name: str, cells: list[str]) -> str | None:
    words = {split_name(cell) for cell in set(cells)}
    if len(words) > 1 and None not in words:
        return "split"
    grouped = 1 < len(set(cells)) < len(cells)
    return "group" if grouped and any(word in name.lower() for word in _GROUP_WORDS) else None


def _check_cells(chosen: Columns, lines: list[int], file: Path) -> None:
    problems = []
    for column in ("path", "label", "group"):
        cells = chosen.get(column, [])
        missing = [str(line) for line, cell in zip(lines, cells, strict=False) if not cell or cell.lower() in _MISSING]
        if missing:
            rows = "1 row" if len(missing) == 1 else f"{len(missing)} rows"
            where = f"{rows} (first: {', '.join(missing[:_SHOWN])})"
            problems.append(f"column {column!r} is empty in {where}: fill it in, or remove these rows")
    unknown = sorted({cell for cell in chosen.get("split", ()) if split_name(cell) is None}, key=natural_key)
    if unknown:
        shown = ", ".join(repr(cell) for cell in unknown[:_SHOWN])
        problems.append(f"column 'split' contains {shown}; expected train, val or test in every row")
    if not unknown and "split" in chosen and "train" not in {split_name(cell) for cell in chosen["split"]}:
        problems.append("column 'split' has no row with train")
    if problems:
        raise DataError(list_problems(f"Manifest {str(file)!r} cannot be used:", problems))


def _located(base: Path, name: str) -> Path:
    """Path of a row's file: as written, or with Windows separators or the other Unicode form if that exists."""
    path = base / (expand(name) if name.startswith("~") else name)
    if (name.isascii() and "\\" not in name) or path.exists():
        return path
    return next((base / other for other in _other_spellings(name) if (base / other).exists()), path)


def _other_spellings(name: str) -> Iterator[str]:
    for spelling in (name, name.replace("\\", "/")):
        yield spelling
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, spelling)


def _check_some_exist(paths: list[Path], names: list[str], base: Path, file: Path) -> None:
    if any(path.exists() for path in paths):
        return
    raise DataError(
        f"None of the {len(paths)} files listed in manifest {str(file)!r} exists; the first was expected at "
        f"{str(paths[0])!r}. {_find_near(paths[0], names[0], base)}"
    )


def _find_near(path: Path, name: str, base: Path) -> str:
    """Where the first file of a manifest probably is, and what to change."""
    if re.match(r"[a-z]+://", name):
        local = name.startswith("file://")
        return "Write plain paths, without 'file://'." if local else "Download the images, and list their paths."
    tails = _tails(name)
    for root in (base, base.parent, Path.cwd(), *_folders_in(base)):
        for tail in tails:
            if not (root / tail).is_file():
                continue
            if tail == tails[0] and not Path(name).is_absolute():
                return f"It is in {str(root)!r}: pass {_root_option(root)}."
            start = name[: -len(tail)]
            return f"Found {str(root / tail)!r}: remove {start!r} from the start of the paths{_and_root(root, base)}."
    if path.parent.is_dir():
        same = sorted(found.name for found in path.parent.iterdir() if path.name.casefold() in _alike(found))
        if same:
            return f"That folder contains {same[0]!r}: write the exact file names, with their extension."
    return (
        f"Relative paths are relative to {str(base)!r}: pass root=DIR if that is wrong (command line: data.root=DIR)."
    )


def _tails(name: str) -> list[str]:
    """The path, and the path without its first one, two, ... folders."""
    parts = [part for part in re.split(r"[/\\]", name) if part]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _folders_in(base: Path) -> list[Path]:
    return sorted(folder for folder in base.iterdir() if folder.is_dir()) if base.is_dir() else []


def _and_root(root: Path, base: Path) -> str:
    return "" if root == base else f", and pass {_root_option(root)}"


def _root_option(root: Path) -> str:
    return f"root={str(root)!r} (command line: {shlex.quote(f'data.root={root}')})"


def _alike(found: Path) -> tuple[str, str]:
    return found.name.casefold(), found.stem.casefold()


def _straddling(splits: list[str], groups: list[str]) -> list[Finding]:
    """The warning for groups that the manifest's splits separate; given splits are never changed."""
    splits_of: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        splits_of.setdefault(group, set()).add(split)
    torn = tuple(sorted((group for group, found in splits_of.items() if len(found) > 1), key=natural_key))
    if not torn:
        return []
    message = (
        f"{len(torn)} of {len(splits_of)} groups have images in more than one split (first: "
        f"{', '.join(torn[:_SHOWN])}); held-out accuracy may be too high. The manifest's splits are kept."
    )
    return [Finding(kind="group_across_splits", severity="warning", message=message, items=torn)]
