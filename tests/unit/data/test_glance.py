"""A glance at image files: which are remembered, which are read, and what stands for the others."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from transferkit.data import open_data, remembered
from transferkit.data.glance import SAMPLE, Glance


@pytest.fixture
def many(tmp_path):
    """ROOT/{a,b}/*.png: 2 x 40 small pictures, all different."""
    root, rng = tmp_path / "many", np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_files_are_listed_and_some_are_read(many, own_cache):
    glance = Glance(own_cache, max_pixels=10**6)
    found = open_data(str(many), inspect=glance, progress=False)
    assert (glance.files, glance.unread, glance.listed) == (80, 80, 80 - SAMPLE)
    assert glance.seconds > 0
    plain = open_data(str(many), progress=False)
    assert found.summary.counts == plain.summary.counts
    assert found.items == plain.items
    assert (found.sizes == (20, 12)).all()


def test_what_an_audit_remembers_is_not_read_again(many, own_cache, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED", -(10**12))  # the files were written just now
    plain = open_data(str(many), progress=False)
    glance = Glance(own_cache, max_pixels=plain._reader.max_pixels)
    found = open_data(str(many), inspect=glance, progress=False)
    assert (glance.unread, glance.listed, glance.seconds) == (0, 0, 0.0)
    assert (found.content_ids == plain.content_ids).all()
    assert found.summary == plain.summary


def test_listed_files_are_like_no_other(many, own_cache):
    found = open_data(str(many), inspect=Glance(own_cache, max_pixels=10**6), progress=False)
    assert len(np.unique(found.content_ids)) == 80
    assert len(np.unique(found.groups)) == 80


def test_empty_and_missing_files_are_found_without_reading(many, own_cache, tmp_path):
    (many / "a" / "x.png").write_bytes(b"")
    table = tmp_path / "table.csv"
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(many.rglob("*.png"))]
    rows = [f"{name},{name.split('/')[1]}" for name in [*names, "many/b/gone.png"]]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    found = open_data(str(table), inspect=Glance(own_cache, max_pixels=10**6), progress=False)
    assert len(found) == 80
    assert {finding.kind for finding in found.summary.findings} >= {"zero_byte", "missing"}
