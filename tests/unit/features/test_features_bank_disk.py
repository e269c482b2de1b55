"""Other processes, sudden death and full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import transferkit
from tests.unit.features.features_toys import (
    AT_REST,
    WIDTH,
    fill,
    list_files,
    load_all,
    name_images,
    open_toy_shelf,
    rows_of,
)
from transferkit.core.errors import CacheError
from transferkit.features import shelf as shelf_module
from transferkit.features.bank import FeatureBank
from transferkit.features.shelf import Shelf

CHILD = f"""
import os, sys, time, types
sys.path[:0] = [{str(Path(transferkit.__file__).parents[1])!r}]
# The bank alone: its package would import torch, which takes seconds.
package = types.ModuleType("transferkit.features")
package.__path__ = [{str(Path(transferkit.__file__).parent / "features")!r}]
sys.modules["transferkit.features"] = package
import numpy as np
from transferkit.features import bank as bank_module
from transferkit.features import shelf as shelf_module
from transferkit.features.bank import FeatureBank

def name_images(*numbers):
    return np.array([f"{{n:032x}}".encode() for n in numbers], dtype="S32")

def rows_of(ids):
    numbers = np.array([int(i, 16) for i in ids], dtype=np.float64).reshape(-1, 1)
    return (np.sin(numbers + np.arange({WIDTH})) * 1e3 / 7).astype(np.float32)

def halt(*_):
    print("ready", flush=True)
    time.sleep(60)

bank = FeatureBank(sys.argv[1])
shelf = bank.shelf({{"backbone": "toy", "image_size": 32, "pooling": "avg"}}, {{"early": 3, "top": 2}})
"""


def _start(code: str, bank: FeatureBank) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(bank.folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def _wait_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"


# Several processes

WRITE_300 = """
shelf_module.SEGMENT_ROWS = 16
print("ready", flush=True)
sys.stdin.readline()
first, last = {first}, {last}
with shelf.writer() as writer:
    for start in range(first, last, 5):
        ids = name_images(*range(start, min(start + 5, last)))
        writer.append(ids, rows_of(ids))
"""


def test_two_processes_write_one_shelf_while_a_third_reads(bank: FeatureBank, shelf: Shelf) -> None:
    children = [_start(WRITE_300.format(first=first, last=last), bank) for first, last in ((0, 300), (200, 500))]
    for child in children:
        _wait_ready(child)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    everything, seen = name_images(*range(500)), set()
    while any(child.poll() is None for child in children):
        here = np.delete(everything, shelf.missing(everything))
        seen.add(len(here))
        np.testing.assert_array_equal(load_all(shelf, here), rows_of(here))
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert shelf.missing(everything).tolist() == []
    np.testing.assert_array_equal(load_all(shelf, everything), rows_of(everything))
    assert list_files(bank.folder) == AT_REST


WRITE_AND_HANG = """
shelf_module.SEGMENT_ROWS = 10
ids = name_images(*range(15))
with shelf.writer() as writer:
    writer.append(ids[:10], rows_of(ids[:10]))
    {hang}
    writer.append(ids[10:], rows_of(ids[10:]))
    writer.commit()
    halt()
