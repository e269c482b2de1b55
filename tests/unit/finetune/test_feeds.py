"""Which activation goes with which target, in which version and order."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.batches import batches
from transferkit.finetune import CutBatch
from transferkit.finetune.feeds import CutFeed


def read(version: int, positions: np.ndarray) -> CutBatch:
    """An activation that says who it is: position, then version."""
    said = torch.from_numpy(np.stack([positions, np.full_like(positions, version)], axis=1)).float()
    return CutBatch(said, {"stem": 10 * said, "middle": said[:, :1]})


def make_feed(positions: np.ndarray, **options) -> CutFeed:
    usual = {"batch_size": 4, "views": 0, "seed": 0, "training": True}
    return CutFeed(read, positions, torch.from_numpy(1000 + positions), **{**usual, **options})


def epoch_of(feed: CutFeed, epoch: int) -> tuple[list[list[int]], list[int]]:
    """Positions step by step, and the version of each."""
    feed.set_epoch(epoch)
    steps, versions = [], []
    for batch, targets in feed:
        assert torch.equal(targets, 1000 + batch.activation[:, 0].long())  # each with its own target
        assert torch.equal(batch.pooled["stem"], 10 * batch.activation)
        assert torch.equal(batch.pooled["middle"], batch.activation[:, :1])
        steps.append(batch.activation[:, 0].long().tolist())
        versions += batch.activation[:, 1].long().tolist()
    return steps, versions


@given(
    st.lists(st.integers(0, 300), min_size=2, max_size=40, unique=True),
    st.integers(2, 9),
    st.integers(0, 5),
    st.integers(0, 7),
)
def test_every_image_comes_once_an_epoch_in_the_version_that_is_due(positions, batch_size, views, epoch):
    feed = make_feed(np.array(positions), batch_size=batch_size, views=views)
    steps, versions = epoch_of(feed, epoch)
    assert len(steps) == len(feed)
    assert min(map(len, steps)) >= 2  # batch normalisation cannot train on one
    seen = list(chain(*steps))
    steps, after = epoch_of(feed, epoch + 1)
    later = dict(zip(chain(*steps), after, strict=True))
    assert sorted(seen) == sorted(positions)
    for position, version in zip(seen, versions, strict=True):
        assert 1 <= version <= views if views else version == 0
        if views > 1:
            assert later[position] != version


def test_after_so_many_epochs_as_there_are_versions_each_was_seen_once():
    feed = make_feed(np.arange(7), views=3)
    seen = {position: [] for position in range(7)}
    for epoch in range(3):
        steps, versions = epoch_of(feed, epoch)
        assert set(versions) == {1, 2, 3}  # neighbours are not of one version
        for position, version in zip(chain(*steps), versions, strict=True):
            seen[position].append(version)
    assert all(sorted(versions) == [1, 2, 3] for versions in seen.values())


def test_judging_is_in_order_plain_and_the_same_each_time():
    positions = np.array([9, 2, 5, 7, 1, 8])
    feed = make_feed(positions, views=3, training=False)
    for epoch in (0, 1):
        assert epoch_of(feed, epoch) == ([[9, 2, 5, 7], [1, 8]], [0] * 6)


def test_the_order_is_told_from_seed_and_epoch_alone():
    positions = np.arange(20)
    feed = make_feed(positions, seed=3)
    first = epoch_of(feed, 4)
    torch.manual_seed(5)
    np.random.default_rng(1)
    assert epoch_of(feed, 4) == first  # whatever was asked for before
    assert epoch_of(make_feed(positions, seed=3), 4) == first
    assert epoch_of(feed, 5) != first
    assert epoch_of(make_feed(positions, seed=4), 4) != first
    assert first[0] == [step.tolist() for step in batches(20, 4, seed=3, epoch=4)]


def test_an_epoch_that_was_begun_stays_that_epoch():
    feed = make_feed(np.arange(12))
    feed.set_epoch(1)
    running = iter(feed)
    next(running)
    feed.set_epoch(2)
    rest = [batch.activation[:, 0].long().tolist() for batch, _ in running]
    assert rest == epoch_of(make_feed(np.arange(12)), 1)[0][1:]


@pytest.mark.parametrize("training", [True, False])
def test_processes_share_training_images_and_judge_all(training, monkeypatch):
    alone = epoch_of(make_feed(np.arange(16), batch_size=8, training=training), 2)[0]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("transferkit.finetune.feeds.rank_and_world_size", lambda rank=rank: (rank, 2))
        parts.append(epoch_of(make_feed(np.arange(16), batch_size=4 if training else 8, training=training), 2)[0])
    if not training:
        assert parts == [alone, alone]
        return
    together = [sorted(one + other) for one, other in zip(*parts, strict=True)]
    assert together == [sorted(step) for step in alone]


def test_it_is_what_lightning_takes_for_a_loader_with_a_sampler():
    feed = make_feed(np.arange(4))
    assert feed.sampler is feed
    assert callable(feed.sampler.set_epoch)
    assert feed.batch_sampler is None
