"""Near pairs are found relative to their surroundings, and never by an N x N matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from transferkit.core.errors import DataError, OptionError
from transferkit.measure import compress_features, find_near_duplicates
from transferkit.measure import neighbours as module
from transferkit.measure.neighbours import nearest_rows


def two_densities(seed=0):
    """A tight and a wide class; row 5 has a near copy in the tight one, row 105 in the wide one."""
    rng = np.random.default_rng(seed)
    tight, wide = 0.05 * rng.normal(size=(100, 30)) + 2, rng.normal(size=(100, 30)) - 2
    tight[6], wide[6] = tight[5] + 0.005 * rng.normal(size=30), wide[5] + 0.1 * rng.normal(size=30)
    return np.concatenate([tight, wide])


def test_a_copy_is_near_in_units_of_its_surroundings():
    found = find_near_duplicates(two_densities(), least_score=0.5)
    assert sorted(found.pairs.tolist()) == [[5, 6], [105, 106]]
    assert (found.scores > 0.8).all()
    assert found.groups[6] == 5
    assert found.groups[106] == 105
    assert found.groups[50] == 50


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_the_unit_of_the_features_does_not_matter(seed, unit):
    rows = np.random.default_rng(seed).normal(size=(40, 6))
    one, other = (find_near_duplicates(scale * rows, least_score=0.3) for scale in (1.0, unit))
    assert one.pairs.tolist() == other.pairs.tolist()
    assert one.scores == pytest.approx(other.scores, abs=1e-3)


@pytest.mark.parametrize("images", [1, 2, 3, 18])
def test_few_images(images):
    rows = np.random.default_rng(0).normal(size=(images, 4))
    found = find_near_duplicates(rows, least_score=0.0)
    assert found.groups.shape == (images,)
    assert (found.pairs[:, 0] < found.pairs[:, 1]).all()


def test_equal_rows_all_of_them():
    assert (
        find_near_duplicates(np.ones((20, 3))).groups.tolist() == find_near_duplicates(np.ones((20, 3))).groups.tolist()
    )


def test_neighbours_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 2_000)  # several chunks
    rows = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float32)
    centred = rows - rows.mean(axis=0)
    _, expected = NearestNeighbors(n_neighbors=6, metric="cosine").fit(centred).kneighbors(centred)
    assert nearest_rows(rows, k=5).rows.tolist() == expected[:, 1:].tolist()


def test_variants_find_a_mirrored_row():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 16))
    rows[31] = rows[8][::-1]
    flips = np.stack([np.eye(16), np.eye(16)[::-1]])
    assert find_near_duplicates(rows, least_score=0.9).pairs.tolist() == []
    assert find_near_duplicates(rows, least_score=0.9, variants=flips).pairs.tolist() == [[8, 31]]


def test_compressed_features_keep_distances():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 40))
    own = compress_features(rows)
    expected = PCA(5).fit_transform(StandardScaler().fit_transform(rows)) / np.sqrt(40)
    difference = np.linalg.norm(own[:, None] - own, axis=2) - np.linalg.norm(expected[:, None] - expected, axis=2)
    assert np.abs(difference).max() < 1e-3
    assert (np.diff(own.std(axis=0)) < 1e-4).all()


def test_each_stage_weighs_the_same():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(size=(200, 1)), np.repeat(rng.normal(size=(200, 1)), 50, axis=1)
    own = compress_features(np.concatenate([narrow, wide], axis=1), {"a": slice(0, 1), "b": slice(1, 51)})
    assert own[:, :2].std(axis=0) == pytest.approx([1, 1], rel=0.15)


def test_constant_columns_do_not_count():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    with_constant = np.concatenate([rows, np.full((30, 1), 1e4 + 1 / 3, dtype=np.float32)], axis=1)
    near, plain = nearest_rows(compress_features(with_constant), k=3), nearest_rows(compress_features(rows), k=3)
    assert near.rows.tolist() == plain.rows.tolist()


def test_memory_beyond_the_features_is_bounded():
    rows = np.random.default_rng(0).normal(size=(12_000, 64)).astype(np.float32)
    tracemalloc.start()
    find_near_duplicates(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000**2 * 4 / 2  # half of an N x N matrix


def test_refusals():
    with pytest.raises(DataError, match=r"shape \(N, D\)"):
        find_near_duplicates(np.ones(4))
    with pytest.raises(DataError, match="NaN or infinite"):
        compress_features(np.array([[1.0, np.nan]]))
    with pytest.raises(OptionError, match="least_score"):
        find_near_duplicates(np.ones((4, 2)), least_score=1.0)
