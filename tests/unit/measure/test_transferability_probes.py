from __future__ import annotations

import numpy as np
import pytest

from tests.unit.measure.problems import OneByOne, make_problem, refit_without_sets, scaled
from transferkit.core.errors import OptionError
from transferkit.measure import PENALTIES, knn_accuracy
from transferkit.measure.transferability import knn, press
from transferkit.records import Folds


@pytest.mark.parametrize("kind", [OneByOne, Folds])
def test_press_equals_refits_without_each_set(kind):
    features, labels, _ = make_problem(1, images=24, widths=(5,))
    blocks = {"features": slice(0, 5)}
    unit = scaled(features, blocks)
    targets, weights = np.eye(3)[labels], np.ones(24)
    folds = kind.alone(labels)
    scores = [refit_without_sets(unit, labels, folds.together, 3, penalty, weights) for penalty in PENALTIES]
    best = min(scores, key=lambda found: ((found - targets) ** 2).sum())
    assert press(features, labels, folds=folds) == (best.argmax(axis=1) == labels).mean()


def test_knn_is_the_accuracy_of_the_neighbours():
    features, labels, _ = make_problem(2, images=60, widths=(4,))
    assert knn(features, labels, k=3) == knn_accuracy(features, labels, k=3)
    assert knn(features, labels) == knn_accuracy(features, labels, k=5)


@pytest.mark.parametrize("measure", [knn, press])
def test_probe_of_classes_far_apart_is_always_right_and_a_lonely_image_does_not_count(measure):
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 2
    features = rng.normal(size=(40, 3)) + 50 * np.eye(2, 3)[labels]
    assert measure(features, labels) == 1
    labels[0] = 2
    assert measure(features, labels) == 1
    assert np.isnan(measure(features[:2], np.array([0, 1])))


@pytest.mark.parametrize("measure", [knn, press])
def test_random_labels_of_groups_are_at_chance_though_their_images_are_alike(measure):
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 6)
    labels = rng.integers(0, 3, 60)[groups]
    features = rng.normal(size=(60, 90))[groups] + 0.05 * rng.normal(size=(360, 90))
    assert measure(features, labels) > 0.9  # each image is told by the others of its group
    held_back = measure(features, labels, folds=Folds(labels, groups, np.arange(360)))
    assert held_back < 1 / 3 + 3 * np.sqrt(2 / 9 / 60)


def test_knn_without_neighbours_is_an_error():
    with pytest.raises(OptionError, match="k must be >= 1, got 0."):
        knn(np.eye(4), np.arange(4) % 2, k=0)
