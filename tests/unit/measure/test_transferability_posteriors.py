from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from transferkit.core.errors import DataError, OptionError
from transferkit.measure.transferability import leep, nce, nleep

LABELS = np.array([0, 0, 1, 1, 1, 2])


def label_entropy(labels):
    return entropy(np.bincount(labels) / len(labels))


def random_probabilities(seed, images=50, source=7):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(source, 0.4), size=images), rng.integers(0, 3, images)


def test_leep_by_hand():
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    labels = np.array([0, 0, 1])
    # P(y=0, z) = (1.4, 0.6)/3, P(z) = (1.5, 1.5)/3, so P(0|z) = (14/15, 6/15).
    expected = [0.8 * 14 / 15 + 0.2 * 6 / 15, 0.6 * 14 / 15 + 0.4 * 6 / 15, 0.1 * 1 / 15 + 0.9 * 9 / 15]
    assert leep(probabilities, labels) == pytest.approx(np.log(expected).mean())


def test_nce_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 0, 1, 1])
    # Three images fall to source class 0, two of them of class 0; the fourth is alone.
    assert nce(probabilities, labels) == pytest.approx((2 * np.log(2 / 3) + np.log(1 / 3)) / 4)


@pytest.mark.parametrize("measure", [leep, nce])
def test_source_that_knows_the_label_scores_zero(measure):
    assert measure(np.eye(5)[LABELS + 1], LABELS) == 0


@pytest.mark.parametrize("measure", [leep, nce])
@pytest.mark.parametrize("row", [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
def test_source_that_says_nothing_scores_minus_the_entropy_of_the_labels(measure, row):
    assert measure(np.tile(row, (len(LABELS), 1)), LABELS) == pytest.approx(-label_entropy(LABELS))


@pytest.mark.parametrize("seed", range(5))
def test_nce_is_scikit_learns_mutual_information_less_the_entropy(seed):
    probabilities, labels = random_probabilities(seed)
    expected = mutual_info_score(labels, probabilities.argmax(axis=1)) - label_entropy(labels)
    assert nce(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_leep_of_certain_predictions_is_nce(seed):
    probabilities, labels = random_probabilities(seed)
    assert leep(np.eye(7)[probabilities.argmax(axis=1)], labels) == pytest.approx(nce(probabilities, labels))


@pytest.mark.parametrize("seed", range(5))
def test_leep_lies_between_minus_the_entropy_and_zero(seed):
    probabilities, labels = random_probabilities(seed)
    assert -label_entropy(labels) <= leep(probabilities, labels) <= 0


def test_source_class_split_at_random_changes_leep_by_nothing():
    probabilities, labels = random_probabilities(9)
    split = np.hstack([0.3 * probabilities[:, :1], 0.7 * probabilities[:, :1], probabilities[:, 1:]])
    assert leep(split, labels) == pytest.approx(leep(probabilities, labels))


def test_logits_are_an_error():
    with pytest.raises(DataError, match="Pass logits through a softmax first"):
        leep(np.random.default_rng(0).normal(size=(6, 3)), LABELS)


def blobs(seed, spread=0.01):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3)
    return 5 * np.eye(3, 8)[labels] + spread * rng.normal(size=(60, 8)), labels


def test_nleep_of_one_tight_blob_per_class_is_zero():
    assert nleep(*blobs(0), components=3) == pytest.approx(0, abs=1e-6)


def test_nleep_of_one_component_is_minus_the_entropy_of_the_labels():
    features, labels = blobs(1)
    assert nleep(features, labels, components=1) == pytest.approx(-label_entropy(labels))


def test_nleep_of_tight_blobs_is_nce_of_the_blobs():
    features, blob = blobs(2)
    labels = np.where(np.arange(60) % 4 == 0, 0, blob)
    assert nleep(features, labels, components=3) == pytest.approx(nce(np.eye(3)[blob], labels), abs=1e-6)


def test_nleep_of_constant_features_is_minus_the_entropy_of_the_labels():
    assert nleep(np.full((6, 4), 0.1), LABELS) == pytest.approx(-label_entropy(LABELS))


def test_nleep_draws_from_its_seed_only():
    features, labels = blobs(3, spread=4.0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what must not matter
    first = nleep(features, labels, seed=0)
    np.random.seed(1)  # noqa: NPY002
    assert nleep(features, labels, seed=0) == first
    assert len({nleep(features, labels, seed=seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("components", [0, 61])
def test_components_that_cannot_be_fitted_are_an_error(components):
    with pytest.raises(OptionError, match=r"components must be in \[1, 60\]"):
        nleep(*blobs(4), components=components)
