"""Who is held back: every promise of `hold_back`, on drawn labels and groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.errors import DataError
from transferkit.train.holding_back import hold_back


@st.composite
def pictures(draw):
    """(N,) labels and (N,) groups: of one image each, of several, of several classes."""
    count = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    most = draw(st.sampled_from([count // 3 + 1, count, 10 * count]))
    groups = draw(st.lists(st.integers(0, most), min_size=count, max_size=count))
    return np.array(labels), np.array(groups)


def can_be_held_back(labels, groups) -> bool:
    """Whether there is a group without which every class is still there."""
    return any(set(labels[groups != group]) == set(labels) for group in groups)


@given(pictures(), st.integers(1, 5), st.integers(0, 3))
def test_every_promise_is_kept(drawn, folds, seed):
    labels, groups = drawn
    try:
        made = hold_back(labels, groups, folds=folds, seed=seed)
    except DataError:
        return  # see below
    assert 1 <= len(made) <= folds
    everyone = np.arange(len(labels))
    held_back = np.concatenate([fold.held_back for fold in made])
    assert len(np.unique(held_back)) == len(held_back)  # nobody twice
    for fold in made:
        assert len(fold.held_back)
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.held_back])), everyone)
        assert not set(groups[fold.train]) & set(groups[fold.held_back])  # groups whole
        assert set(labels[fold.train]) == set(labels)  # every class stays in training


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 3))
def test_five_folds_hold_back_everyone_but_classes_of_one_evenly_over_the_classes(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if max(sizes) < 2:
        return
    made = hold_back(labels, np.arange(len(labels)), folds=5, seed=seed)
    held_back = np.concatenate([fold.held_back for fold in made])
    assert sorted(held_back) == [i for i, label in enumerate(labels) if sizes[label] > 1]
    for fold in made:
        counts = np.bincount(labels[fold.held_back], minlength=len(sizes))
        for size, count in zip(sizes, counts, strict=True):
            assert size == 1 or size // 5 <= count <= -(-size // 5)
        if min(sizes) > 1:
            assert len(labels) // 5 <= len(fold.held_back) <= -(-len(labels) // 5)


@given(pictures(), st.integers(0, 3))
def test_it_gives_up_only_where_classes_would_be_lost(drawn, seed):
    labels, groups = drawn
    try:
        hold_back(labels, groups, folds=1, seed=seed)
    except DataError:
        # Groups are dealt out by fifths; where each fifth has the last images of some class, none can go.
        if len(set(groups)) == len(groups):
            assert not can_be_held_back(labels, groups)


def test_a_fold_is_found_though_the_first_fifth_has_a_class_of_one_alone():
    labels = np.array([0, 1, 1, 1])
    for seed in range(5):
        (fold,) = hold_back(labels, np.arange(4), folds=1, seed=seed)
        assert 0 in fold.train


def test_a_patient_with_two_findings_stays_whole():
    """The second class has no other patient, so it must stay in training, and with it the patient's other images."""
    labels = np.array([0, 1, 0, 0, 0, 0])
    groups = np.array([7, 7, 1, 2, 3, 4])
    for fold in hold_back(labels, groups, folds=5):
        assert {0, 1} <= set(fold.train)


def test_one_image_of_each_class_is_too_few():
    with pytest.raises(DataError, match="No image can be held back.*every class needs 2 images"):
        hold_back(np.arange(3), np.arange(3), folds=1)


def test_the_seed_draws_who():
    labels, groups = np.repeat([0, 1], 20), np.arange(40)
    draws = {tuple(hold_back(labels, groups, folds=1, seed=seed)[0].held_back) for seed in (0, 0, 1, 2)}
    assert len(draws) == 3
