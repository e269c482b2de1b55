"""The bank gives back, bit by bit, what was put in; and nothing that was not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.features.features_toys import (
    AT_REST,
    WIDTH,
    WIDTHS,
    fill,
    list_files,
    load_all,
    name_images,
    open_toy_shelf,
    rows_of,
)
from transferkit.core.errors import CacheError
from transferkit.features import bank as bank_module
from transferkit.features import default_folder
from transferkit.features import shelf as shelf_module
from transferkit.features import tables as tables_module
from transferkit.features.bank import FeatureBank
from transferkit.features.shelf import Shelf
from transferkit.features.tables import Ids

ROW_BYTES = WIDTH * 4 + 32


# Rows


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 13])
def test_rows_come_back_bit_equal_in_any_order(shelf: Shelf, count: int) -> None:
    fill(shelf, *range(count))
    asked = name_images(*np.random.default_rng(count).integers(0, count, 2 * count).tolist())
    np.testing.assert_array_equal(load_all(shelf, asked).view(np.uint32), rows_of(asked).view(np.uint32))


def test_special_floats_survive(shelf: Shelf) -> None:
    ids = name_images(1)
    row = np.array([[-0.0, np.float32(1e-45), np.finfo(np.float32).max, np.inf, np.nan]], dtype=np.float32)
    with shelf.writer() as writer:
        writer.append(ids, row)
    np.testing.assert_array_equal(load_all(shelf, ids).view(np.uint32), row.view(np.uint32))


def test_rows_of_another_layout_or_dtype_are_stored_as_float32(shelf: Shelf) -> None:
    ids = name_images(*range(6))
    with shelf.writer() as writer:
        writer.append(ids[:3], np.asfortranarray(rows_of(ids[:3])))
        writer.append(ids[3:], rows_of(ids[3:]).astype(np.float64))
    np.testing.assert_array_equal(load_all(shelf, ids), rows_of(ids))


@pytest.mark.usefixtures("small_pieces")
def test_writers_append_to_what_is_there(shelf: Shelf) -> None:
    for numbers in ([0], [1, 2, 3, 4, 5, 6], [7, 8]):
        fill(shelf, *numbers)
    ids = name_images(8, 0, 6, 3, 1)
    np.testing.assert_array_equal(load_all(shelf, ids), rows_of(ids))


def test_a_writer_without_rows_leaves_nothing(shelf: Shelf) -> None:
    with shelf.writer():
        pass
    assert list_files(shelf.folder) == {".json"}


@pytest.mark.usefixtures("small_pieces")
def test_only_the_stages_asked_for_are_read(shelf: Shelf) -> None:
    ids = fill(shelf, *range(10))
    table, rows = shelf.table(ids), rows_of(ids)
    np.testing.assert_array_equal(table.load(["early"]), rows[:, :3])
    np.testing.assert_array_equal(table.load(["top"]), rows[:, 3:])
    np.testing.assert_array_equal(table.load(["top", "early"]), rows[:, [3, 4, 0, 1, 2]])
    assert table.select(["top", "early"])[0] == {"top": slice(0, 2), "early": slice(2, 5)}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])])
def test_chunks_cover_the_table_in_order(shelf: Shelf, count: int, sizes: list[int]) -> None:
    ids = fill(shelf, *range(count))[::-1]
    chunks = list(shelf.table(ids).chunks())
    assert [len(chunk) for chunk in chunks] == sizes
    assert all(chunk.dtype == np.float32 for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), rows_of(ids))


def test_chunks_can_be_read_again_and_changed_without_touching_the_bank(shelf: Shelf) -> None:
    ids = fill(shelf, 1, 2)
    table = shelf.table(ids)
    next(table.chunks())[:] = 0
    np.testing.assert_array_equal(next(table.chunks()), rows_of(ids))


@pytest.mark.usefixtures("small_pieces")
def test_taking_rows_of_a_table_twice_composes(shelf: Shelf) -> None:
    ids = fill(shelf, *range(9))
    table = shelf.table(ids).take(np.array([8, 2, 2, 5])).take(np.array([3, 0]))
    assert len(table) == 2
    np.testing.assert_array_equal(table.load(list(WIDTHS)), rows_of(ids[[5, 8]]))


def test_a_table_of_no_images_has_no_rows(shelf: Shelf) -> None:
    table = shelf.table(fill(shelf, 1)).take(np.array([], dtype=np.int64))
    assert table.load(["top"]).shape == (0, 2)
    assert load_all(shelf, name_images()).shape == (0, WIDTH)


def test_missing_names_the_first_of_equal_images_only(shelf: Shelf) -> None:
    fill(shelf, 1, 3)
    assert shelf.missing(name_images(5, 1, 2, 5, 3, 2, 4)).tolist() == [0, 2, 6]
    assert shelf.missing(name_images(3, 1, 1)).tolist() == []
    assert shelf.missing(name_images()).tolist() == []


def test_an_image_that_was_never_written_is_an_error(shelf: Shelf) -> None:
    fill(shelf, 1)
    with pytest.raises(CacheError, match="2 of 3 images are not in the feature bank at .*: nobody has computed them"):
        shelf.table(name_images(1, 2, 0))


def _write_then_raise(shelf: Shelf, *parts: Ids, error: BaseException) -> None:
    with shelf.writer() as writer:
        for ids in parts:
            writer.append(ids, rows_of(ids))
        raise error


def _write_around(shelf: Shelf, ids: Ids, event: Callable[[], object]) -> None:
    """The first row, then the event, then the others."""
    with shelf.writer() as writer:
        writer.append(ids[:1], rows_of(ids[:1]))
        event()
        writer.append(ids[1:], rows_of(ids[1:]))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.lists(st.integers(0, 30), min_size=1, max_size=12)),
            st.tuples(st.just("fail"), st.lists(st.integers(0, 30), min_size=1, max_size=3)),
            st.tuples(st.just("read"), st.lists(st.integers(0, 30), max_size=12)),
            st.tuples(st.just("clear"), st.just([])),
        ),
        max_size=12,
    ),
    piece=st.integers(1, 5),
)
def test_any_sequence_of_steps_equals_a_dict(steps: list[tuple[str, list[int]]], piece: int) -> None:
    known: dict[int, np.ndarray] = {}
    before = shelf_module.SEGMENT_ROWS, tables_module.CHUNK_ROWS
    shelf_module.SEGMENT_ROWS, tables_module.CHUNK_ROWS = 4, piece
    folder = tempfile.mkdtemp()
    try:
        bank = FeatureBank(folder)
        for step, numbers in steps:
            shelf = open_toy_shelf(bank)
            ids = name_images(*numbers)
            expected = {numbers.index(n): n for n in numbers if n not in known}
            assert shelf.missing(ids).tolist() == sorted(expected)
            if step == "write":
                absent = ids[shelf.missing(ids)]
                with shelf.writer() as writer:
                    for start in range(0, len(absent), piece):
                        writer.append(absent[start : start + piece], rows_of(absent[start : start + piece]))
                known |= {int(name, 16): rows_of(absent[i : i + 1])[0] for i, name in enumerate(absent)}
            elif step == "fail":  # below SEGMENT_ROWS: nothing is committed
                with pytest.raises(ZeroDivisionError):
                    _write_then_raise(shelf, ids, error=ZeroDivisionError())
            elif step == "clear":
                bank.clear()
                known.clear()
            elif expected:
                with pytest.raises(CacheError, match="not in the feature bank at .*nobody has computed"):
                    shelf.table(ids)
            else:
                np.testing.assert_array_equal(
                    load_all(shelf, ids), np.array([known[n] for n in numbers], np.float32).reshape(-1, WIDTH)
                )
    finally:
        shelf_module.SEGMENT_ROWS, tables_module.CHUNK_ROWS = before
        shutil.rmtree(folder)


# Exceptions and damage


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
def test_an_exception_while_writing_leaves_only_what_was_committed(
    shelf: Shelf, interruption: type[BaseException]
) -> None:
    ids = name_images(*range(6))
    with pytest.raises(interruption):
        _write_then_raise(shelf, ids[:4], ids[4:], error=interruption())
    assert list_files(shelf.folder) == AT_REST
    assert shelf.missing(ids).tolist() == [4, 5]
    np.testing.assert_array_equal(load_all(shelf, ids[:4]), rows_of(ids[:4]))


@pytest.mark.parametrize("error", [OSError("broken picture"), FileNotFoundError(2, "gone"), RuntimeError("decoder")])
def test_errors_that_are_not_the_banks_pass_through_the_writer_unchanged(shelf: Shelf, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, shelf.writer():
        raise error
    assert caught.value is error


def _cut_rows(rows: Path) -> None:
    os.truncate(rows, rows.stat().st_size - 1)


def _cut_rows_by_a_row(rows: Path) -> None:
    os.truncate(rows, rows.stat().st_size - WIDTH * 4)


def _lengthen_rows(rows: Path) -> None:
    rows.write_bytes(rows.read_bytes() + bytes(WIDTH * 4))


def _empty_rows(rows: Path) -> None:
    os.truncate(rows, 0)


def _cut_ids(rows: Path) -> None:
    os.truncate(rows.with_suffix(".ids"), 33)


def _empty_ids(rows: Path) -> None:
    os.truncate(rows.with_suffix(".ids"), 0)


def _lose_rows(rows: Path) -> None:
    rows.unlink()


def _lose_ids(rows: Path) -> None:
    rows.with_suffix(".ids").unlink()


def _scramble_ids(rows: Path) -> None:
    rows.with_suffix(".ids").write_bytes(bytes(range(96)))


DAMAGES = [
    _cut_rows,
    _cut_rows_by_a_row,
    _lengthen_rows,
    _empty_rows,
    _cut_ids,
    _empty_ids,
    _lose_rows,
    _lose_ids,
    _scramble_ids,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_segment_is_never_read_and_its_rows_are_asked_for_again(
    shelf: Shelf, damage: Callable[[Path], None]
) -> None:
    healthy = fill(shelf, 10, 11)
    whole = set(shelf.folder.glob("*.rows"))
    ids = fill(shelf, 0, 1, 2)
    (segment,) = set(shelf.folder.glob("*.rows")) - whole
    damage(segment)
    assert shelf.missing(ids).tolist() == [0, 1, 2]
    with pytest.raises(CacheError, match="3 of 5 images"):
        shelf.table(np.concatenate([healthy, ids]))
    fill(shelf, 0, 1, 2)
    both = np.concatenate([ids, healthy])
    np.testing.assert_array_equal(load_all(shelf, both), rows_of(both))


# Leftovers of others


def _leave(shelf: Shelf, name: str, *, age: float = 0) -> Path:
    path = shelf.folder / name
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("suffix", ["partial", "ids-partial"])
def test_what_a_live_process_or_another_machine_is_writing_stays(shelf: Shelf, suffix: str) -> None:
    alive = _leave(shelf, f"{socket.gethostname()}-{os.getppid()}-abc.{suffix}")
    elsewhere = _leave(shelf, f"other-host-99999999-abc.{suffix}")  # no such process here
    fill(shelf, 1)
    assert alive.exists()
    assert elsewhere.exists()


@pytest.mark.parametrize("suffix", ["partial", "ids-partial"])
def test_what_nobody_has_touched_for_days_is_swept_whoever_left_it(shelf: Shelf, suffix: str) -> None:
    left = _leave(shelf, f"other-host-1-abc.{suffix}", age=3 * 24 * 3600)
    fill(shelf, 1)
    assert not left.exists()


def test_rows_without_ids_are_swept_only_once_no_writer_can_be_between_the_two_renames(shelf: Shelf) -> None:
    young, old = _leave(shelf, "a.rows"), _leave(shelf, "b.rows", age=120)
    fill(shelf, 1)
    assert young.exists()
    assert not old.exists()


def test_two_sweeps_at_once_do_not_trip_over_each_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave(shelf, "b.rows", age=120)
    real = Path.stat

    def lose_the_race(path: Path, **options: bool) -> os.stat_result:
        if path.name == "b.rows":
            path.unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", lose_the_race)
    ids = fill(shelf, 1)
    np.testing.assert_array_equal(load_all(shelf, ids), rows_of(ids))


def test_clearing_the_bank_between_opening_and_reading_is_explained(bank: FeatureBank, shelf: Shelf) -> None:
    ids = fill(shelf, 1, 2)
    table = shelf.table(ids)
    bank.clear()
    with pytest.raises(CacheError, match="cleared meanwhile.*Run again."):
        table.load(["top"])
    with pytest.raises(CacheError, match="cleared meanwhile.*Run again."):
        shelf.table(ids)
    assert shelf.missing(ids).tolist() == [0, 1]


def test_clearing_the_bank_while_another_writes_is_explained(bank: FeatureBank, shelf: Shelf) -> None:
    ids = name_images(1, 2)
    with pytest.raises(CacheError, match="cleared meanwhile.*Run again."):
        _write_around(shelf, ids, bank.clear)
    assert not list_files(bank.folder)


def test_losing_the_half_written_file_never_commits_the_other_half(shelf: Shelf) -> None:
    ids = name_images(1, 2)
    with pytest.raises(CacheError, match="cleared meanwhile.*Run again."):
        _write_around(shelf, ids, lambda: [path.unlink() for path in shelf.folder.glob("*.partial")])
    assert list_files(shelf.folder) == {".json"}


def test_clearing_between_the_listing_and_the_reading_of_ids_is_not_a_crash(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(shelf, 1)
    real = np.fromfile

    def vanish(path: Path, *args: object, **options: object) -> np.ndarray:
        Path(path).unlink()
        return real(path, *args, **options)

    monkeypatch.setattr(np, "fromfile", vanish)
    assert shelf.missing(ids).tolist() == [0]


# Folders


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRANSFERKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "transferkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "transferkit"
    monkeypatch.setenv("TRANSFERKIT_CACHE", "~/mine")
    assert default_folder() == tmp_path / "mine"
    assert FeatureBank().folder == tmp_path / "mine"
    monkeypatch.setenv("TRANSFERKIT_CACHE", "")
    assert default_folder() == tmp_path / "xdg" / "transferkit"


def test_making_a_bank_touches_nothing(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path / "none")
    assert bank.list_shelves() == []
    assert bank.clear() == 0
    assert not bank.folder.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_folder_should_be_is_explained(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    bank = FeatureBank(tmp_path / "taken" / below)
    with pytest.raises(CacheError, match=r"The feature bank at .*taken.* cannot be used: .*choose another folder"):
        open_toy_shelf(bank)


@pytest.fixture
def mere_mortal(locked_folder: Path) -> Iterator[None]:
    """Not root, for whom every folder is writable."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs user ids")
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """Open to all on the way, which `tmp_path` is not; closed for writing."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.usefixtures("mere_mortal")
def test_an_unwritable_folder_is_explained(locked_folder: Path) -> None:
    with pytest.raises(CacheError, match=r"tmp.* cannot be used: Permission denied\. .*choose another folder"):
        open_toy_shelf(FeatureBank(locked_folder))


# Shelves


def test_a_shelf_is_found_again_by_the_same_description_in_any_order(bank: FeatureBank) -> None:
    first = bank.shelf({"weights": "w", "pooling": "avg"}, WIDTHS)
    again = bank.shelf({"pooling": "avg", "weights": "w"}, WIDTHS)
    others = [
        bank.shelf({"weights": "v", "pooling": "avg"}, WIDTHS),
        bank.shelf({"weights": "w", "pooling": "max"}, WIDTHS),
        bank.shelf({"weights": "w", "pooling": "avg"}, {"top": 5}),
        bank.shelf({"weights": "w", "pooling": "avg"}, {"top": 2, "early": 3}),
    ]
    assert again.folder == first.folder
    assert len({first.folder, *(other.folder for other in others)}) == 5


def test_list_shelves_says_what_is_there_most_recent_first(bank: FeatureBank) -> None:
    old, new = open_toy_shelf(bank, weights="a"), open_toy_shelf(bank, weights="b")
    fill(old, 1, 2, 3)
    fill(new, 1)
    os.utime(old.folder / "meta.json", (1, 1))
    first, second = bank.list_shelves()
    assert [first.name, second.name] == [new.folder.name, old.folder.name]
    assert (second.backbone, second.image_size, second.pooling, second.images) == ("toy", 32, "avg", 3)
    assert second.size >= 3 * ROW_BYTES
    assert second.last_used == 1


def test_reading_a_shelf_counts_as_using_it(bank: FeatureBank, shelf: Shelf) -> None:
    ids = fill(shelf, 1)
    os.utime(shelf.folder / "meta.json", (1, 1))
    shelf.table(ids)
    assert bank.list_shelves()[0].last_used > time.time() - 60


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"image_size": "large"}', '{"image_size": null}', "\x00"])
def test_a_shelf_with_unreadable_meta_is_still_listed_and_cleared(bank: FeatureBank, shelf: Shelf, text: str) -> None:
    fill(shelf, 1, 2)
    (shelf.folder / "meta.json").write_text(text)
    (info,) = bank.list_shelves()
    assert (info.name, info.images) == (shelf.folder.name, 2)
    assert bank.clear() >= 2 * ROW_BYTES
    assert not shelf.folder.exists()


def test_clear_removes_one_shelf_or_all(bank: FeatureBank) -> None:
    shelves = [open_toy_shelf(bank, weights=name) for name in "abc"]
    for shelf in shelves:
        fill(shelf, 1)
    assert bank.clear(shelves[0].folder.name) >= ROW_BYTES
    assert [shelf.folder.exists() for shelf in shelves] == [False, True, True]
    assert bank.clear("no-such-shelf") == 0
    assert bank.clear() >= 2 * ROW_BYTES
    assert bank.list_shelves() == []


def test_clear_touches_nothing_but_shelves(bank: FeatureBank, shelf: Shelf) -> None:
    fill(shelf, 1)
    (bank.folder / "mine.txt").write_text("kept")
    bank.clear("..")
    bank.clear()
    assert (bank.folder / "mine.txt").exists()


def test_meta_tells_people_what_the_shelf_is(shelf: Shelf) -> None:
    meta = json.loads((shelf.folder / "meta.json").read_text())
    assert meta["backbone"] == "toy"
    assert meta["columns"] == {"early": [0, 3], "top": [3, 5]}


# Room


def _three_shelves(folder: Path) -> list[Shelf]:
    """Each with 1000 rows, used in the order a, b, c."""
    shelves = [open_toy_shelf(FeatureBank(folder), weights=name) for name in "abc"]
    for age, shelf in enumerate(shelves):
        fill(shelf, *range(1000))
        os.utime(shelf.folder / "meta.json", (1000 + age, 1000 + age))
    return shelves


@pytest.mark.parametrize(
    ("limit_rows", "left"), [(4100 + 1000, [True] * 3), (4100, [False, True, True]), (3100, [False, False, True])]
)
def test_the_least_recently_used_shelves_make_room(tmp_path: Path, limit_rows: int, left: list[bool]) -> None:
    a, b, c = _three_shelves(tmp_path)
    bank = FeatureBank(tmp_path, limit=limit_rows * ROW_BYTES + 20_000)
    bank.make_room((c, 2000))
    assert [shelf.folder.exists() for shelf in (a, b, c)] == left


def test_the_shelf_in_use_is_never_dropped_even_when_it_is_the_oldest(tmp_path: Path) -> None:
    a, b, c = _three_shelves(tmp_path)
    FeatureBank(tmp_path, limit=3100 * ROW_BYTES).make_room((a, 2000))
    assert a.folder.exists()
    assert not b.folder.exists()
    assert not c.folder.exists()


def test_a_need_above_the_limit_is_an_error_and_costs_nobody_a_shelf(tmp_path: Path) -> None:
    shelves = _three_shelves(tmp_path)
    with pytest.raises(CacheError, match=r"2000 more images .*limit of .*Raise it with cache_limit"):
        FeatureBank(tmp_path, limit=1500 * ROW_BYTES).make_room((shelves[2], 2000))
    assert all(shelf.folder.exists() for shelf in shelves)


@pytest.mark.parametrize(("free_rows", "left"), [(1000, [True] * 3), (200, [False, True, True])])
def test_shelves_are_dropped_for_free_disk_as_far_as_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_rows: int, left: list[bool]
) -> None:
    shelves = _three_shelves(tmp_path)
    _leave_free(monkeypatch, free_rows * ROW_BYTES)
    FeatureBank(tmp_path).make_room((shelves[2], 1000))
    assert [shelf.folder.exists() for shelf in shelves] == left


def test_too_little_free_disk_is_an_error_that_costs_nobody_a_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelves = _three_shelves(tmp_path)
    _leave_free(monkeypatch, -1000)
    with pytest.raises(CacheError, match=r"only 0 MB are free at .*choose another folder with cache=DIR"):
        FeatureBank(tmp_path).make_room((shelves[0], 3000))
    assert all(shelf.folder.exists() for shelf in shelves)


def _leave_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=bank_module.SPARE + free))


def test_a_shelf_that_disappears_while_sizes_are_added_up_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = _three_shelves(tmp_path)
    real, gone = os.scandir, []

    def vanish(path: object = ".") -> object:
        if Path(str(path)).name == a.folder.name and not gone:
            gone.append(a)
            shutil.rmtree(a.folder)
        return real(path)

    monkeypatch.setattr(os, "scandir", vanish)
    FeatureBank(tmp_path).make_room((c, 10))
    monkeypatch.undo()
    assert gone
    assert [shelf.folder.exists() for shelf in (b, c)] == [True, True]
