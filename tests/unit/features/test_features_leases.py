"""What a run uses is not dropped under it: by itself, by others, for as long as it goes on and no longer."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unit.features.features_toys import (
    WIDTH,
    Reader,
    draw_images,
    fill,
    make_backbone,
    make_network,
    name_images,
    open_toy_shelf,
    rows_of,
)
from transferkit.core.errors import CacheError
from transferkit.features import FeatureBank, cache_activations, frozen_pass, leases
from transferkit.features.shelf import Shelf
from transferkit.nn import cut
from transferkit.options import PassOptions
from transferkit.workflow.session import open_bank

ROWS = 1000
ROW_BYTES = WIDTH * 4 + 32
LIMIT = 3 * ROWS * ROW_BYTES + 20_000
"""Three shelves of a thousand rows, and little beside them."""


def stock(folder: Path, *names: str) -> list[Shelf]:
    """A shelf of a thousand rows each, used in this order a long time ago, held by nobody."""
    shelves = [open_toy_shelf(FeatureBank(folder), weights=name) for name in names]
    for at, shelf in enumerate(shelves):
        fill(shelf, *range(ROWS))
        os.utime(shelf.folder / "meta.json", (1000 + at, 1000 + at))
    return shelves


def left(*shelves: Shelf) -> list[bool]:
    return [shelf.folder.exists() for shelf in shelves]


def demand(folder: Path, rows: int = ROWS) -> None:
    """Room for more rows, asked for by a run of its own."""
    bank = FeatureBank(folder, limit=LIMIT)
    bank.make_room((open_toy_shelf(bank, weights="new"), rows))


def test_shelves_opened_through_a_bank_stay_while_it_lives(tmp_path: Path) -> None:
    shelves = stock(tmp_path, *"abc")
    run = FeatureBank(tmp_path, limit=LIMIT)
    for name in "ab":
        open_toy_shelf(run, weights=name)
    os.utime(shelves[2].folder / "meta.json", None)
    demand(tmp_path)
    assert left(*shelves) == [True, True, False]
    del run
    gc.collect()
    demand(tmp_path, 2 * ROWS)
    assert sum(left(*shelves)) == 1


def test_a_run_does_not_drop_its_own_shelves_for_a_later_one_of_its_own(tmp_path: Path) -> None:
    """Features, moments, mirror images, activations, the models of a comparison: each opened after the other."""
    run, shelves = FeatureBank(tmp_path, limit=LIMIT), []
    for name in "abc":
        shelf = open_toy_shelf(run, weights=name)
        run.make_room((shelf, ROWS))
        fill(shelf, *range(ROWS))
        shelves.append(shelf)
    with pytest.raises(CacheError, match="1000 more images bring those in use, by this run .* Raise it with cache_lim"):
        run.make_room((open_toy_shelf(run, weights="d"), ROWS))
    assert all(left(*shelves))
    for shelf in shelves:
        np.testing.assert_array_equal(shelf.table(name_images(5)).load(["top"]), rows_of(name_images(5))[:, 3:])


@pytest.mark.parametrize("kind", ["table", "part of it", "opened"])
def test_what_a_table_reads_from_stays_while_the_table_lives(tmp_path: Path, kind: str) -> None:
    shelves = stock(tmp_path, *"abc")
    table: object = shelves[0].table(name_images(1, 2))
    if kind == "part of it":
        table = shelves[0].table(name_images(1, 2)).take(np.array([1]))
    elif kind == "opened":
        table = shelves[0].table(name_images(1, 2)).opened()
    os.utime(shelves[0].folder / "meta.json", (1, 1))
    demand(tmp_path)
    assert left(*shelves) == [True, False, True]
    del table
    gc.collect()
    os.utime(shelves[0].folder / "meta.json", (1, 1))
    demand(tmp_path, 2 * ROWS)
    assert left(*shelves) == [False, False, True]


def test_features_moments_and_activations_of_one_run_are_all_held(tmp_path: Path) -> None:
    run, backbone = FeatureBank(tmp_path), make_backbone()
    images, ids = draw_images(4), name_images(*range(4))
    frozen_pass(backbone, Reader(images), ids, bank=run, sample=np.arange(2), device="cpu", progress=False)
    cache_activations(cut(backbone, "0"), Reader(images), ids, bank=run, stages=["0"], device="cpu", progress=False)
    frozen_pass(make_backbone(make_network(1)), Reader(images), ids, bank=run, device="cpu", progress=False)
    assert len(run.list_shelves()) == 5
    other = FeatureBank(tmp_path, limit=100_000)
    shelf = open_toy_shelf(other)
    with pytest.raises(CacheError, match="in use, by this run"):
        other.make_room((shelf, 100_000))
    assert len(run.list_shelves()) == 6


def test_the_bank_of_a_run_has_the_limit_that_was_asked_for(tmp_path: Path) -> None:
    assert open_bank(PassOptions(cache=tmp_path)).limit == 10 * 2**30
    assert open_bank(PassOptions(cache=tmp_path, cache_limit=1.0)).limit == 2**30


# Other processes

HOLD = """
import sys, time
import numpy as np
from tests.unit.features.features_toys import name_images, open_toy_shelf
from transferkit.features.bank import FeatureBank
bank = FeatureBank(sys.argv[1])
shelf = open_toy_shelf(bank, weights="a")
{more}
print("ready", flush=True)
while True:  # a signal that arrives just before a sleep does not shorten it
    time.sleep(0.1)