"""
HANGS = {
    "after an append": ("writer.commit = halt", {".partial"}),
    "between writing ids and renaming": ("bank_module.os.fsync = halt", {".partial", ".ids-partial"}),
    "between the two renames": (
        "renamed = []\n"
        "    def rename_once(path, target, _real=bank_module.Path.replace):\n"
        "        halt() if renamed else renamed.append(_real(path, target))\n"
        "    bank_module.Path.replace = rename_once",
        {".ids-partial"},
    ),
}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", HANGS)
def test_a_killed_writer_leaves_nothing_that_readers_see_and_the_next_one_sweeps(
    bank: FeatureBank, shelf: Shelf, moment: str
) -> None:
    hang, leftovers = HANGS[moment]
    child = _start(WRITE_AND_HANG.format(hang=hang), bank)
    _wait_ready(child)

    fill(shelf, 100)  # what a live process has in hand is not swept
    assert list_files(shelf.folder) == AT_REST | leftovers

    child.send_signal(signal.SIGKILL)
    child.communicate()
    ids = name_images(*range(15))
    assert shelf.missing(ids).tolist() == [10, 11, 12, 13, 14]
    np.testing.assert_array_equal(load_all(shelf, ids[:10]), rows_of(ids[:10]))

    for rows in shelf.folder.glob("*.rows"):
        os.utime(rows, (time.time() - 120,) * 2)
    fill(shelf, *range(10, 15))
    assert list_files(shelf.folder) == AT_REST
    assert len(list(shelf.folder.glob("*.rows"))) == len(list(shelf.folder.glob("*.ids")))
    np.testing.assert_array_equal(load_all(shelf, ids), rows_of(ids))


# Full disks


def _check_nothing_was_lost(shelf: Shelf, committed: np.ndarray, lost: np.ndarray) -> None:
    assert list_files(shelf.folder) == AT_REST
    assert len(list(shelf.folder.glob("*.rows"))) == len(list(shelf.folder.glob("*.ids")))
    np.testing.assert_array_equal(load_all(shelf, committed), rows_of(committed))
    assert shelf.missing(lost).tolist() == list(range(len(lost)))


FULL = OSError(errno.ENOSPC, "No space left on device")


def _full_at_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def open_full(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        if "partial" not in path.name or mode == "rb":
            return real(path, mode, *args, **options)  # type: ignore[call-overload]
        real(path, mode).close()

        def write(_: object) -> int:
            raise FULL

        return _Opened(SimpleNamespace(write=write, seek=lambda *_: 0, fileno=lambda: 0))

    monkeypatch.setattr(Path, "open", open_full)


class _Opened:
    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> object:
        return self.file

    def __exit__(self, *_: object) -> None:
        return None


def _full_at_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)


def _full_at_nth_rename(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        done.append(path)
        if len(done) == nth:
            raise FULL
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)


def _full_at_first_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    _full_at_nth_rename(1, monkeypatch)


def _full_at_second_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    _full_at_nth_rename(2, monkeypatch)


@pytest.mark.parametrize("fill_up", [_full_at_write, _full_at_fsync, _full_at_first_rename, _full_at_second_rename])
def test_a_full_disk_is_explained_and_leaves_nothing_half_written(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, fill_up: Callable[[pytest.MonkeyPatch], None]
) -> None:
    committed = fill(shelf, 1, 2)
    lost = name_images(3, 4, 5)
    with monkeypatch.context() as patch:
        fill_up(patch)
        with pytest.raises(CacheError, match="cannot be used: No space left on device. Free some space there, or"):
            fill(shelf, 3, 4, 5)
    _check_nothing_was_lost(shelf, committed, lost)
    fill(shelf, 3, 4, 5)
    np.testing.assert_array_equal(load_all(shelf, lost), rows_of(lost))


@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_around_the_renames_leaves_all_or_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    committed, lost = fill(shelf, 1), name_images(2)
    real, done = Path.replace, []

    def interrupted(path: Path, target: Path) -> Path:
        done.append(real(path, target))
        if len(done) == nth:
            raise KeyboardInterrupt
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(shelf, 2)
    if nth == 1:
        _check_nothing_was_lost(shelf, committed, lost)
    else:
        np.testing.assert_array_equal(load_all(shelf, lost), rows_of(lost))


def test_a_sweep_between_the_renames_spares_a_writer_whose_fsync_took_minutes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, renamed = Path.replace, []

    def slow_fsync(_: int) -> None:
        for partial in shelf.folder.glob("*.partial"):
            os.utime(partial, (time.time() - 600,) * 2)

    def sweep_after(path: Path, target: Path) -> Path:
        renamed.append(path)
        moved = real(path, target)
        shelf_module.sweep(shelf.folder)
        return moved

    monkeypatch.setattr(os, "fsync", slow_fsync)
    monkeypatch.setattr(Path, "replace", sweep_after)
    ids = fill(shelf, 1, 2)
    assert len(renamed) == 2
    np.testing.assert_array_equal(load_all(shelf, ids), rows_of(ids))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _write_in_pieces(shelf: Shelf, ids: np.ndarray, piece: int) -> None:
    rows = rows_of(ids)
    with shelf.writer() as writer:
        for start in range(0, len(ids), piece):
            writer.append(ids[start : start + piece], rows[start : start + piece])


@pytest.mark.parametrize("piece", [7, 1000, 60_000])
def test_a_disk_that_really_fills_up(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(shelf_module, "SEGMENT_ROWS", 3000)
    shelf = open_toy_shelf(FeatureBank(tiny_disk))
    committed = fill(shelf, 1, 2, 3)
    everything = name_images(*range(60_000))  # 3 MB
    with pytest.raises(CacheError, match="No space left on device. Free some space") as caught:
        _write_in_pieces(shelf, everything, piece)
    assert isinstance(caught.value.__cause__, OSError)
    absent = everything[shelf.missing(everything)]
    _check_nothing_was_lost(shelf, np.setdiff1d(everything, absent), absent)
    np.testing.assert_array_equal(load_all(shelf, committed), rows_of(committed))


def test_a_shelf_that_cannot_be_made_on_a_full_disk_is_explained(tiny_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (tiny_disk / "big").open("wb") as file:
        file.write(bytes(2**21))
    bank = FeatureBank(tiny_disk)
    with pytest.raises(CacheError, match="No space left on device. Free some space"):
        open_toy_shelf(bank)
    assert not list(tiny_disk.rglob("*.tmp"))


def test_a_read_only_file_system_is_explained(tiny_disk: Path) -> None:
    shelf = open_toy_shelf(FeatureBank(tiny_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(CacheError, match="Read-only file system. .*choose another folder with cache=DIR"):
        fill(shelf, 1)
    with pytest.raises(CacheError, match="Read-only file system. .*choose another folder with cache=DIR"):
        open_toy_shelf(FeatureBank(tiny_disk / "deeper"))


def test_too_little_free_disk_is_told_before_any_work(tiny_disk: Path) -> None:
    bank = FeatureBank(tiny_disk)
    with pytest.raises(CacheError, match=r"only 0 MB are free at .*tiny"):
        bank.make_room((open_toy_shelf(bank), 10))
