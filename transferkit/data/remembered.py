"""Cache of the audit's inspections: a file that has not changed is not read again.

A file is identified by absolute path, size, modification times and inode, an image in a shard by its place there and
those of the shard; if one of these differs, it is inspected again. Files that changed just before they were read are
not cached: a second change within the same clock tick would go unnoticed (git calls such files racy). Only intact
images are cached, so that a temporary disk error is not stored as a fault of the file.

The cache is optional: a damaged one is deleted and recreated, and if it cannot be read or written, every file is
inspected. `transferkit.data` logs both at level DEBUG.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from transferkit.core.serialization import from_json, to_json
from transferkit.data.inspection import Inspection, in_threads, inspect_file
from transferkit.data.members import ImageFile, Member

__all__ = ["FILE", "InspectionCache", "inspect_files", "recall_files"]

log = logging.getLogger(__name__)

FILE = "audit.sqlite"
"""Name of the database in the cache folder."""

LIMIT = 2**29
"""Maximum size in bytes: about a million images. Beyond, the least recently used fifth is dropped."""

DROPPED = 0.2

SETTLED = 2_000_000_000
"""Nanoseconds without a change before a file was read for it to be cached: the coarsest file system clock in use (FAT)
ticks every two seconds."""

AT_ONCE = 500
"""Files per query; SQLite allows at least 999 values in a statement."""

PATIENCE = 10.0
"""Seconds to wait for another process that is writing."""

DAY = 86_400

_SCHEMA = 1
_TABLE = """CREATE TABLE IF NOT EXISTS inspections (
    path BLOB, max_pixels INTEGER, version BLOB,
    size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER,
    used INTEGER, content_id BLOB, hash BLOB, thumb BLOB, rest BLOB,
    PRIMARY KEY (path, max_pixels, version)
) WITHOUT ROWID"""


class Signature(NamedTuple):
    """Identifies an unchanged file: a file moved to its path has another ctime, if not another size."""

    size: int
    mtime: int
    ctime: int
    inode: int


def _sign(path: ImageFile) -> Signature | None:
    """Signature of a file; None if it does not exist."""
    try:
        found = os.stat(path.archive if isinstance(path, Member) else path)
    except (OSError, ValueError):
        return None
    size = path.size if isinstance(path, Member) else found.st_size
    return Signature(size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))


def _version() -> bytes:
    """Digest of what an inspection depends on: the code of this package, and the decoding libraries."""
    code = sorted(
        (entry.name, entry.read_bytes())
        for entry in importlib.resources.files("transferkit.data").iterdir()
        if entry.name.endswith(".py")
    )
    from PIL import features

    libraries = f"{PIL.__version__}|{features.version_codec('jpg')}|{np.__version__}"
    return hashlib.blake2b(repr((code, libraries)).encode(), digest_size=16).digest()


class InspectionCache:
    """Cached inspections, in one SQLite database that several processes may use at once.

    Args:
        folder: The cache folder; created on first write.

    Example:
        >>> import tempfile
        >>> InspectionCache(Path(tempfile.mkdtemp())).count()
        0
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    @property
    def size(self) -> int:
        """Size on disk in bytes."""
        return self.file.stat().st_size if self.file.exists() else 0

    def count(self) -> int:
        """Number of inspections in it; 0 if it cannot be read."""
        if not self.file.exists():
            return 0
        try:
            with closing(self._connect()) as database:
                return int(database.execute("SELECT COUNT(*) FROM inspections").fetchone()[0])
        except (sqlite3.Error, OSError) as error:
            log.debug("The audit's cache at %s cannot be read: %s", self.file, error)
            return 0

    def clear(self) -> int:
        """Delete everything; returns the bytes freed."""
        freed = self.size
        for suffix in ("", "-journal"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        return freed

    def open(self) -> sqlite3.Connection | None:
        """A connection, for one thread; None if there is none. A damaged database is recreated."""
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            if not _is_damage(error):
                log.debug("The audit runs without its cache: %s: %s", self.file, error)
                return None
            self.discard(error)
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            log.debug("The audit runs without its cache: %s: %s", self.file, error)
            return None

    def discard(self, error: Exception) -> None:
        """Delete a damaged database."""
        log.debug("The audit's cache at %s is damaged (%s) and is recreated", self.file, error)
        try:
            self.clear()
        except OSError as other:
            log.debug("It cannot be removed: %s", other)

    def _connect(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=PATIENCE)
        try:
            if (schema := database.execute("PRAGMA user_version").fetchone()[0]) not in (0, _SCHEMA):
                raise sqlite3.DatabaseError(f"its format is {schema}, expected {_SCHEMA}")
            with database:
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            database.close()
            raise
        return database


def _is_damage(error: Exception) -> bool:
    """Whether the database file is damaged. Full disks, locks and missing permissions are `OperationalError`."""
    return type(error) is sqlite3.DatabaseError


def inspect_files(paths: Sequence[ImageFile], *, max_pixels: int, folder: Path) -> Iterator[Inspection]:
    """The inspection of every file, in order: from the cache, or new and added to it.

    Args:
        paths: The files; they need not exist.
        max_pixels: As in `decode`.
        folder: The cache folder.
    """
    cache = _AuditCache(InspectionCache(folder), max_pixels)
    try:
        for start in range(0, len(paths), AT_ONCE):
            yield from _inspect_some(paths[start : start + AT_ONCE], cache, max_pixels)
        cache.make_room()
    finally:
        cache.close()


def recall_files(paths: Sequence[ImageFile], *, max_pixels: int, folder: Path) -> list[Inspection | None]:
    """The inspections that are in the cache, in order; None for files that are not, or have changed.

    Args:
        paths, max_pixels, folder: As for `inspect_files`.
    """
    cache = _AuditCache(InspectionCache(folder), max_pixels)
    try:
        parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
        return [found for part in parts for found in cache.recall([(_key(path), _sign(path)) for path in part])]
    finally:
        cache.close()


def _inspect_some(paths: Sequence[ImageFile], cache: _AuditCache, max_pixels: int) -> Iterator[Inspection]:
    """Inspections of some files, stored before the first is yielded: an interrupted audit resumes from there."""
    known = cache.recall([(_key(path), _sign(path)) for path in paths])
    unknown = [path for path, found in zip(paths, known, strict=True) if found is None]
    fresh = list(in_threads(lambda path: _inspect(path, max_pixels), unknown))
    cache.remember([(_key(path), signature, found) for path, (found, signature) in zip(unknown, fresh, strict=True)])
    remaining = iter(fresh)
    for found in known:
        yield next(remaining)[0] if found is None else found


def _key(path: ImageFile) -> bytes:
    if isinstance(path, Member):
        return os.fsencode(os.path.abspath(path.archive)) + b"\0%d" % path.offset
    return os.fsencode(os.path.abspath(path))


def _inspect(path: ImageFile, max_pixels: int) -> tuple[Inspection, Signature | None]:
    """The inspection, and the signature to store it under; None if it must not be stored."""
    before, now = _sign(path), time.time_ns()
    found = inspect_file(path, max_pixels=max_pixels)
    if found.fault or before is None or before != _sign(path):
        return found, None
    return found, before if max(before.mtime, before.ctime) < now - SETTLED else None


class _AuditCache:
    """The connection of one audit; database errors never stop the audit."""

    def __init__(self, cache: InspectionCache, max_pixels: int) -> None:
        self._cache = cache
        self._which = (max_pixels, _version())
        self._today = int(time.time()) // DAY
        self._database = cache.open()
        self._written = False

    def recall(self, wanted: Sequence[tuple[bytes, Signature | None]]) -> list[Inspection | None]:
        """One per file; None for those that are not in the cache, or have changed."""
        rows: dict[bytes, tuple[Any, ...]] = {}
        marks = ", ".join("?" * len(wanted))
        statement = f"SELECT * FROM inspections WHERE max_pixels = ? AND version = ? AND path IN ({marks})"
        for row in self._execute(statement, (*self._which, *(path for path, _ in wanted))):
            rows[row[0]] = row
        found = [_restore(rows.get(path), signature) for path, signature in wanted]
        old = [path for (path, _), known in zip(wanted, found, strict=True) if known and rows[path][7] != self._today]
        if old:
            statement = "UPDATE inspections SET used = ? WHERE path = ? AND max_pixels = ? AND version = ?"
            self._write(statement, [(self._today, path, *self._which) for path in old])
        return found

    def remember(self, inspections: Sequence[tuple[bytes, Signature | None, Inspection]]) -> None:
        """Store those that have a signature."""
        rows = [
            (path, *self._which, *signature, self._today, *_pack(inspection))
            for path, signature, inspection in inspections
            if signature is not None
        ]
        if rows:
            self._write(f"INSERT OR REPLACE INTO inspections VALUES ({', '.join('?' * len(rows[0]))})", rows)
            self._written = True

    def make_room(self) -> None:
        """Drop the least recently used, if the database exceeds `LIMIT` and something was added."""
        if not self._written:
            return
        pages = [self._execute(f"PRAGMA {name}", ()) for name in ("page_count", "freelist_count", "page_size")]
        if not all(pages) or (pages[0][0][0] - pages[1][0][0]) * pages[2][0][0] <= LIMIT:
            return
        many = int(DROPPED * self._execute("SELECT COUNT(*) FROM inspections", ())[0][0])
        oldest = "SELECT path, max_pixels, version FROM inspections ORDER BY used LIMIT ?"
        self._write(f"DELETE FROM inspections WHERE (path, max_pixels, version) IN ({oldest})", [(many,)])

    def close(self) -> None:
        """Close the connection."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Recreate a damaged database; after any other error, continue without the cache."""
        self.close()
        if _is_damage(error):
            self._cache.discard(error)
            self._database = self._cache.open()
        else:
            log.debug("The audit continues without its cache: %s: %s", self._cache.file, error)


_OWN = frozenset({"content_id", "hash", "thumb"})
"""Fields that differ between images. The others, such as format and size, are equal for most files of a folder."""


def _pack(inspection: Inspection) -> tuple[bytes, bytes, bytes, bytes]:
    """Content id, hash, thumbnail, and JSON of the other fields."""
    rest = json.dumps(to_json(inspection, leave_out=_OWN)).encode()
    return inspection.content_id, inspection.hash.to_bytes(8, "big"), inspection.thumb.tobytes(), rest


@functools.lru_cache(maxsize=1024)
def _unpack(rest: bytes) -> Inspection:
    """The inspection in this JSON, without `_OWN` fields; cached, as most files share it."""
    return from_json(Inspection, {**json.loads(rest), "content_id": b""})


def _restore(row: tuple[Any, ...] | None, signature: Signature | None) -> Inspection | None:
    """The inspection in a row, if it exists, is intact, and matches the file's signature."""
    if row is None or signature is None or tuple(row[3:7]) != signature:
        return None
    content_id, known, thumb, rest = row[8:]
    try:
        picture = np.frombuffer(thumb, dtype=np.uint8)
        return replace(_unpack(rest), content_id=content_id, hash=int.from_bytes(known, "big"), thumb=picture)
    except (ValueError, TypeError, AttributeError):
        return None
