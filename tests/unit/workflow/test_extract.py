"""Processes that extract their ranges: every image once, what is done is kept, and analyze finds all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transferkit.core.errors import CacheError, DataError, OptionError
from transferkit.data import list_source, open_data, pack_shards
from transferkit.options import PassOptions
from transferkit.workflow import extract
from transferkit.workflow.extract import extract_features, own_range
from transferkit.workflow.session import open_session

MODEL = "timm/test_resnet"
OPTIONS = PassOptions(image_size=32, pretrained=False, device="cpu", views=1, progress=False, seed=3)


@pytest.fixture
def shards(stripes: Path, tmp_path: Path) -> Path:
    """36 stripes in a few shards."""
    pack_shards(list_source(stripes), tmp_path / "shards", megabytes=0.02, progress=False)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 3
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "PART", 5)


def rows_of(cache: Path, *shelves: str) -> list[bytes]:
    return [one for shelf in shelves for file in sorted((cache / "v1" / shelf).glob("*.ids"))
            for one in np.fromfile(file, dtype="S32").tolist()]  # fmt: skip


@given(images=st.integers(0, 10_000), world=st.integers(1, 60))
def test_ranges_join_without_gap_or_overlap(images: int, world: int) -> None:
    ranges = [own_range(images, rank, world) for rank in range(world)]
    assert [number for start, stop in ranges for number in range(start, stop)] == list(range(images))
    sizes = {stop - start for start, stop in ranges}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 5])
def test_each_image_is_computed_once_and_analyze_computes_none(world: int, shards: Path, own_cache: Path) -> None:
    done = [extract_features(MODEL, shards, OPTIONS, rank=rank, world=world) for rank in range(world)]
    assert sum(one.computed for one in done) == 36
    assert len({one.shelves for one in done}) == 1
    found, expected = rows_of(own_cache, *done[0].shelves), open_data(shards).content_ids.tolist()
    assert sorted(found) == sorted(expected)
    session = open_session(MODEL, shards, OPTIONS)
    assert session.measured.evidence.images_computed == 0
    assert sorted(rows_of(own_cache, *done[0].shelves)) == sorted(expected)


def test_features_are_those_of_analyze(shards: Path, stripes: Path, tmp_path: Path) -> None:
    extract_features(MODEL, shards, PassOptions(**{**vars(OPTIONS), "cache": tmp_path / "a"}))
    options = [PassOptions(**{**vars(OPTIONS), "cache": tmp_path / name}) for name in ("a", "b")]
    tables = [
        session.measured.table.load(list(session.measured.table.blocks))
        for session in (
            open_session(MODEL, source, one) for source, one in zip((shards, stripes), options, strict=True)
        )
    ]
    assert np.allclose(*tables, atol=1e-5 * np.abs(tables[0]).max())


def test_a_process_that_was_killed_goes_on(shards: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill, calls = extract.fill_shelves, []

    def die_later(*given: object, **how: object) -> int:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fill(*given, **how)

    monkeypatch.setattr(extract, "fill_shelves", die_later)
    with pytest.raises(KeyboardInterrupt):
        extract_features(MODEL, shards, OPTIONS)
    monkeypatch.setattr(extract, "fill_shelves", fill)
    done = extract_features(MODEL, shards, OPTIONS)
    assert done.computed == 36 - 10
    found = rows_of(own_cache, *done.shelves)
    assert len(found) == len(set(found)) == 36
    assert extract_features(MODEL, shards, OPTIONS).computed == 0


def test_another_number_of_processes_goes_on_too(shards: Path) -> None:
    first = extract_features(MODEL, shards, OPTIONS, rank=1, world=2)
    rest = [extract_features(MODEL, shards, OPTIONS, rank=rank, world=3).computed for rank in range(3)]
    assert first.computed + sum(rest) == 36
    assert rest == [12, 6, 0]


def test_banks_of_machines_without_common_disk_are_merged_by_copying(shards: Path, tmp_path: Path) -> None:
    caches = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for rank, cache in enumerate(caches):
        extract_features(MODEL, shards, PassOptions(**{**vars(OPTIONS), "cache": cache}), rank=rank, world=2)
    for file in (caches[1] / "v1").glob("*/*"):
        if file.suffix in (".ids", ".rows"):
            file.rename(caches[0] / "v1" / file.parent.name / file.name)
    assert extract_features(MODEL, shards, PassOptions(**{**vars(OPTIONS), "cache": caches[0]})).computed == 0


def test_folders_are_divided_as_well_and_bad_images_left_out(stripes: Path, own_cache: Path) -> None:
    (stripes / "train" / "down" / "0.png").write_bytes(b"no image")
    (stripes / "train" / "down" / "1.png").write_bytes((stripes / "train" / "down" / "2.png").read_bytes())
    done = [extract_features(MODEL, stripes, OPTIONS, rank=rank, world=2) for rank in range(2)]
    assert sum(one.unusable for one in done) == 1
    assert sum(one.computed for one in done) == 35  # a copy in another part runs again
    assert "18 of 36 images" in str(done[0])
    assert open_session(MODEL, stripes, OPTIONS).measured.evidence.images_computed == 0


def test_every_view_that_is_asked_for_is_extracted(shards: Path) -> None:
    options = PassOptions(**{**vars(OPTIONS), "views": "crop+squash+mirror"})
    assert len(extract_features(MODEL, shards, options).shelves) == 4
    assert open_session(MODEL, shards, options).measured.evidence.images_computed == 0


def test_deep_images_are_refused_by_name(stripes: Path) -> None:
    deep = np.linspace(0, 4000, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(deep).save(stripes / "train" / "slant" / "5.png")
    with pytest.raises(DataError, match=r"slant/5\.png is deeper than 8 bits: .* Run analyze"):
        extract_features(MODEL, stripes, OPTIONS)


def test_room_is_looked_for_before_the_first_image(shards: Path) -> None:
    with pytest.raises(CacheError, match="Raise it with cache_limit"):
        extract_features(MODEL, shards, PassOptions(**{**vars(OPTIONS), "cache_limit": 1e-6}))


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (0, None), (-1, 2), (None, 2)])
def test_ranks_that_cannot_be_are_refused(rank: int | None, world: int | None, shards: Path) -> None:
    with pytest.raises(OptionError, match=r"rank must be in \[0, world\)"):
        extract_features(MODEL, shards, OPTIONS, rank=rank, world=world)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("0", ""), ("x", "2"), (None, "2"), ("1", None)])
def test_an_environment_that_cannot_be_is_refused(rank, world, shards, monkeypatch) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="RANK and WORLD_SIZE divide work .* got RANK="):
        extract_features(MODEL, shards, OPTIONS)


def test_the_environment_says_which_process_it_is(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    done = extract_features(MODEL, shards, OPTIONS)
    assert (done.start, done.stop, done.computed) == (9, 18, 9)


@pytest.mark.parametrize("data", ["builtin/digits", [1, 2]])
def test_data_without_files_is_refused(data) -> None:
    with pytest.raises(OptionError, match="Extraction is divided by files"):
        extract_features(MODEL, data, OPTIONS)


def test_the_sample_is_those_with_the_smallest_ids() -> None:
    smallest = extract._SmallestIds(3)
    listing = list_source  # not opened here
    rng = np.random.default_rng(0)
    ids = np.array([b"%032d" % number for number in rng.permutation(100)], dtype="S32")
    for start in range(0, 100, 10):
        smallest.add(extract._Part(listing, np.arange(start, start + 10), ids[start : start + 10], 1))
    found = smallest.part(listing)
    assert [int(one) for one in found.ids] == [0, 1, 2]
    assert found.ids.tolist() == ids[found.rows].tolist()
