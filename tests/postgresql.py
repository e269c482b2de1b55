"""A throw-away PostgreSQL server for tests, reached by password."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

USER, PASSWORD = "tester", "a secret / word"


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Args:
        binaries: Folder of `pg_ctl`.
        folder: Of its data.
        port: On this machine.
        account: Who runs it: the server refuses to be root's.
    """

    binaries: Path
    folder: Path
    port: int
    account: str | None

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """Of a database, as a person types it."""
        quoted = password.replace(" ", "%20").replace("/", "%2F")
        return f"postgresql://{USER}:{quoted}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name: str) -> str:
        """Its URL."""
        import psycopg

        place = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD}
        with psycopg.connect(**place, dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)

    def start(self) -> None:
        """Wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log.txt"), "-o", options, "start", "-D", str(self.data))

    def stop(self) -> None:
        """Without waiting for those who are connected."""
        self.run("pg_ctl", "-m", "immediate", "stop", "-D", str(self.data))

    @property
    def data(self) -> Path:
        """What `initdb` makes."""
        return self.folder / "data"

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs; raises with what it said."""
        said = self.folder / f"{program}.txt"
        with said.open("w") as file:  # no pipe: the server would keep it open
            done = subprocess.run(
                [self.binaries / program, *arguments], user=self.account, group=self.account, stdout=file,
                stderr=subprocess.STDOUT, cwd=self.folder, check=False,
            )  # fmt: skip
        assert done.returncode == 0, said.read_text()


def why_not() -> str | None:
    """The reason why there can be no server here; None if there can."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed: pip install 'transferkit[postgres]'"
    if find_binaries() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and account() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return None


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((one for one in reversed(places) if (one / "initdb").is_file()), None)


def account() -> str | None:
    """Whose the server is, where this process is root."""
    return next((one.pw_name for one in pwd.getpwall() if one.pw_name == "postgres"), None)


@contextmanager
def serve() -> Iterator[PostgresServer]:
    """A server that is gone afterwards."""
    binaries = find_binaries()
    assert binaries is not None
    owner = account() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="transferkit-postgresql-") as made, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = PostgresServer(binaries=binaries, folder=Path(made), port=free.getsockname()[1], account=owner)
        free.close()
        word = server.folder / "password.txt"
        word.write_text(PASSWORD)
        if owner is not None:
            for path in (server.folder, word):
                shutil.chown(path, owner)
        server.run(
            "initdb", "-D", str(server.data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={word}", "--locale=C",
            "--encoding=UTF8", "--no-sync",
        )  # fmt: skip
        server.start()
        try:
            yield server
        finally:
            server.stop()
