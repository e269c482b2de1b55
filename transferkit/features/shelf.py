"""One shelf of the bank: segments of rows with their index, written whole or not at all."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import CacheError
from transferkit.features.leases import STALE, Lease, age, is_abandoned, name_file
from transferkit.features.tables import DTYPES, FeatureTable, Ids, explaining_os_errors, pack_rows

__all__ = [
    "GRACE",
    "SEGMENT_BYTES",
    "SEGMENT_ROWS",
    "Shelf",
    "Writer",
    "folder_size",
    "sweep",
    "whole_segments",
]


SEGMENT_ROWS = 8192

SEGMENT_BYTES = 2**28
"""Rows, or bytes of them, after which a segment is committed: a killed run keeps those that it has computed so far."""

GRACE = 60
"""Seconds after which rows without ids cannot be those of a writer between its two renames."""


class _Index(NamedTuple):
    """Where every row of a shelf is, in the order of the ids; of equal ids the one written first comes first.

    Args:
        files: Segment files.
        ids: (N,) sorted.
        segments: (N,) int32 index into `files`.
        rows: (N,) int32 row inside the segment.
    """

    files: list[Path]
    ids: Ids
    segments: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]

    def find(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """(n,) position of each id in the index, and (n,) whether it is in there.

        Looked up in sorted order: random access to memory would take ten times as long.
        """
        order = np.argsort(ids, kind="stable")
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.searchsorted(self.ids, ids[order])
        found = place < len(self.ids)
        found[found] = self.ids[place[found]] == ids[found]
        return place, found


def whole_segments(folder: Path, row_bytes: int) -> list[Path]:
    """Rows files that have as many rows as ids; others are skipped."""
    whole = []
    for listing in sorted(folder.glob("*.ids")):
        rows = listing.with_suffix(".rows")
        with suppress(FileNotFoundError):  # cleared meanwhile
            if rows.stat().st_size * 32 == listing.stat().st_size * row_bytes:
                whole.append(rows)
    return whole


def _read_index(segments: Sequence[Path]) -> _Index:
    """The index of these segments. For a million rows: a second, and 118 MB, of which a third stays allocated."""
    files, parts = [], []
    for rows in segments:
        with suppress(FileNotFoundError):  # cleared meanwhile
            parts.append(np.fromfile(rows.with_suffix(".ids"), dtype="S32"))
            files.append(rows)
    lengths = [len(part) for part in parts]
    ids = np.concatenate(parts) if parts else np.empty(0, dtype="S32")
    order = np.argsort(ids, kind="stable")
    within = np.repeat(np.arange(len(files), dtype=np.int32), lengths)[order]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return _Index(files, ids[order], within, (order - starts[within]).astype(np.int32))


class Shelf:
    """The rows of one identity.

    Args:
        folder: Where its files are.
        blocks: Stage name -> its columns.
        dtype: How its rows are stored: one of `DTYPES`.
        lease: The run's, held by the bank that opened the shelf; tables hold it as well.
    """

    def __init__(
        self, folder: Path, blocks: Mapping[str, slice], dtype: str = "float32", *, lease: Lease | None = None
    ) -> None:
        self.folder = folder
        self.blocks = dict(blocks)
        self.dtype = dtype
        self.width = max(block.stop for block in blocks.values())
        self._lease = None if lease is None else weakref.ref(lease)
        self._seen: set[Path] = set()
        self._read: _Index | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on disk."""
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def last_change(self) -> float:
        """When a row was last written, in seconds since the epoch; 0 if none was."""
        changes = [0.0]
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # renamed meanwhile
                if path.suffix != ".lease":
                    changes.append(path.stat().st_mtime)
        return max(changes)

    def _index(self) -> _Index:
        """The index of the segments that are here now; read again only if they have changed."""
        segments = whole_segments(self.folder, self.row_bytes)
        self._seen.update(segments)
        if self._read is None or self._read.files != segments:
            self._read = _read_index(segments)
        return self._read

    def missing(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Positions in `ids` of images without a row; of equal ones only the first."""
        return self.missing_from_now()(ids)

    @property
    def images(self) -> int:
        """Number of rows that are there now."""
        with explaining_os_errors(self.folder):
            return len(self._index().ids)

    def missing_from_now(self) -> Callable[[Ids], npt.NDArray[np.int64]]:
        """`missing` for many calls: rows that are written later count as missing, and the listing is read once."""
        with explaining_os_errors(self.folder):
            index = self._index()

        def missing(ids: Ids) -> npt.NDArray[np.int64]:
            unique, first = np.unique(ids, return_index=True)
            return np.sort(first[~index.find(unique)[1]])

        return missing

    def table(self, ids: Ids) -> FeatureTable:
        """The rows of these images, in this order.

        Raises:
            CacheError: If some have no row: they were never written, or another process has cleared the bank.
        """
        with explaining_os_errors(self.folder):
            index = self._index()
            place, found = index.find(ids)
            if not found.all():
                raise self._lost(int((~found).sum()), len(ids))
            (self.folder / "meta.json").touch()
            rows, lease = index.rows[place], self._lease_for_table()
            return FeatureTable(index.files, index.segments[place], rows, self.blocks, self.dtype, lease=lease)

    def _lease_for_table(self) -> Lease:
        """The lease of the bank that opened the shelf, or a new one if that is gone."""
        lease = None if self._lease is None else self._lease()
        return Lease(self.folder) if lease is None or not lease.exists else lease

    def _lost(self, lost: int, of: int) -> CacheError:
        if all(path.exists() for path in self._seen):
            return CacheError(
                f"{lost} of {of} images are not in the feature bank at {self.folder}: nobody has computed them, and "
                "nothing was removed."
            )
        return CacheError(
            f"{lost} of {of} images are no longer in the feature bank at {self.folder}; was it cleared meanwhile? "
            "Run again."
        )

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Append rows; they are committed at the end, and after every `SEGMENT_ROWS` rows.

        After an exception the segment that is not committed is removed; those committed before stay.
        """
        sweep(self.folder)
        writer = Writer(self.folder, self.width, self.dtype, seen=self._seen)
        try:
            yield writer  # outside `explaining_os_errors`: an OSError raised in the block need not be the bank's
            writer.commit()
        finally:
            writer.discard()


class Writer:
    """Appends rows to a shelf.

    Args:
        folder: The shelf's.
        width: D, numbers per row.
        dtype: How rows are stored.
        seen: Committed segments are added to it.
    """

    def __init__(self, folder: Path, width: int, dtype: str, *, seen: set[Path]) -> None:
        self._folder = folder
        self._width = width
        self._dtype = dtype
        self._seen = seen
        self._partial: Path | None = None
        self._ids: list[Ids] = []
        self._bytes = 0

    def append(self, ids: Ids, rows: npt.NDArray[np.float32]) -> None:
        """Add (n,) ids and their (n, D) rows.

        Written with ordinary writes, never through a mapping: a full disk must raise, not kill the process.

        Raises:
            ValueError: If the number of rows is not that of the ids, or their width is not the shelf's.
            RowOverflowError: If a value is out of the range of the shelf's dtype; none of these rows is written then.
        """
        if rows.shape != (len(ids), self._width):
            raise ValueError(f"Expected rows of shape {(len(ids), self._width)} for {len(ids)} ids, got {rows.shape}.")
        packed = pack_rows(rows, self._dtype)
        with explaining_os_errors(self._folder):
            mode = "r+b"  # not "ab": a file that was cleared meanwhile must not come back without its first rows
            if self._partial is None:
                self._partial, mode = self._folder / name_file("partial"), "xb"
            with self._partial.open(mode) as file:
                file.seek(0, os.SEEK_END)
                file.write(packed.data)
        self._ids.append(ids.astype("S32"))
        self._bytes += packed.nbytes
        if self._bytes >= SEGMENT_BYTES or sum(len(part) for part in self._ids) >= SEGMENT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Make a segment of the rows appended since the last: all of them, or none after an exception."""
        if self._partial is None:
            return
        rows = self._folder / f"{uuid.uuid4().hex}.rows"
        ids = rows.with_suffix(".ids")
        listing = self._partial.with_suffix(".ids-partial")
        with explaining_os_errors(self._folder):
            try:
                # Not `tofile`: its errors say how many items were written, not that the disk is full.
                listing.write_bytes(np.concatenate(self._ids).tobytes())
                for path in (self._partial, listing):
                    with path.open("r+b") as file:
                        os.fsync(file.fileno())
                os.utime(self._partial)  # `GRACE` runs from here, not from before a slow fsync
                self._partial.replace(rows)
                listing.replace(ids)
            finally:
                listing.unlink(missing_ok=True)
                if not ids.exists():
                    rows.unlink(missing_ok=True)
        self._seen.add(rows)
        self._partial, self._ids, self._bytes = None, [], 0

    def discard(self) -> None:
        """Remove rows that are not committed. Raises nothing: another exception may be in flight."""
        if self._partial is not None:
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove partial files of killed runs, as far as permissions allow."""
    for pattern in ("*.partial", "*.ids-partial", "*.tmp"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process sweeps as well, or the file is another person's
                if is_abandoned(path) or age(path) > STALE:
                    path.unlink()
    for path in folder.glob("*.lease"):
        with suppress(OSError):
            if is_abandoned(path):  # a running process may hold a lease for weeks
                path.unlink()
    for path in folder.glob("*.rows"):
        with suppress(OSError):
            # Killed between two renames. The age is checked first: a live writer adds the ids within `GRACE`.
            if age(path) > GRACE and not path.with_suffix(".ids").exists():
                path.unlink()


def folder_size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total
