"""Foreign images are marked; in clean data hardly any are."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.core.errors import DataError, OptionError
from transferkit.measure import find_outliers


def clean(images=400, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    spread = np.array([0.2, 1.0, 1.0, 2.0])[labels][:, None]
    return 6 * rng.normal(size=(classes, 12))[labels] + spread * rng.normal(size=(images, 12)), labels


def test_clean_data_has_hardly_any():
    marked = [find_outliers(*clean(seed=seed)).marked.sum() for seed in range(10)]
    assert sum(marked) <= 4


def test_foreign_images_come_first():
    rows, labels = clean()
    rows[[7, 90, 201]] += np.random.default_rng(1).normal(size=(3, 12)) * 15
    found = find_outliers(rows, labels)
    assert set(found.order[:3].tolist()) == {7, 90, 201}
    assert found.marked[[7, 90, 201]].all()
    assert found.marked.sum() <= 4


def test_an_image_among_another_class_is_none():
    rows, labels = clean()
    wrong = labels.copy()
    wrong[5] = (labels[5] + 1) % 4
    assert not find_outliers(rows, wrong).marked[5]


def test_a_wide_class_is_judged_by_its_own_width():
    rows, labels = clean()
    assert np.mean(find_outliers(rows, labels).p_values[labels == 3] < 0.01) < 0.05


@pytest.mark.parametrize("images", [1, 2, 19])
def test_with_few_images_nothing_is_usual(images):
    found = find_outliers(np.random.default_rng(0).normal(size=(images, 3)), np.zeros(images, dtype=int))
    assert not found.marked.any()
    assert (found.p_values == 1).all()


def test_equal_images_are_no_outliers():
    assert not find_outliers(np.ones((40, 3)), np.zeros(40, dtype=int)).marked.any()


def test_refusals():
    rows = np.ones((30, 2))
    with pytest.raises(DataError, match="30 labels"):
        find_outliers(rows, np.zeros(29, dtype=int))
    with pytest.raises(OptionError, match="share"):
        find_outliers(rows, np.zeros(30, dtype=int), share=0)
