"""Leases on shelves of the bank: a file in the shelf for every run that uses it, named after its process, so that no
run drops the rows of another."""

from __future__ import annotations

import os
import socket
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

__all__ = ["STALE", "Lease", "age", "is_abandoned", "is_leased", "name_file"]

STALE = 24 * 3600
"""Seconds after which a half-written file or a lease counts as abandoned if its process cannot be checked."""

RENEWAL = 3600.0
"""Seconds after which a reader renews its lease: often enough for `STALE`, at negligible cost."""


class Lease:
    """A run's lease on a shelf, for the lifetime of the object.

    A killed process leaves its file behind; it is ignored once the process is dead, and the next writer of the shelf
    deletes it.

    Args:
        folder: The shelf's.

    Raises:
        OSError: If the folder does not exist or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / name_file("lease")
        self._file.touch()
        self._renewed = time.monotonic()
        weakref.finalize(self, _release, self._file, os.getpid())

    @property
    def exists(self) -> bool:
        """Whether the file still exists: the bank may have been cleared."""
        return self._file.exists()

    def renew(self) -> None:
        """Mark the shelf as still in use; cheap enough for every read."""
        if time.monotonic() - self._renewed > RENEWAL:
            self._renewed = time.monotonic()
            with suppress(OSError):  # cleared meanwhile
                os.utime(self._file)


def _release(file: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child has a copy of the object, but not the lease
        with suppress(OSError):
            file.unlink(missing_ok=True)


def is_leased(folder: Path) -> bool:
    """Whether a run that may still be alive has a lease on this shelf, here or on another machine."""
    return any(not is_abandoned(lease) for lease in folder.glob("*.lease"))


def name_file(kind: str) -> str:
    """A unique file name that identifies the process."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.{kind}"


def is_abandoned(path: Path) -> bool:
    """Whether the process that a file is named after is dead; one on another machine counts as dead after a day without
    renewal."""
    host, _, pid = path.stem.rpartition("-")[0].rpartition("-")
    if host == socket.gethostname() and pid.isdigit() and os.name != "nt":  # on Windows, os.kill would send it a Ctrl-C
        return not _is_alive(int(pid))
    try:
        return age(path) > STALE
    except FileNotFoundError:  # released meanwhile
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def age(path: Path) -> float:
    """Seconds since the file was last written or touched."""
    return time.time() - path.stat().st_mtime
