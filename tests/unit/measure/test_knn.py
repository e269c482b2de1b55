from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from transferkit.measure import knn
from transferkit.measure.knn import knn_accuracy


def brute_force(features, labels, k):
    """Each image asked of scikit-learn's classifier over all the others, weighted by cosine similarity plus one."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    several = np.bincount(labels)[labels] > 1  # the only image of a class does not count
    correct = 0
    for image in np.flatnonzero(several):
        rest = np.arange(len(labels)) != image
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda distance: 2 - distance)
        correct += int(model.fit(centred[rest], labels[rest]).predict(centred[[image]])[0] == labels[image])
    return correct / several.sum()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(8, 40),
    width=st.integers(2, 12),
    k=st.integers(1, 7),
    chunk=st.sampled_from([5, 1024]),
)
def test_accuracy_equals_scikit_learns_image_by_image(seed, images, width, k, chunk):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    features = (rng.normal(size=(images, width)) + 0.8 * labels[:, None]).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "CHUNK", chunk)
        assert knn_accuracy(features, labels, k=k) == pytest.approx(brute_force(features, labels, k))


def test_no_more_neighbours_than_there_are_others():
    features = np.array([[0.0, 1], [0, 2], [1, 0]], dtype=np.float32)
    labels = np.array([0, 0, 1])
    assert (
        knn_accuracy(features, labels, k=50) == knn_accuracy(features, labels, k=2) == 1
    )  # the third image does not count


def test_offset_and_unit_of_features_do_not_matter():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32)
    expected = knn_accuracy(features, labels)
    assert knn_accuracy(8 * features + 3, labels) == expected
    assert 0.5 < expected < 1


def test_images_that_are_all_alike_are_no_error():
    assert 0 <= knn_accuracy(np.ones((6, 3), dtype=np.float32), np.arange(6) % 2) <= 1


def test_features_given_are_left_as_they_are():
    features = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    before = features.copy()
    knn_accuracy(features, np.arange(10) % 2)
    np.testing.assert_array_equal(features, before)
