"""Reading tables of text cells from CSV, TSV or Parquet files, tolerant of common variations."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.core.errors import DataError, MissingDependencyError
from transferkit.core.file_kinds import kind_of

__all__ = ["CONVERT_JSON", "TABLE_EXTENSIONS", "Table", "read_table"]

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".pq")
CONVERT_JSON = (
    "Convert it to CSV, with a header line such as path,label; with pandas: "
    "pandas.read_json(FILE).to_csv('manifest.csv', index=False), and lines=True where each line is a record."
)
_DELIMITERS = ",;\t|"  # the first is the default if none occurs
_QUOTES = {"'": "'", "`": "`", "\u2018": "\u2019", "\u201c": "\u201d", "\u201e": "\u201c", "\u00ab": "\u00bb"}
"""Quotation marks that some programs put around every cell instead of the standard one."""
_SAMPLE = 2**16
_SHOWN = 5

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, which begins with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of text.

    Args:
        columns: Name -> its cells, stripped; "" for a missing value. If a name is repeated, its first column.
        lines: Line in the file of each row, for messages.
        repeated: Names that occur more than once.
        nested: Names of columns that contain lists or records; their cells are "".
    """

    columns: dict[str, list[str]]
    lines: list[int]
    repeated: frozenset[str] = frozenset()
    nested: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.lines)


def read_table(file: Path) -> Table:
    """The table in an existing file.

    Text may be UTF-8 or UTF-16, delimited by commas, semicolons, tabs or |; empty lines, and lines starting with #
    above the header, are skipped.

    Raises:
        DataError: It cannot be read as a table, or has no rows.
        MissingDependencyError: It is a Parquet file and pyarrow is not installed.
    """
    table = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_text(file)
    if not len(table):
        raise DataError(f"Manifest {str(file)!r} has no rows. Expected a header line, then one line per image.")
    return table


def _read_text(file: Path) -> Table:
    text = _decode(file)
    delimiter = _delimiter(file, text[:_SAMPLE].splitlines())
    header, rows = _header(_rows(file, text, delimiter))
    rows = [(line, _trimmed(row, len(header))) for line, row in rows]
    _check_rows(file, header, rows, delimiter)
    header = [name[1:-1].strip() if _is_quoted(name) else name for name in header]
    places = {name: header.index(name) for name in header}
    columns = {name: _unquoted([row[place] for _, row in rows]) for name, place in places.items()}
    return Table(columns=columns, lines=[line for line, _ in rows], repeated=_repeated(header))


def _rows(file: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The non-empty rows. A quotation mark inside a cell may be doubled or escaped with a backslash."""
    for escaped in (False, True):
        given = text.replace('\\"', '""') if escaped else text
        strict = not escaped and '\\"' in text
        reader = csv.reader(io.StringIO(given, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)
        try:
            return [(line, row) for line, row in _numbered(reader) if any(row)]
        except csv.Error as error:
            if not strict:
                raise DataError(
                    f"Manifest {str(file)!r} cannot be read as a table: {error}, near line {reader.line_num}. Every "
                    "quotation mark that opens a cell must be closed; double those inside a cell."
                ) from None
    raise AssertionError("the second reading returns or raises")


def _trimmed(row: list[str], width: int) -> list[str]:
    """A row without empty cells beyond the header's width: spreadsheets write trailing delimiters."""
    return row if any(row[width:]) else row[:width]


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and _QUOTES.get(cell[0]) == cell[-1]


def _unquoted(cells: list[str]) -> list[str]:
    """A column without non-standard quotation marks, if they enclose all of its cells."""
    filled = [cell for cell in cells if cell]
    if not filled or not all(map(_is_quoted, filled)):
        return cells
    return [cell[1:-1].strip() for cell in cells]


def _repeated(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name for name, count in Counter(names).items() if count > 1)


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The line number at which each row starts, and its cells."""
    line = 1
    for row in reader:
        yield line, [cell.strip() for cell in row]
        line = reader.line_num + 1


def _header(rows: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names and the rows below; the header may itself be the last comment line."""
    start = next((index for index, (_, row) in enumerate(rows) if not _is_comment(row)), len(rows))
    header = rows[start][1] if start < len(rows) else []
    if start and "path" not in [name.lower() for name in header]:
        comment = [rows[start - 1][1][0].lstrip("#").strip(), *rows[start - 1][1][1:]]
        if "path" in [name.lower() for name in comment]:
            return comment, rows[start:]
    return header, [(line, row) for line, row in rows[start + 1 :] if not (len(row) < len(header) and _is_comment(row))]


def _is_comment(row: Sequence[str]) -> bool:
    # A spreadsheet's "sep=" line declares the delimiter and is skipped like a comment.
    return row[0].startswith("#") or row[0].lower().startswith("sep=")


def _check_rows(file: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]], delimiter: str) -> None:
    ragged = [str(line) for line, row in rows if len(row) != len(header)]
    if ragged:
        raise DataError(
            f"Manifest {str(file)!r}: rows {', '.join(ragged[:_SHOWN])} do not have the header's {len(header)} cells. "
            "Quote cells that contain the delimiter."
        )
    for line, row in rows:
        if any("\n" in cell and delimiter in cell for cell in row):
            raise DataError(
                f"Manifest {str(file)!r}: a quotation mark in line {line} opens a cell that continues on other lines. "
                "Close it, or double quotation marks inside a cell."
            )