"""


def start(folder: Path, more: str = "") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(more=more), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_another_live_process_uses_stays_and_a_dead_ones_goes(tmp_path: Path) -> None:
    shelves = stock(tmp_path, *"abc")
    child = start(tmp_path)
    try:
        os.utime(shelves[0].folder / "meta.json", (1, 1))
        demand(tmp_path)
        assert left(*shelves) == [True, False, True]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert list(shelves[0].folder.glob("*.lease"))
    fill(shelves[0], ROWS + 1)  # a writer sweeps
    assert not list(shelves[0].folder.glob("*.lease"))
    demand(tmp_path, 2 * ROWS)
    assert left(*shelves) == [False, False, True]


def test_a_process_that_ends_leaves_no_lease(tmp_path: Path) -> None:
    (shelf,) = stock(tmp_path, "a")
    child = start(tmp_path, "import os, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))")
    assert list(shelf.folder.glob("*.lease"))
    child.terminate()
    child.communicate()
    assert not list(shelf.folder.glob("*.lease"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_end_the_hold_of_its_parent(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path)
    shelf = open_toy_shelf(bank)
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path; from transferkit.features.leases import Lease, is_leased\n"
            "folder = Path(sys.argv[1]); lease = Lease(folder); pid = os.fork()\n"
            "if not pid: del lease; os._exit(0)\n"
            "os.waitpid(pid, 0); print(sum(str(os.getpid()) in path.name for path in folder.glob('*.lease')))",
            str(shelf.folder),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout == "1\n"


@pytest.mark.parametrize(("hours", "held"), [(1, True), (23, True), (25, False)])
def test_a_lease_from_another_machine_counts_for_a_day(tmp_path: Path, hours: float, held: bool) -> None:
    lease = tmp_path / "elsewhere.example-with-dashes-12-abcdef.lease"
    lease.touch()
    os.utime(lease, (time.time() - 3600 * hours,) * 2)
    assert leases.is_leased(tmp_path) is held


def test_reading_renews_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf,) = stock(tmp_path, "a")
    table = shelf.table(name_images(1, 2))
    (lease,) = shelf.folder.glob("*.lease")
    os.utime(lease, (1, 1))
    table.load(["top"])
    assert lease.stat().st_mtime == 1  # within the hour
    monkeypatch.setattr(leases, "RENEWAL", -1.0)
    for read in (lambda: table.load(["top"]), lambda: table.opened().read(np.array([0]))):
        os.utime(lease, (1, 1))
        read()
        assert lease.stat().st_mtime > time.time() - 60


def test_clearing_by_hand_heeds_no_lease_and_the_run_goes_on(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path)
    fill(open_toy_shelf(bank), 1)
    bank.clear()
    assert bank.list_shelves() == []
    shelf = open_toy_shelf(bank)
    fill(shelf, 1)
    assert leases.is_leased(shelf.folder)
    np.testing.assert_array_equal(shelf.table(name_images(1)).load(["top"]), rows_of(name_images(1))[:, 3:])


# Rows that never came


def test_rows_that_do_not_fit_their_ids_are_refused_not_lost(tmp_path: Path) -> None:
    shelf = open_toy_shelf(FeatureBank(tmp_path))
    for rows in (np.zeros((4, WIDTH)), np.zeros((2, WIDTH + 1)), np.zeros((1, 2 * WIDTH)), np.zeros(2 * WIDTH)):
        with (
            pytest.raises(ValueError, match=r"Expected rows of shape \(2, 5\) for 2 ids, got"),
            shelf.writer() as writer,
        ):
            writer.append(name_images(1, 2), rows.astype(np.float32))
    assert shelf.missing(name_images(1, 2)).tolist() == [0, 1]


def test_only_what_was_there_is_said_to_be_gone(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path)
    shelf = open_toy_shelf(bank)
    with pytest.raises(CacheError, match="nobody has computed them"):
        shelf.table(name_images(1))
    fill(shelf, 1)
    with pytest.raises(CacheError, match="1 of 2 images .*nobody has computed them"):
        shelf.table(name_images(1, 2))
    bank.clear()
    with pytest.raises(CacheError, match="no longer in the feature bank .*cleared meanwhile"):
        shelf.table(name_images(1))


# Many rows


def test_the_index_of_many_segments_finds_every_row_and_reads_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, count = open_toy_shelf(FeatureBank(tmp_path)), 40_000
    ids = name_images(*np.random.default_rng(0).permutation(count).tolist())
    with shelf.writer() as writer:
        for start_at in range(0, count, 1000):
            part = ids[start_at : start_at + 1000]
            writer.append(part, np.repeat(np.arange(start_at, start_at + 1000, dtype=np.float32)[:, None], WIDTH, 1))
    asked = np.random.default_rng(1).integers(0, count, 5000)
    np.testing.assert_array_equal(shelf.table(ids[asked]).load(["top"])[:, 0], asked)
    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("read again"))
    assert shelf.missing(ids).tolist() == []
    assert shelf.missing(name_images(3, count + 5, 3, count + 7)).tolist() == [1, 3]
