"""The mean of several tables against the mean of their rows."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.core.errors import OptionError
from transferkit.features import FeatureBank, average_tables
from transferkit.features import tables as tables_module

IDS = np.array([f"{number:032x}".encode() for number in range(7)], dtype="S32")


def keep(bank: FeatureBank, name: str, rows: np.ndarray, *, dtype: str = "float32", ids=IDS, widths=None):
    shelf = bank.shelf({"name": name}, widths or {"a": 2, "b": 3}, dtype=dtype)
    with shelf.writer() as writer:
        writer.append(ids, rows)
    return shelf.table(ids)


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)


@pytest.fixture
def tables(tmp_path, rows):
    bank = FeatureBank(tmp_path)
    return [keep(bank, f"view {number}", part) for number, part in enumerate(rows)]


def test_rows_are_the_mean_and_everything_else_is_as_in_one_table(tables, rows, monkeypatch):
    monkeypatch.setattr(tables_module, "CHUNK_ROWS", 3)
    table, mean = average_tables(tables), rows.mean(axis=0)
    assert (len(table), table.width, table.blocks) == (7, 5, tables[0].blocks)
    assert [len(chunk) for chunk in table.chunks()] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(list(table.chunks())), mean, rtol=1e-6)
    np.testing.assert_allclose(table.load(["b"]), mean[:, 2:], rtol=1e-6)
    blocks, columns = table.select(["b"])
    assert blocks == {"b": slice(0, 3)}
    np.testing.assert_allclose(next(table.chunks(columns)), mean[:3, 2:], rtol=1e-6)
    order = np.array([5, 0, 0, 6])
    np.testing.assert_allclose(table.take(order).load(["a", "b"]), mean[order], rtol=1e-6)
    np.testing.assert_allclose(table.opened().read(order), mean[order], rtol=1e-6)
    assert len(table.opened()) == 7


def test_one_table_is_its_own_mean(tables):
    assert average_tables(tables[:1]) is tables[0]


def test_tables_of_half_precision_are_averaged_in_single(tmp_path, rows):
    bank = FeatureBank(tmp_path)
    kept = [keep(bank, f"half {number}", part, dtype="float16") for number, part in enumerate(rows[:2])]
    exact = rows[:2].astype(np.float16).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(average_tables(kept).load(["a", "b"]), exact, rtol=1e-6)


@pytest.mark.parametrize("other", ["rows", "columns", "none"])
def test_tables_of_other_images_or_stages_are_refused(tmp_path, tables, rows, other):
    bank = FeatureBank(tmp_path / "other")
    odd = {
        "rows": lambda: [tables[0], keep(bank, "x", rows[0, :4], ids=IDS[:4])],
        "columns": lambda: [tables[0], keep(bank, "x", rows[0], widths={"a": 3, "b": 2})],
        "none": lambda: [],
    }[other]()
    with pytest.raises(OptionError, match="same rows and columns"):
        average_tables(odd)
