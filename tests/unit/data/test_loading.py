"""Batches for training: complete, the same whoever prepares them, told from the epoch alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from transferkit.core.errors import OptionError
from transferkit.data import Augmentation, EpochSampler, Mixing, Pictures, PixelStore, loading, make_loader, open_data
from transferkit.data.loading import BatchKey
from transferkit.records import Preprocessing

WANTS = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.8)
N = 45


@pytest.fixture(scope="module")
def digits():
    return open_data("builtin/digits")


def make(digits, *, preset="light", mixing=None, seed=0, targets=None) -> Pictures:
    augmentation = Augmentation(preset=preset, preprocessing=WANTS)
    store = PixelStore(digits, np.arange(N), augmentation.stored)
    targets = digits.labels[:N] if targets is None else targets
    return Pictures(store, targets, augmentation=augmentation, mixing=mixing, seed=seed)


def epoch_of(loader: DataLoader, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_an_epoch_holds_every_picture_with_its_own_label(digits):
    loader = make_loader(make(digits, preset="none"), EpochSampler(N, 8))
    batches = epoch_of(loader, 3)
    assert len(loader) == len(batches) == 6
    seen = {
        (pixels.numpy().tobytes(), int(label))
        for images, labels in batches
        for pixels, label in zip(images, labels, strict=True)
    }
    wanted = {(digits.pixels(index, WANTS).tobytes(), int(digits.labels[index])) for index in range(N)}
    assert seen == wanted
    assert sum(len(labels) for _, labels in batches) == N


def test_workers_prepare_what_the_process_itself_would(digits):
    pictures = make(digits, preset="medium", mixing=Mixing(classes=10, mixup=0.4, cutmix=1.0))
    alone = make_loader(pictures, EpochSampler(N, 8), workers=0)
    helped = make_loader(pictures, EpochSampler(N, 8), workers=2)
    assert helped.persistent_workers
    for epoch in (0, 1, 4):
        assert same(epoch_of(alone, epoch), epoch_of(helped, epoch))


def test_epochs_differ_and_come_again(digits):
    loader = make_loader(make(digits), EpochSampler(N, 8))
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert not same(first, second)
    torch.manual_seed(12)
    assert same(epoch_of(loader, 0), first)
    assert not same(epoch_of(make_loader(make(digits, seed=1), EpochSampler(N, 8)), 0), first)


def test_no_generator_is_touched(digits):
    loader = make_loader(make(digits, mixing=Mixing(classes=10, mixup=0.4)), EpochSampler(N, 8))
    before = torch.get_rng_state()
    epoch_of(loader, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_picture_is_changed_alike_in_whatever_batch_it_is(digits):
    pictures = make(digits)
    one, _ = pictures[BatchKey(2, 0, np.array([7, 3]))]
    other, _ = pictures[BatchKey(2, 5, np.array([3]))]
    assert torch.equal(one[1], other[0])
    assert not torch.equal(one[1], pictures[BatchKey(3, 0, np.array([3]))][0][0])


def test_some_of_the_pictures_are_gone_through_under_their_own_positions(digits):
    among = np.array([40, 2, 31, 7, 8])
    keys = list(EpochSampler(5, 2, among=among))
    assert sorted(np.concatenate([key.positions for key in keys]).tolist()) == sorted(among.tolist())
    pictures = make(digits)
    some, _ = pictures[keys[0]]
    assert torch.equal(some[0], pictures[BatchKey(0, 9, keys[0].positions[:1])][0][0])


def test_each_batch_is_mixed_in_its_own_way(digits):
    pictures = make(digits, preset="none", mixing=Mixing(classes=10, mixup=1.0))
    first, again, next_one = (pictures[BatchKey(0, number, np.arange(6))] for number in (0, 0, 1))
    assert same([first], [again])
    assert not torch.equal(first[1], next_one[1])
    assert first[1].shape == (6, 10)


def test_a_position_gives_the_plain_picture(digits):
    pictures = make(digits, mixing=Mixing(classes=10, mixup=1.0))
    picture, label = pictures[5]
    assert np.array_equal(picture.numpy(), digits.pixels(5, WANTS))
    assert int(label) == digits.labels[5]
    images, labels = next(iter(DataLoader(pictures, batch_size=4)))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == digits.labels[:4].tolist()


@pytest.mark.parametrize(
    ("targets", "dtype"),
    [
        (np.arange(N, dtype=np.int32), torch.int64),
        (np.ones((N, 4), dtype=bool), torch.int64),
        (np.ones((N, 2)), torch.float32),
    ],
)
def test_targets_are_whole_numbers_or_single_precision(digits, targets, dtype):
    _, batch = make(digits, targets=targets)[BatchKey(0, 0, np.array([1, 2]))]
    assert batch.dtype == dtype
    assert batch.shape == (2, *targets.shape[1:])


def test_targets_that_are_too_few_are_an_error(digits):
    with pytest.raises(OptionError, match="got 44 targets for 45 pictures"):
        make(digits, targets=np.arange(N - 1))


def test_processes_share_an_epoch_out_and_all_see_what_is_evaluated(digits, monkeypatch):
    keys = {}
    for rank in range(3):
        monkeypatch.setattr(loading, "rank_and_world_size", lambda rank=rank: (rank, 3))
        keys[rank] = list(EpochSampler(N, 4))
        assert len(EpochSampler(N, 4)) == len(keys[rank]) == 4
        everything = list(EpochSampler(N, 4, shuffle=False, distributed=False))
        assert np.concatenate([key.positions for key in everything]).tolist() == list(range(N))
    dealt = [key for rank in range(3) for key in keys[rank]]
    assert sorted(np.concatenate([key.positions for key in dealt]).tolist()) == list(range(N))
    assert sorted(key.number for key in dealt) == list(range(12))


def test_a_loader_that_reads_ahead_stays_in_its_epoch():
    sampler = EpochSampler(N, 8)
    keys = iter(sampler)
    first = next(keys)
    sampler.set_epoch(5)
    assert {first.epoch, *(key.epoch for key in keys)} == {0}
    assert {key.epoch for key in sampler} == {5}


def test_lightning_would_leave_the_sampler_in_its_place():
    assert isinstance(EpochSampler(N, 8), DistributedSampler)


def test_a_sampler_meets_wrong_numbers_when_it_is_made():
    with pytest.raises(OptionError, match="batch_size must be >= 1, got 0"):
        EpochSampler(N, 0)
    with pytest.raises(OptionError, match="balanced=True needs 45 labels"):
        EpochSampler(N, 8, balanced=True)


def test_pictures_travel_to_a_process_that_was_not_forked(digits):
    pictures = make(digits)
    key = BatchKey(1, 0, np.array([3, 4]))
    assert same([pickle.loads(pickle.dumps(pictures))[pickle.loads(pickle.dumps(key))]], [pictures[key]])


@pytest.mark.parametrize(("cores", "cuda", "count"), [(2, False, 0), (16, False, 4), (64, False, 8), (6, True, 6)])
def test_workers_are_fitted_to_the_machine(digits, monkeypatch, cores, cuda, count):
    pictures = make(digits)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(PixelStore, "shareable", True)
    assert make_loader(pictures, EpochSampler(N, 8), workers=None).num_workers == count


def test_a_dataset_read_each_time_has_no_workers(digits, monkeypatch):
    pictures = make(digits)
    monkeypatch.setattr(PixelStore, "shareable", False)
    assert make_loader(pictures, EpochSampler(N, 8), workers=4).num_workers == 0
