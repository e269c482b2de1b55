"""What the audit saw of image files, remembered: a file that has not changed is not read again.

A file is known by its absolute path and by size, times of change and inode; where one of these differs it is
inspected anew. Files that changed a moment before they were read are not remembered: a second change within the same
tick of the clock would not show (git calls such files racy). Only sound images are remembered, so that a fault that was
the disk's, and not the file's, is met afresh.

The memory is a convenience: one that is damaged is thrown away and begun again, and where it cannot be read or written,
every file is inspected. `transferkit.data` logs both at level DEBUG.
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

__all__ = ["FILE", "InspectionMemory", "inspect_files"]

log = logging.getLogger(__name__)

FILE = "audit.sqlite"
"""Name of the memory in the cache folder."""

LIMIT = 2**29
"""Bytes that it may take: about a million images. Beyond, a fifth is dropped, those used least recently."""

DROPPED = 0.2

SETTLED = 2_000_000_000
"""Nanoseconds for which a file must have been left alone before it was read: the coarsest clock of a file system in use
(FAT's) ticks every two seconds."""

AT_ONCE = 500
"""Files looked up and written down at once; SQLite takes 999 values in a statement at least."""

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
    """What tells an unchanged file: another one that was moved to its place has another ctime, if not another size."""

    size: int
    mtime: int
    ctime: int
    inode: int


def _sign(path: Path) -> Signature | None:
    """None if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return Signature(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))


def _version() -> bytes:
    """Digest of what an inspection depends on: the code of this folder, and the libraries that decode."""
    code = sorted(
        (entry.name, entry.read_bytes())
        for entry in importlib.resources.files("transferkit.data").iterdir()
        if entry.name.endswith(".py")
    )
    from PIL import features

    libraries = f"{PIL.__version__}|{features.version_codec('jpg')}|{np.__version__}"
    return hashlib.blake2b(repr((code, libraries)).encode(), digest_size=16).digest()


class InspectionMemory:
    """Inspections by file, in one SQLite database that several processes may use at once.

    Args:
        folder: The cache folder; made when first written to.

    Example:
        >>> import tempfile
        >>> InspectionMemory(Path(tempfile.mkdtemp())).count()
        0
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.file.stat().st_size if self.file.exists() else 0

    def count(self) -> int:
        """Inspections in it; 0 where it cannot be read."""
        if not self.file.exists():
            return 0
        try:
            with closing(self._connect()) as database:
                return int(database.execute("SELECT COUNT(*) FROM inspections").fetchone()[0])
        except (sqlite3.Error, OSError) as error:
            log.debug("The audit's memory at %s cannot be read: %s", self.file, error)
            return 0

    def clear(self) -> int:
        """Forget everything; returns the bytes that this frees."""
        freed = self.size
        for suffix in ("", "-journal"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        return freed

    def open(self) -> sqlite3.Connection | None:
        """A connection, for one thread; None where there can be none. A damaged database is begun again."""
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            if not _is_damage(error):
                log.debug("The audit remembers nothing: %s: %s", self.file, error)
                return None
            self.discard(error)
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            log.debug("The audit remembers nothing: %s: %s", self.file, error)
            return None

    def discard(self, error: Exception) -> None:
        """Throw a damaged database away."""
        log.debug("The audit's memory at %s is damaged (%s) and begins anew", self.file, error)
        try:
            self.clear()
        except OSError as other:
            log.debug("It cannot be removed: %s", other)

    def _connect(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=PATIENCE)
        try:
            if (schema := database.execute("PRAGMA user_version").fetchone()[0]) not in (0, _SCHEMA):
                raise sqlite3.DatabaseError(f"it is of format {schema}, not {_SCHEMA}")
            with database:
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            database.close()
            raise
        return database


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault. Full disks, locks and missing rights are `OperationalError`."""
    return type(error) is sqlite3.DatabaseError


def inspect_files(paths: Sequence[Path], *, max_pixels: int, folder: Path) -> Iterator[Inspection]:
    """The inspection of every file, in order: remembered, or read now and remembered from then on.

    Args:
        paths: The files; they need not exist.
        max_pixels: As in `decode`.
        folder: The cache folder.
    """
    memory = _Memory(InspectionMemory(folder), max_pixels)
    try:
        for start in range(0, len(paths), AT_ONCE):
            yield from _inspect_some(paths[start : start + AT_ONCE], memory, max_pixels)
        memory.make_room()
    finally:
        memory.close()


def _inspect_some(paths: Sequence[Path], memory: _Memory, max_pixels: int) -> Iterator[Inspection]:
    """Every file is inspected, and written down, before the first comes out: what was killed goes on from there."""
    known = memory.recall([(_key(path), _sign(path)) for path in paths])
    unknown = [path for path, look in zip(paths, known, strict=True) if look is None]
    fresh = list(in_threads(lambda path: _inspect(path, max_pixels), unknown))
    memory.remember([(_key(path), signature, look) for path, (look, signature) in zip(unknown, fresh, strict=True)])
    seen = iter(fresh)
    for look in known:
        yield next(seen)[0] if look is None else look


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _inspect(path: Path, max_pixels: int) -> tuple[Inspection, Signature | None]:
    """The inspection, and the signature to remember it by; None if it must not be remembered."""
    before, now = _sign(path), time.time_ns()
    look = inspect_file(path, max_pixels=max_pixels)
    if look.fault or before is None or before != _sign(path):
        return look, None
    return look, before if max(before.mtime, before.ctime) < now - SETTLED else None


class _Memory:
    """The connection of one audit; whatever the database does, the audit goes on."""

    def __init__(self, memory: InspectionMemory, max_pixels: int) -> None:
        self._memory = memory
        self._which = (max_pixels, _version())
        self._today = int(time.time()) // DAY
        self._database = memory.open()
        self._written = False

    def recall(self, wanted: Sequence[tuple[bytes, Signature | None]]) -> list[Inspection | None]:
        """One per file; None for those that are not known, or have changed."""
        rows: dict[bytes, tuple[Any, ...]] = {}
        marks = ", ".join("?" * len(wanted))
        statement = f"SELECT * FROM inspections WHERE max_pixels = ? AND version = ? AND path IN ({marks})"
        for row in self._execute(statement, (*self._which, *(path for path, _ in wanted))):
            rows[row[0]] = row
        found = [_restore(rows.get(path), signature) for path, signature in wanted]
        old = [path for (path, _), look in zip(wanted, found, strict=True) if look and rows[path][7] != self._today]
        if old:
            statement = "UPDATE inspections SET used = ? WHERE path = ? AND max_pixels = ? AND version = ?"
            self._write(statement, [(self._today, path, *self._which) for path in old])
        return found

    def remember(self, looks: Sequence[tuple[bytes, Signature | None, Inspection]]) -> None:
        """Write down those that have a signature."""
        rows = [
            (path, *self._which, *signature, self._today, *_pack(look))
            for path, signature, look in looks
            if signature is not None
        ]
        if rows:
            self._write(f"INSERT OR REPLACE INTO inspections VALUES ({', '.join('?' * len(rows[0]))})", rows)
            self._written = True

    def make_room(self) -> None:
        """Drop those used least recently, if there is more than `LIMIT` and something was added."""
        if not self._written:
            return
        pages = [self._execute(f"PRAGMA {name}", ()) for name in ("page_count", "freelist_count", "page_size")]
        if not all(pages) or (pages[0][0][0] - pages[1][0][0]) * pages[2][0][0] <= LIMIT:
            return
        many = int(DROPPED * self._execute("SELECT COUNT(*) FROM inspections", ())[0][0])
        oldest = "SELECT path, max_pixels, version FROM inspections ORDER BY used LIMIT ?"
        self._write(f"DELETE FROM inspections WHERE (path, max_pixels, version) IN ({oldest})", [(many,)])

    def close(self) -> None:
        """Let go of the file."""
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
        """Begin anew after damage; after anything else, go on without a memory."""
        self.close()
        if _is_damage(error):
            self._memory.discard(error)
            self._database = self._memory.open()
        else:
            log.debug("The audit remembers nothing more: %s: %s", self._memory.file, error)


_OWN = frozenset({"content_id", "hash", "thumb"})
"""Fields that no two images share. The others, kind of file and size, are alike in most folders."""


def _pack(look: Inspection) -> tuple[bytes, bytes, bytes, bytes]:
    """Content id, hash, thumbnail, and JSON of what else is in an inspection."""
    rest = json.dumps(to_json(look, leave_out=_OWN)).encode()
    return look.content_id, look.hash.to_bytes(8, "big"), look.thumb.tobytes(), rest


@functools.lru_cache(maxsize=1024)
def _unpack(rest: bytes) -> Inspection:
    """The inspection in this JSON, but for `_OWN` fields; restored once for all files that are alike."""
    return from_json(Inspection, {**json.loads(rest), "content_id": b""})


def _restore(row: tuple[Any, ...] | None, signature: Signature | None) -> Inspection | None:
    """The inspection in a row, if it is there, whole, and of the file as it is now."""
    if row is None or signature is None or tuple(row[3:7]) != signature:
        return None
    content_id, known, thumb, rest = row[8:]
    try:
        picture = np.frombuffer(thumb, dtype=np.uint8)
        return replace(_unpack(rest), content_id=content_id, hash=int.from_bytes(known, "big"), thumb=picture)
    except (ValueError, TypeError, AttributeError):
        return None
