"""Places where a study can be kept."""

from __future__ import annotations

import itertools

import pytest

from tests import postgresql

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server."""
    if reason := postgresql.why_not():
        pytest.skip(reason)
    with postgresql.serve() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    """URL of an empty storage."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue("server").make_database(f"study {next(NUMBERS)}".replace(" ", "_"))