def _decode(file: Path) -> str:
    encoded = file.read_bytes()
    if (kind := kind_of(encoded)) is not None:
        raise DataError(f"Manifest {str(file)!r} is {kind.name}, not a text table. {kind.remedy}.")
    encoding = next((name for mark, name in _MARKS if encoded.startswith(mark)), None) or _guess(encoded)
    try:
        text = encoded.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"Manifest {str(file)!r} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    if "\0" in text:
        raise DataError(f"Manifest {str(file)!r} is not a text file. Expected a CSV or TSV table, saved as UTF-8.")
    if text.lstrip().startswith(("{", "[{")):
        raise DataError(f"Manifest {str(file)!r} contains JSON. {CONVERT_JSON}")
    return text


def _guess(encoded: bytes) -> str:
    """UTF-8, or UTF-16 without a byte order mark: there every other byte of ASCII letters is zero."""
    first = encoded[:64]
    if first and first[1::2].count(0) > len(first) // 3:
        return "utf-16-le"
    return "utf-16-be" if first and first[::2].count(0) > len(first) // 3 else "utf-8"


def _delimiter(file: Path, lines: Sequence[str]) -> str:
    header = next((line for line in lines if line.strip() and not _is_comment([line.lstrip()])), "")
    if not header and lines:  # the header is a comment line, and there is nothing else
        header = lines[-1]
    if file.suffix.lower() == ".tsv" and "\t" in header:
        return "\t"
    outside = "".join(header.split('"')[::2])
    if not any(delimiter in outside for delimiter in _DELIMITERS) and {"path", "label"} <= set(outside.lower().split()):
        return " "
    return max(_DELIMITERS, key=outside.count)


def _read_parquet(file: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            "Reading a Parquet manifest needs pyarrow: pip install 'transferkit[parquet]'."
        ) from None
    try:
        found = parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(
            f"Manifest {str(file)!r} cannot be read as a Parquet file: {reason}. Write the file again, or save the "
            "table as CSV with the extension .csv."
        ) from None
    names = found.column_names
    nested = frozenset(field.name for field in found.schema if pyarrow.types.is_nested(field.type))
    columns = {
        name: [""] * found.num_rows
        if name in nested
        else [_cell(value) for value in found.column(names.index(name)).to_pylist()]
        for name in names
    }
    lines = list(range(1, found.num_rows + 1))
    return Table(columns=columns, lines=lines, repeated=_repeated(names), nested=nested)


def _cell(value: Any) -> str:
    """A value as text: "" for a missing one, "1" for 1.0, since an integer column with gaps is stored as floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
