"""Shelves that keep rows in two bytes, and tables that stay open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.features.features_toys import AT_REST, WIDTH, WIDTHS, fill, list_files, load_all, name_images, rows_of
from transferkit.core.errors import CacheError
from transferkit.features import shelf as shelf_module
from transferkit.features import tables as tables_module
from transferkit.features.bank import FeatureBank
from transferkit.features.shelf import Shelf
from transferkit.features.tables import RowOverflowError

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def open_half(bank: FeatureBank, dtype: str) -> Shelf:
    return bank.shelf({"weights": "w", "pooling": "avg"}, WIDTHS, dtype=dtype)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", HALVES)
def test_rows_come_back_rounded_as_torch_rounds_them(bank: FeatureBank, dtype: str) -> None:
    shelf = open_half(bank, dtype)
    fill(shelf, *range(9))
    ids = name_images(7, 0, 8, 8, 3, 1)
    expected = torch.from_numpy(rows_of(ids)).to(HALVES[dtype]).float().numpy()
    found = load_all(shelf, ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(shelf.table(ids).opened().read(np.arange(6)), expected)
    np.testing.assert_array_equal(shelf.table(ids).load(["top"]), expected[:, 3:])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_row_takes_half_the_disk(bank: FeatureBank, dtype: str) -> None:
    shelf = open_half(bank, dtype)
    fill(shelf, *range(6))
    (rows,) = shelf.folder.glob("*.rows")
    assert rows.stat().st_size == 6 * shelf.row_bytes == 6 * WIDTH * 2
    assert shelf.missing(name_images(5, 6)).tolist() == [1]


def test_each_dtype_has_a_shelf_of_its_own_and_float32_the_one_it_always_had(bank: FeatureBank) -> None:
    names = [open_half(bank, dtype).folder.name for dtype in ("float32", *HALVES)]
    assert len(set(names)) == 3
    assert names[0] == "27dd4723ba5ee3fad78f0a08"
    assert names[0] == bank.shelf({"weights": "w", "pooling": "avg"}, WIDTHS).folder.name


def test_a_value_beyond_float16_is_an_error_and_nothing_of_it_is_kept(bank: FeatureBank) -> None:
    shelf, ids = open_half(bank, "float16"), name_images(0, 1)
    rows = rows_of(ids)
    rows[1, 2] = -65520  # the first that rounds to infinity
    with pytest.raises(RowOverflowError, match=r"float16 holds values up to 65504, got 6.552e\+04"):
        write(shelf, ids, rows)
    assert list_files(bank.folder) == {".json"}
    rows[1, 2] = -65519
    write(shelf, ids, rows)
    assert load_all(shelf, ids)[1, 2] == -65504


def write(shelf: Shelf, ids: np.ndarray, rows: np.ndarray) -> None:
    with shelf.writer() as writer:
        writer.append(ids, rows)


def test_infinities_and_what_is_not_a_number_survive(bank: FeatureBank) -> None:
    rows = np.array([[np.inf, -np.inf, np.nan, -0.0, 3e38]], dtype=np.float32)
    for dtype in HALVES:
        shelf, kept = open_half(bank, dtype), rows.copy()
        if dtype == "float16":
            kept[0, 4] = 1
        write(shelf, name_images(0), kept)
        found = load_all(shelf, name_images(0))
        np.testing.assert_allclose(found, kept, rtol=0.01)
        assert np.signbit(found[0, 3])


@given(st.floats(width=32, allow_nan=False))
def test_two_bytes_are_read_as_torch_reads_them(value: float) -> None:
    row = np.array([[value]], dtype=np.float32)
    packed = tables_module.pack_rows(row, "bfloat16")
    expected = torch.tensor(value).to(torch.bfloat16).float().item()
    assert tables_module.unpack_rows(packed, "bfloat16").item() == expected


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_a_segment_is_committed_once_it_is_large(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    shelf = open_half(bank, dtype)
    monkeypatch.setattr(shelf_module, "SEGMENT_BYTES", 3 * shelf.row_bytes)
    ids = name_images(*range(7))
    with shelf.writer() as writer:
        for start in range(7):
            writer.append(ids[start : start + 1], rows_of(ids[start : start + 1]))
    assert sorted(path.stat().st_size // 32 for path in shelf.folder.glob("*.ids")) == [1, 3, 3]
    assert list_files(bank.folder) == AT_REST


def test_room_is_made_for_what_rows_really_take(bank: FeatureBank) -> None:
    needed = 1000 * (WIDTH * 2 + 32)
    small = FeatureBank(bank.folder, limit=needed + 2000)
    small.make_room((open_half(small, "float16"), 1000))
    with pytest.raises(CacheError, match="1000 more images"):
        small.make_room((open_half(small, "float32"), 1000))


# Tables that stay open


@pytest.mark.usefixtures("small_pieces")
def test_an_open_table_is_read_in_any_order_across_segments(shelf: Shelf) -> None:
    ids = fill(shelf, *range(11))
    opened = shelf.table(ids[::-1]).opened()
    assert len(opened) == 11
    for rows in ([0], [10, 0, 10, 4, 5], [], range(11)):
        at = np.array(rows, dtype=np.int64)
        np.testing.assert_array_equal(opened.read(at), rows_of(ids[::-1][at]).reshape(-1, WIDTH))


def test_what_is_read_may_be_written_to(shelf: Shelf) -> None:
    opened = shelf.table(fill(shelf, 1, 2)).opened()
    opened.read(np.array([0, 1]))[:] = 0
    np.testing.assert_array_equal(opened.read(np.array([0, 1])), rows_of(name_images(1, 2)))


def test_clearing_the_bank_does_not_reach_an_open_table(bank: FeatureBank, shelf: Shelf) -> None:
    ids = fill(shelf, 1, 2, 3)
    opened = shelf.table(ids).opened()
    bank.clear()
    np.testing.assert_array_equal(opened.read(np.array([2, 0])), rows_of(ids[[2, 0]]))
