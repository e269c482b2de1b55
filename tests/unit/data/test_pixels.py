"""Pictures kept in memory, in a file or nowhere: the same pictures."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from transferkit.core.errors import DataError
from transferkit.data import Data, PixelStore, open_data
from transferkit.records import Preprocessing

WANTS = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
PLACES = ["memory", "file", "source"]


class Usage(NamedTuple):
    """What shutil.disk_usage says."""

    total: int
    used: int
    free: int


@pytest.fixture
def open_store(tmp_path, monkeypatch):
    """open_store(data, indices, "file"): a store that keeps its pictures there."""

    def open_one(data: Data, indices: Any, where: str, preprocessing: Preprocessing = WANTS) -> PixelStore:
        if where == "source":
            monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 0))
        limit = 2**30 if where == "memory" else 100
        folder = tmp_path / "pixels"
        folder.mkdir(exist_ok=True)
        return PixelStore(data, np.asarray(indices), preprocessing, limit=limit, folder=folder)

    return open_one


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "pixels").iterdir())


@pytest.mark.parametrize("where", PLACES)
def test_pictures_are_those_of_the_data_wherever_they_are_kept(official, open_store, where):
    data = open_data(official)
    indices = [11, 3, 3, 0]
    store = open_store(data, indices, where)
    assert store.where == where
    assert len(store) == 4
    assert store.shape == (3, 16, 16)
    assert store.nbytes == 4 * 3 * 16 * 16
    for position, index in enumerate(indices):
        assert store[position].dtype == torch.uint8
        assert np.array_equal(store[position].numpy(), data.pixels(index, WANTS))


@pytest.mark.parametrize("where", PLACES)
def test_a_part_shows_some_of_the_pictures_in_its_own_order(official, open_store, where):
    data = open_data(official)
    part = open_store(data, range(12), where).take(np.array([5, 2, 9])).take(np.array([2, 0]))
    assert len(part) == 2
    for position, index in enumerate([9, 5]):
        assert np.array_equal(part[position].numpy(), data.pixels(index, WANTS))


@pytest.mark.parametrize("where", PLACES)
def test_a_store_may_travel_to_another_process(official, open_store, where):
    part = open_store(open_data(official), range(12), where).take(np.array([7, 1]))
    sent = pickle.dumps(part)
    if where == "file":
        assert len(sent) < part.nbytes
    arrived = pickle.loads(sent)
    assert arrived.where == where
    assert torch.equal(arrived[0], part[0])
    assert torch.equal(arrived[1], part[1])


def test_the_file_goes_with_the_last_part_of_the_store(official, open_store, tmp_path):
    store = open_store(open_data(official), range(12), "file")
    part = store.take(np.array([4]))
    before = part[0].clone()
    del store
    gc.collect()
    assert len(files(tmp_path)) == 1
    assert torch.equal(part[0], before)
    del part
    gc.collect()
    assert files(tmp_path) == []


def test_a_forked_process_leaves_the_file_where_it_is(official, open_store, tmp_path):
    store = [open_store(open_data(official), range(12), "file")]

    def let_go() -> None:
        store.clear()
        gc.collect()

    process = multiprocessing.get_context("fork").Process(target=let_go)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(files(tmp_path)) == 1
    assert store[0][3].shape == (3, 16, 16)


def test_a_failed_read_leaves_no_file(official, open_store, tmp_path):
    data = open_data(official)
    (official / data.items[4]).unlink()
    with pytest.raises(DataError, match="there is no such file"):
        open_store(data, range(12), "file")
    gc.collect()
    assert files(tmp_path) == []


def test_a_full_disk_is_met_before_anything_is_written(official, open_store, tmp_path, monkeypatch):
    def no_space(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_space)
    store = open_store(open_data(official), range(12), "file")
    assert store.where == "source"
    assert files(tmp_path) == []


class Tensors:
    """A dataset of normalised tensors that notes who reads it."""

    def __init__(self, sides: list[int]) -> None:
        self.sides, self.readers = sides, set()

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.readers.add(threading.get_ident())
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, self.sides[index], 12, generator=generator), index % 2


@pytest.mark.parametrize("where", PLACES)
def test_normalised_tensors_are_kept_as_they_are(open_store, where):
    dataset = Tensors([10] * 8)
    store = open_store(open_data(dataset, preprocessed=True, test=0), range(8), where)
    assert store.shape == (3, 10, 12)
    assert store[5].dtype == torch.float32
    assert torch.equal(store[5], dataset[5][0])


def test_normalised_tensors_of_two_shapes_are_an_error(open_store):
    data = open_data(Tensors([10] * 7 + [11]), preprocessed=True, test=0)
    with pytest.raises(DataError, match=r"image\[7\] has shape \(3, 11, 12\), the first image \(3, 10, 12\)"):
        open_store(data, range(8), "memory")


def test_a_dataset_is_read_in_one_thread(open_store):
    dataset = Tensors([10] * 8)
    store = open_store(open_data(dataset, preprocessed=True, test=0), range(8), "memory")
    assert dataset.readers == {threading.get_ident()}
    assert store.shareable


def test_a_dataset_that_is_read_each_time_is_not_for_several_processes(official, open_store):
    assert not open_store(open_data(Tensors([10] * 8), preprocessed=True, test=0), range(8), "source").shareable
    assert open_store(open_data(official), range(8), "source").shareable


def test_a_store_of_nothing_is_empty(official, open_store):
    assert len(open_store(open_data(official), np.arange(0), "memory")) == 0
