"""Where a study is kept: opening an Optuna URL so that several processes can work on it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from transferkit.core.errors import MissingDependencyError, OptionError

__all__ = ["ALIVE_EVERY", "GIVEN_UP_AFTER", "hide_password", "is_file", "open_storage", "told_if_gone"]

ALIVE_EVERY, GIVEN_UP_AFTER = 10, 60
"""Seconds between two signs of life of a worker, and after which its trial is retried."""

RETRIES, OPENING_TRIES = 3, 4

CONNECTING = 10
"""Seconds within which a server has to answer."""

POSTGRESQL_DRIVER = "psycopg"


def open_storage(url: str) -> RDBStorage:
    """The storage behind an Optuna URL, its tables made if there are none.

    Args:
        url: "sqlite:///study.db", "postgresql://user:password@host/database", or another that SQLAlchemy has a
            driver for.

    Raises:
        MissingDependencyError: The driver of PostgreSQL is not installed.
        OptionError: It cannot be opened.
    """
    try:
        place = _with_driver(make_url(url))
    except ArgumentError as error:
        raise _cannot_open(url, error) from error
    for tries_left in reversed(range(OPENING_TRIES)):
        try:
            storage = RDBStorage(
                place.render_as_string(hide_password=False),
                engine_kwargs=_engine_options(place),
                heartbeat_interval=ALIVE_EVERY,
                grace_period=GIVEN_UP_AFTER,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
            break
        except Exception as error:  # SQLAlchemy and its drivers have many
            says_no = isinstance(error, OperationalError | ImportError) and not is_file(url)
            if tries_left and not says_no:  # two processes that make its tables at once: one of them fails
                time.sleep(0.3)
                continue
            raise _cannot_open(url, error) from error
    weakref.finalize(storage, storage.engine.dispose)
    if is_file(url):
        _share_file(storage)
    return storage


@contextmanager
def told_if_gone(url: str) -> Iterator[None]:
    """A storage that no longer answers becomes one clear error.

    Args:
        url: Of the storage.

    Raises:
        OptionError: It does not answer.
    """
    try:
        yield
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise OptionError(
            f"The storage {hide_password(url)!r} no longer answers ({reason}). Once it does, the same command goes on."
        ) from error


def is_file(url: str) -> bool:
    """Whether the storage is a file, which processes of one machine can share.

    Example:
        >>> is_file("sqlite:///study.db"), is_file("postgresql://host/studies")
        (True, False)
    """
    return url.startswith("sqlite")


def hide_password(url: str) -> str:
    """The URL as it may be shown and kept.

    Example:
        >>> hide_password("postgresql://me:secret@host/studies")
        'postgresql://me:***@host/studies'
    """
    try:
        place = make_url(url)
    except ArgumentError:
        return url
    return url if place.password is None else place.render_as_string(hide_password=True)


def _cannot_open(url: str, error: Exception) -> OptionError:
    reason = str(error).strip().split("\n")[0]
    return OptionError(
        f"The storage {hide_password(url)!r} cannot be opened ({reason}). Check the address, user, password and name "
        "of the database. Examples: sqlite:///study.db, postgresql://user:password@host/database."
    )


def _with_driver(place: URL) -> URL:
    """The same place; for PostgreSQL with its driver, of which SQLAlchemy's versions have different ones as default."""
    if place.drivername != "postgresql":
        return place
    if find_spec(POSTGRESQL_DRIVER) is None:
        raise MissingDependencyError("A study in PostgreSQL needs psycopg: pip install 'transferkit[postgres]'.")
    return place.set(drivername=f"postgresql+{POSTGRESQL_DRIVER}")


def _engine_options(place: URL) -> dict[str, Any]:
    if is_file(place.drivername):
        return {"connect_args": {"timeout": GIVEN_UP_AFTER}}
    # One connection is kept, as PostgreSQL allows a hundred in all; during a long trial it may be closed by a firewall,
    # or by a server that begins anew.
    options: dict[str, Any] = {"pool_size": 1, "pool_pre_ping": True}
    if place.get_backend_name() == "postgresql" and "connect_timeout" not in place.query:
        options["connect_args"] = {"connect_timeout": CONNECTING}
    return options


def _share_file(storage: RDBStorage) -> None:
    """Let several processes work on a SQLite file.

    Whoever looks for a waiting trial to take locks the file first, or two would find the same one: Optuna relies on
    SELECT ... FOR UPDATE, which SQLite does not know. A journal that is written ahead waits for the disk at checkpoints
    only: each trial writes about ten times, at half a second each on a slow disk. A crash of the machine may lose the
    last trials, a crash of the program none.
    """

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # or Python's driver begins transactions by itself, and later
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(storage.engine, "connect", connect)
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.engine.dispose()
