"""Steps of an epoch: every image once, the same for the same epoch, alike in every process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.batches import batches
from transferkit.core.errors import OptionError

SIZES = {"n": st.integers(1, 60), "batch_size": st.integers(1, 9), "epoch": st.integers(0, 5)}


@given(**SIZES, world=st.integers(1, 4), shuffle=st.booleans())
def test_all_processes_together_see_every_image_once(n, batch_size, epoch, world, shuffle):
    if world > 1 and n < 2 * world:
        return
    dealt = [
        batches(n, batch_size, seed=3, epoch=epoch, shuffle=shuffle, rank=rank, world=world) for rank in range(world)
    ]
    assert sorted(np.concatenate([step for steps in dealt for step in steps]).tolist()) == list(range(n))
    assert len({len(steps) for steps in dealt}) == 1
    for together in zip(*dealt, strict=True):
        sizes = [len(step) for step in together]
        assert max(sizes) - min(sizes) <= 1


@given(**SIZES, world=st.integers(2, 4))
def test_processes_together_take_the_steps_of_one_with_larger_batches(n, batch_size, epoch, world):
    if n < 2 * world or batch_size == 1:
        return
    alone = batches(n, batch_size * world, seed=0, epoch=epoch)
    dealt = [batches(n, batch_size, seed=0, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    merged = [sorted(np.concatenate(together).tolist()) for together in zip(*dealt, strict=True)]
    # Alone, a last step of one joins the one before; among several processes one of fewer than two each does.
    assert merged[: len(merged) - 1] == [sorted(step.tolist()) for step in alone[: len(merged) - 1]]


@given(n=st.integers(2, 60), batch_size=st.integers(2, 9), world=st.integers(1, 3), drop_last=st.booleans())
def test_no_step_has_one_image_alone(n, batch_size, world, drop_last):
    if n < 2 * world:
        return
    for rank in range(world):
        steps = batches(n, batch_size, seed=0, epoch=0, drop_last=drop_last, rank=rank, world=world)
        assert min(len(step) for step in steps) >= 2


def test_a_last_image_joins_the_step_before():
    assert [len(step) for step in batches(9, 4, seed=0, epoch=0)] == [4, 5]
    assert [len(step) for step in batches(10, 4, seed=0, epoch=0)] == [4, 4, 2]
    assert [len(step) for step in batches(9, 1, seed=0, epoch=0)] == [1] * 9
    assert [len(step) for step in batches(1, 4, seed=0, epoch=0)] == [1]


def test_dropping_the_last_step_never_leaves_none():
    assert [len(step) for step in batches(10, 4, seed=0, epoch=0, drop_last=True)] == [4, 4]
    assert [len(step) for step in batches(8, 4, seed=0, epoch=0, drop_last=True)] == [4, 4]
    assert [len(step) for step in batches(3, 4, seed=0, epoch=0, drop_last=True)] == [3]


def test_the_order_is_told_from_seed_and_epoch_alone():
    np.random.seed(5)  # noqa: NPY002
    first = batches(50, 7, seed=1, epoch=2)
    np.random.seed(6)  # noqa: NPY002
    again = batches(50, 7, seed=1, epoch=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (batches(50, 7, seed=1, epoch=3), batches(50, 7, seed=2, epoch=2)):
        assert not np.array_equal(np.concatenate(first), np.concatenate(other))


def test_every_place_in_the_order_is_as_likely():
    """Chi-squared over (image, place): 500 expected in each of 36 cells, 25 degrees of freedom."""
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.concatenate(batches(6, 3, seed=0, epoch=epoch)), np.arange(6)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 53  # exceeded once in a thousand


LABELS = np.array([0] * 40 + [1] * 9 + [4] * 3)


@given(epoch=st.integers(0, 40), seed=st.integers(0, 3))
def test_balanced_classes_have_equal_shares_in_every_epoch(epoch, seed):
    order = np.concatenate(batches(52, 8, seed=seed, epoch=epoch, balanced=True, labels=LABELS))
    counts = np.bincount(LABELS[order])[[0, 1, 4]]
    assert len(order) == 52
    assert sorted(counts) == [17, 17, 18]


def test_balanced_classes_repeat_no_image_before_all_have_been_used():
    seen = np.zeros(52, dtype=int)
    for epoch in range(30):
        steps = batches(52, 8, seed=0, epoch=epoch, balanced=True, labels=LABELS)
        np.add.at(seen, np.concatenate(steps), 1)
        for label in (0, 1, 4):
            counts = seen[label == LABELS]
            assert counts.max() - counts.min() <= 1
    assert sorted(seen[label == LABELS].sum() for label in (0, 1, 4)) == [520, 520, 520]


def test_balanced_shares_stay_balanced_over_processes():
    dealt = [
        np.concatenate(batches(52, 4, seed=0, epoch=1, balanced=True, labels=LABELS, rank=rank, world=2))
        for rank in range(2)
    ]
    alone = np.concatenate(batches(52, 8, seed=0, epoch=1, balanced=True, labels=LABELS))
    assert sorted(np.concatenate(dealt).tolist()) == sorted(alone.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0, "batch_size": 2}, "at least 1 image"),
        ({"n": 5, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"n": 5, "batch_size": 2, "rank": 2, "world": 2}, r"rank must be in \[0, world\), got 2 of 2"),
        ({"n": 5, "batch_size": 2, "world": 4}, "5 images are too few for 4 processes; use 2 or fewer"),
        ({"n": 5, "batch_size": 2, "balanced": True}, "balanced=True needs 5 labels, got none"),
        ({"n": 5, "batch_size": 2, "balanced": True, "labels": np.zeros(4, int)}, "needs 5 labels, got 4"),
    ],
)
def test_numbers_that_do_not_fit_are_an_error(options, message):
    with pytest.raises(OptionError, match=message):
        batches(options.pop("n"), options.pop("batch_size"), seed=0, epoch=0, **options)
