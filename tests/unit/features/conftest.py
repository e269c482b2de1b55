"""A bank, a shelf in it, and small limits so that a few rows cross every boundary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.features.features_toys import open_toy_shelf
from transferkit.features import shelf as shelf_module
from transferkit.features import tables as tables_module
from transferkit.features.bank import FeatureBank
from transferkit.features.shelf import Shelf


@pytest.fixture
def bank(tmp_path: Path) -> FeatureBank:
    return FeatureBank(tmp_path / "bank")


@pytest.fixture
def shelf(bank: FeatureBank) -> Shelf:
    return open_toy_shelf(bank)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 4 rows, chunks of 3."""
    monkeypatch.setattr(shelf_module, "SEGMENT_ROWS", 4)
    monkeypatch.setattr(tables_module, "CHUNK_ROWS", 3)
