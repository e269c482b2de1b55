"""Many readers together, a writer alone, and no reader that comes later before a writer that waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from transferkit.core.locks import SharedLock

WAIT = 20


def test_readers_hold_it_together() -> None:
    lock, together = SharedLock(), threading.Barrier(3, timeout=WAIT)

    def read(_: int) -> None:
        with lock.shared():
            together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))


def test_a_writer_is_alone_and_goes_before_readers_that_come_later() -> None:
    lock, events = SharedLock(), []

    def write() -> None:
        with lock.exclusive():
            events.append("write")

    def read() -> None:
        with lock.shared():
            events.append("read")

    with lock.shared():
        writer = threading.Thread(target=write)
        writer.start()
        while not lock._waiting:
            threading.Event().wait(0.001)
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(0.1)
        assert events == []
    writer.join(WAIT)
    reader.join(WAIT)
    assert events == ["write", "read"]


def test_writers_take_turns() -> None:
    lock, inside, most = SharedLock(), [0], [0]

    def write(_: int) -> None:
        with lock.exclusive():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            threading.Event().wait(0.001)
            inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(32)))
    assert most == [1]


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_it_is_free_after_an_exception(how: str) -> None:
    lock = SharedLock()
    with pytest.raises(KeyError), getattr(lock, how)():
        raise KeyError
    with lock.exclusive():
        pass
