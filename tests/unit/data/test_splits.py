"""Splits: every image once, every class everywhere, groups whole, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.data import stratified_split

labels_of = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda values: np.array(values, dtype=np.int64))
shares = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 0.45])


@settings(max_examples=80, deadline=None)
@given(labels=labels_of, val=shares, test=shares, seed=st.integers(0, 99))
def test_every_class_has_its_share_to_the_nearest_image(labels: np.ndarray, val: float, test: float, seed: int) -> None:
    names = stratified_split(labels, np.arange(len(labels)), val=val, test=test, seed=seed)
    assert set(names.tolist()) <= {"train", "val", "test"}
    for label in set(labels.tolist()):
        count = int((labels == label).sum())
        got = {split: int(((labels == label) & (names == split)).sum()) for split in ("train", "val", "test")}
        assert got["train"] >= 1
        assert abs(got["test"] - count * test) <= 1
        assert abs(got["val"] - count * val) <= 1
        assert (got["test"] >= 1) == (test > 0 and count >= 2)
        assert (got["val"] >= 1) == (val > 0 and count - got["test"] >= 2)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), labels=labels_of, test=shares, seed=st.integers(0, 99))
def test_groups_never_straddle_and_train_keeps_every_class(
    data: st.DataObject, labels: np.ndarray, test: float, seed: int
) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(labels), max_size=len(labels))))
    names = stratified_split(labels, groups, val=0.1, test=test, seed=seed)
    for group in set(groups.tolist()):
        assert len(set(names[groups == group].tolist())) == 1
    assert set(labels[names == "train"].tolist()) == set(labels.tolist())


def test_groups_of_one_class_still_reach_the_test_split() -> None:
    labels, groups = np.repeat([0, 1], 40), np.repeat(np.arange(8), 10)  # 4 groups of 10 per class, quota 4
    names = stratified_split(labels, groups, val=0, test=0.1, seed=0)
    assert [(names[labels == label] == "test").sum() for label in (0, 1)] == [10, 10]


def test_many_small_groups_come_near_the_share() -> None:
    labels, groups = np.arange(600) % 3, np.arange(600) // 4
    for seed in range(5):
        names = stratified_split(labels, groups, val=0, test=0.2, seed=seed)
        for label in range(3):
            assert abs((names[labels == label] == "test").sum() - 40) <= 4  # a group's size


def test_the_seed_decides() -> None:
    labels, groups = np.zeros(50, dtype=np.int64), np.arange(50)
    first, again, other = (stratified_split(labels, groups, val=0.1, test=0.2, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [(-0.1, 0.2, "val is a share"), (0.0, 1.0, "test is a share"), (0.5, 0.5, r"val \+ test must be < 1")],
)
def test_shares_that_leave_nothing(val: float, test: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        stratified_split(np.zeros(4, dtype=np.int64), np.arange(4), val=val, test=test, seed=0)
