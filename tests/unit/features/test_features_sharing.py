"""Several processes on one frozen pass: every image once, by whoever it falls to; nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.unit.features.features_toys import Reader, draw_images, make_backbone, name_images
from transferkit.core.errors import CacheError
from transferkit.features import FeatureBank, FrozenPass, extraction, frozen_pass
from transferkit.nn import Backbone

N = 11
IDS = name_images(*range(N))


def run(
    bank: FeatureBank,
    read: Callable[[int], np.ndarray],
    *,
    sample: np.ndarray | None = None,
    backbone: Backbone | None = None,
) -> FrozenPass:
    backbone = make_backbone() if backbone is None else backbone
    return frozen_pass(
        backbone, read, IDS, bank=bank, sample=sample, device="cpu", batch_size=2, workers=1, progress=False
    )


@pytest.fixture
def being(monkeypatch) -> Callable[[int, int], None]:
    """Make the thread that calls it one process of so many."""
    here = threading.local()
    monkeypatch.setattr(extraction, "local_rank_and_world_size", lambda: getattr(here, "place", (0, 1)))
    monkeypatch.setattr(extraction, "PAUSE", 0.01)
    monkeypatch.setattr(extraction, "PATIENCE", 20.0)

    def be(rank: int, world: int) -> None:
        here.place = (rank, world)

    return be


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("sample", [None, np.array([1, 4, 5])])
def test_processes_share_the_images_out_without_gaps_or_repeats(world, sample, bank, tmp_path, being):
    readers, backbones = [Reader(draw_images(N)) for _ in range(world)], [make_backbone() for _ in range(world)]

    def one(rank: int) -> FrozenPass:
        being(rank, world)
        return run(bank, readers[rank], sample=sample, backbone=backbones[rank])

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(one, range(world)))
    assert sorted(index for reader in readers for index in reader.asked.elements()) == list(range(N))
    assert max(sum(reader.asked.values()) for reader in readers) <= -(-N // world)
    alone = run(FeatureBank(tmp_path / "alone"), Reader(draw_images(N)), sample=sample)
    for done in found:
        for stage in done.table.blocks:
            np.testing.assert_allclose(done.table.load([stage]), alone.table.load([stage]), rtol=1e-4, atol=1e-5)
        if sample is not None:
            assert len(done.moments) == len(sample)
    assert all(info.images in (N, 3) for info in bank.list_shelves())


def test_a_process_that_comes_late_leaves_out_what_falls_to_the_others(bank, being, monkeypatch):
    monkeypatch.setattr(extraction, "PATIENCE", 0.2)
    first, second = Reader(draw_images(N)), Reader(draw_images(N))
    being(0, 2)
    with pytest.raises(CacheError, match="Process 0 of 2 waited .* for 5 images' features that others"):
        run(bank, first)
    being(1, 2)
    run(bank, second)
    assert sorted(first.asked) == list(range(0, N, 2))
    assert sorted(second.asked) == list(range(1, N, 2))
    being(0, 2)
    assert run(bank, first).computed == 0


def test_a_process_with_nothing_left_of_its_own_waits_for_the_others(bank, being, monkeypatch):
    monkeypatch.setattr(extraction, "PATIENCE", 0.2)
    reader = Reader(draw_images(N))
    for _ in range(2):
        being(0, 2)
        with pytest.raises(CacheError, match="for 5 images' features"):
            run(bank, reader)
    assert set(reader.asked.values()) == {1}


def test_whoever_works_on_is_waited_for(bank, being, monkeypatch):
    """Patience counts from the last row that came, not from the beginning."""
    monkeypatch.setattr(extraction, "PATIENCE", 1.0)
    pixels, slow, backbones = draw_images(N), threading.Event(), [make_backbone(), make_backbone()]

    def read(index: int) -> np.ndarray:
        slow.wait(0.35)  # five images in three batches: longer than patience lasts
        return pixels[index]

    def one(rank: int) -> int:
        being(rank, 2)
        return run(bank, Reader(pixels) if rank == 0 else read, backbone=backbones[rank]).computed

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [N, N]
