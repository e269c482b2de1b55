"""The stand-in for the cache shows what the cache holds, and what is written there does not reach it."""

from __future__ import annotations

import numpy as np

from transferkit.core.scratch_cache import scratch_cache
from transferkit.features import FeatureBank

IDS = np.array([b"a", b"b"])
ROWS = np.array([[1, 2], [3, 4]], dtype=np.float32)


def test_rows_are_there_and_new_ones_do_not_reach_the_bank(tmp_path):
    bank = FeatureBank(tmp_path / "bank")
    with bank.shelf({"weights": "w"}, {"top": 2}).writer() as writer:
        writer.append(IDS, ROWS)
    (tmp_path / "bank" / "engines.json").write_text("{}", encoding="utf-8")
    before = sorted(path for path in (tmp_path / "bank").rglob("*") if path.suffix != ".lease")
    with scratch_cache(tmp_path / "bank") as scratch:
        copy = FeatureBank(scratch)
        shelf = copy.shelf({"weights": "w"}, {"top": 2})
        assert shelf.table(IDS[::-1]).load(["top"]).tolist() == [[3, 4], [1, 2]]
        with shelf.writer() as writer:
            writer.append(np.array([b"c"]), ROWS[:1])
        (scratch / "engines.json").write_text("{1}", encoding="utf-8")
        copy.clear()
    assert not scratch.exists()
    assert sorted(path for path in (tmp_path / "bank").rglob("*") if path.suffix != ".lease") == before
    assert (tmp_path / "bank" / "engines.json").read_text(encoding="utf-8") == "{}"
    assert bank.shelf({"weights": "w"}, {"top": 2}).table(IDS).load(["top"]).tolist() == ROWS.tolist()


def test_a_cache_that_is_not_there_is_empty_and_not_made(tmp_path):
    with scratch_cache(tmp_path / "none") as scratch:
        assert not list(scratch.iterdir())
    assert not (tmp_path / "none").exists()
