"""Accuracy by number of images: against refits to the same subsets, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.measure.problems import chunked, least_squares, make_problem, scaled
from transferkit.core.errors import OptionError
from transferkit.measure import curves
from transferkit.measure.curves import learning_curves, stratified_sample
from transferkit.measure.ridge import ridge_paths


def measure(features, labels, blocks, *, weights=None, seed=0):
    classes = int(labels.max()) + 1
    paths = ridge_paths(chunked(features, 50), labels, blocks, classes=classes, weights=weights)
    return learning_curves(chunked(features, 50), labels, blocks, paths, weights=weights, seed=seed), paths


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_a_stratified_sample_keeps_shares_to_the_image_and_every_class(labels, data):
    labels = np.array(labels)
    counts = np.bincount(labels)
    size = data.draw(st.integers(np.count_nonzero(counts), len(labels)))
    rows = stratified_sample(labels, size, np.random.default_rng(data.draw(st.integers(0, 9))))
    taken = np.bincount(labels[rows], minlength=len(counts))
    assert len(rows) == len(set(rows)) == size
    assert (np.diff(rows) > 0).all()
    assert (taken[counts > 0] >= 1).all()
    # No class gets two images more than its share: only the guaranteed one of each can move others that far down.
    assert (taken < np.maximum(counts * size / len(labels) + 1, 1.5)).all()


def test_a_sample_without_room_for_every_class_is_an_error():
    with pytest.raises(OptionError, match=r"must have 3 \(one per class\) to 6 images, got 2"):
        stratified_sample(np.array([0, 0, 1, 1, 5, 5]), 2, np.random.default_rng(0))
    with pytest.raises(OptionError, match="to 6 images, got 7"):
        stratified_sample(np.array([0, 0, 1, 1, 5, 5]), 7, np.random.default_rng(0))


@pytest.mark.parametrize("weighted", [False, True])
def test_every_point_is_the_mean_of_refits_to_the_subsets_drawn(weighted, monkeypatch):
    features, labels, blocks = make_problem(3, images=64, widths=(5, 90))
    weights = 1 / np.bincount(labels)[labels] if weighted else np.ones(64)
    weights = weights / weights.mean()
    drawn = []

    def sample(*arguments):
        drawn.append(stratified_sample(*arguments))
        return drawn[-1]

    monkeypatch.setattr(curves, "stratified_sample", sample)
    points, paths = measure(features, labels, blocks, weights=weights if weighted else None)
    known = scaled(features, blocks, weights)
    for stage, columns in {**blocks, "joined": slice(None)}.items():
        penalty = float(paths[stage].penalties[paths[stage].best])
        for point in [point for point in points if point.stage == stage][:-1]:
            found = []
            for rows in (rows for rows in drawn if len(rows) == point.images):
                rest = np.setdiff1d(np.arange(64), rows)
                slope, bias = least_squares(known[rows][:, columns], np.eye(3)[labels[rows]], penalty, weights[rows])
                guess = (known[rest][:, columns] @ slope + bias).argmax(axis=1)
                found.append((guess == labels[rest]).mean())
            assert len(found) >= curves.MIN_DRAWS
            assert point.accuracy == pytest.approx(np.mean(found))
            assert point.error == pytest.approx(np.std(found, ddof=1) / np.sqrt(len(found)))


def test_curves_run_from_two_per_class_through_half_to_all_images():
    features, labels, blocks = make_problem(0, images=90, widths=(4, 6))
    points, paths = measure(features, labels, blocks)
    assert list(dict.fromkeys(point.stage for point in points)) == ["s0", "s1", "joined"]
    for stage, path in paths.items():
        sizes = [point.images for point in points if point.stage == stage]
        assert sizes[0] == 6
        assert sizes[-2:] == [45, 90]
        assert all(1 < later / earlier <= 2.1 for earlier, later in itertools.pairwise(sizes))
        last = [point for point in points if point.stage == stage][-1]
        assert last.accuracy == path.accuracy[path.best]
        assert last.error == pytest.approx(np.sqrt(last.accuracy * (1 - last.accuracy) / 90))


def test_a_curve_rises_where_there_is_something_to_learn_and_stays_at_chance_where_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 60)
    features = (rng.normal(size=(240, 30)) + 0.6 * rng.normal(size=(4, 30))[labels]).astype(np.float32)
    blocks = {"a": slice(0, 30)}
    risen = [point.accuracy for point in measure(features, labels, blocks)[0] if point.stage == "a"]
    assert risen[-1] > 0.9
    assert risen[0] < 0.8
    shuffled, _ = measure(features, rng.permutation(labels), blocks)
    assert all(abs(point.accuracy - 0.25) < 0.1 for point in shuffled)


def test_many_images_are_sampled_but_the_last_point_counts_them_all(monkeypatch):
    monkeypatch.setattr(curves, "MAX_IMAGES", 40)
    features, labels, blocks = make_problem(0, images=120, widths=(4, 6))
    points, _ = measure(features, labels, blocks)
    assert {point.images for point in points} == {6, 11, 20, 120}


def test_a_class_of_one_image_and_too_few_images_for_any_subset():
    features, labels, blocks = make_problem(0, images=40, widths=(4, 6))
    labels[:] = np.where(np.arange(40) == 7, 2, np.arange(40) % 2)
    assert all(0 <= point.accuracy <= 1 for point in measure(features, labels, blocks)[0])
    few, _ = measure(features[:5], np.array([0, 1, 2, 0, 1]), blocks)
    assert [point.images for point in few] == [5, 5, 5]


def test_the_seed_alone_draws_the_subsets():
    features, labels, blocks = make_problem(0, images=60, widths=(4, 6))
    first, _ = measure(features, labels, blocks, seed=0)
    assert first == measure(features, labels, blocks, seed=0)[0]
    assert first != measure(features, labels, blocks, seed=1)[0]
