"""Who is held back: every promise of `hold_back`, on drawn labels and groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import DataError, OptionError
from transferkit.core.intervals import wilson_interval
from transferkit.records import Fold, Folds, connected_groups
from transferkit.records.folds import LARGE_CLASS, LARGE_GROUP, LARGE_SPLITS, LEFT_OUT_AT_ONCE


def hold_back(labels, groups, *, folds, seed=0) -> list[Fold]:
    return Folds(np.asarray(labels), np.asarray(groups), np.arange(len(labels))).split(folds, seed=seed)


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
        # Groups are splits out by fifths; where each fifth has the last images of some class, none can go.
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


# Who is left out together, and what each image counts

folds_of = pictures().map(lambda drawn: Folds(drawn[0], drawn[1], np.arange(len(drawn[0]))))


@given(folds_of)
def test_sets_that_are_left_out_together_hold_whole_groups_and_are_no_larger_than_needed(folds):
    sets = folds.together
    for group in np.unique(folds.groups):
        assert len(np.unique(sets[folds.groups == group])) == 1
    largest = np.bincount(np.unique(folds.groups, return_inverse=True)[1]).max()
    assert np.bincount(sets).max() <= max(LEFT_OUT_AT_ONCE, len(folds) // 2) + largest


@given(st.lists(st.integers(2, 30), min_size=2, max_size=6))
def test_single_images_are_left_out_one_of_each_class_at_a_time(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    sets = Folds.alone(labels).together
    for number in np.unique(sets):
        inside = labels[sets == number]
        assert len(set(inside)) == len(inside)


@given(folds_of, st.integers(0, 9))
def test_sets_do_not_depend_on_the_order_of_images(folds, seed):
    order = np.random.default_rng(seed).permutation(len(folds))
    ours, theirs = folds.together[order], folds.take(order).together
    same = {(one, other) for one, other in zip(ours, theirs, strict=True)}
    assert len(same) == len(set(ours)) == len(set(theirs))


def test_large_classes_are_left_out_group_by_group():
    folds = Folds.alone(np.repeat([0, 1], LARGE_CLASS))
    assert len(np.unique(folds.together)) == len(folds)


def test_large_groups_are_left_out_in_few_sets():
    groups = np.repeat(np.arange(30), LARGE_GROUP + 1)
    folds = Folds(groups % 3, groups, np.arange(len(groups)))
    assert len(np.unique(folds.together)) == LARGE_SPLITS
    assert folds.counting(folds.together).all()


@given(folds_of, st.integers(2, 6), st.integers(0, 3))
def test_an_image_counts_where_its_class_is_left_to_learn_from(folds, parts, seed):
    splits = folds.assign_splits(parts, seed=seed)
    counting = folds.counting(splits)
    for image, label in enumerate(folds.labels):
        others = (folds.labels == label) & (splits != splits[image])
        assert counting[image] == float(others.any())


def test_copies_count_as_one_image_together():
    folds = Folds(np.array([0, 0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 2, 3]), np.array([5, 5, 5, 6, 7, 8]))
    np.testing.assert_allclose(folds.counting(folds.groups), [1 / 3, 1 / 3, 1 / 3, 1, 1, 1])
    assert folds.counting(np.zeros(6, dtype=int)).sum() == 0  # all held back at once: nothing to learn from


def test_copies_in_different_groups_are_an_error():
    with pytest.raises(DataError, match="Copies of one image are in different groups"):
        Folds(np.array([0, 1]), np.array([0, 1]), np.array([3, 3]))
    with pytest.raises(DataError, match=r"one entry per image each, got shapes \(2,\), \(1,\) and \(2,\)"):
        Folds(np.array([0, 1]), np.array([0]), np.array([3, 3]))


@given(folds_of, st.integers(2, 6), st.integers(0, 3))
def test_splits_hold_whole_groups_and_depend_on_the_seed_alone(folds, parts, seed):
    splits = folds.assign_splits(parts, seed=seed)
    assert set(splits) <= set(range(parts))
    for group in np.unique(folds.groups):
        assert len(set(splits[folds.groups == group])) == 1
    np.testing.assert_array_equal(splits, folds.assign_splits(parts, seed=seed))


def test_groups_of_unequal_sizes_fill_splits_of_nearly_equal_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 60)
    groups = np.repeat(np.arange(60), sizes)
    folds = Folds(groups % 2, groups, np.arange(len(groups)))
    parts = folds.assign_splits(5)
    for label in (0, 1):
        counts = np.bincount(parts[folds.labels == label])
        assert counts.max() - counts.min() <= 4
    with pytest.raises(OptionError, match="n_splits must be >= 2, got 1"):
        folds.assign_splits(1)


def test_images_of_one_group_are_worth_one_image_where_they_agree():
    groups = np.repeat(np.arange(40), 6)
    folds = Folds(groups % 2, groups, np.arange(240))
    agree = (np.arange(40) % 4 == 0)[groups]
    assert folds.independent(agree, np.ones(240)) == pytest.approx(40, rel=0.05)
    split = np.tile([1, 1, 1, 0, 0, 0], 40).astype(bool)  # each group half right: no group differs from another
    assert folds.independent(split, np.ones(240)) == 40  # nothing is known of how groups vary
    alone = Folds.alone(folds.labels)
    assert alone.independent(agree, np.ones(240)) == pytest.approx(240)
    assert alone.independent(agree, np.zeros(240)) == 0


def test_the_interval_of_a_grouped_mean_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(50), 5)
    folds = Folds(groups % 2, groups, np.arange(250))
    for _ in range(300):
        chance = rng.beta(1.4, 0.6, 50)[groups]  # mean 0.7
        right = rng.uniform(size=250) < chance
        low, high = wilson_interval(right.mean() * (n := folds.independent(right, np.ones(250))), n)
        covered += low <= 0.7 <= high
    assert covered / 300 > 0.92


def test_a_difference_on_one_group_is_as_uncertain_as_one_image():
    groups = np.repeat(np.arange(10), 3)
    folds = Folds(groups % 2, groups, np.arange(30))
    differences = np.where(groups == 0, 1.0, 0.0)
    assert folds.standard_error(differences, np.ones(30)) == pytest.approx(np.sqrt(9 + 1) / 30)
    assert folds.standard_error(np.zeros(30), np.ones(30)) == pytest.approx(1 / 30)


def test_connected_groups_are_transitive_over_memberships_and_pairs():
    people, shown = np.array([1, 1, 2, 3, 4]), np.array([7, 8, 8, 9, 10])
    assert connected_groups([people, shown]).tolist() == [0, 0, 0, 3, 4]
    assert connected_groups([people, shown], np.array([[4, 1]])).tolist() == [0, 0, 0, 3, 0]


def test_how_many_groups_each_class_has_decides_what_can_be_measured():
    folds = Folds(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 2]), np.arange(5))
    assert folds.groups_per_class.tolist() == [1, 2]
    assert folds.measurable
    assert not folds.complete
    assert not Folds.alone(np.arange(4)).measurable
