"""Probe against network where images have several labels, or numbers."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.finetune.targets import training_targets
from transferkit.finetune.verify_targets import verify_targets
from transferkit.records import TargetFolds, Targets


def folds_of(task, values):
    return TargetFolds.of(Targets(task=task, names=tuple("abcdef"[: values.shape[1]]), values=values))


@pytest.fixture
def numbers():
    return np.random.default_rng(0).normal(size=(80, 2)) * (1, 50)


def test_the_better_one_is_kept_and_noise_that_is_independent_averages_out(numbers):
    rng = np.random.default_rng(1)
    folds = folds_of("regression", numbers)
    one, other = (numbers + rng.normal(size=numbers.shape) * (0.5, 25) for _ in range(2))
    assert verify_targets(one, numbers.copy(), folds).kept.name == "fine-tuned"
    assert verify_targets(numbers.copy(), one, folds).kept.name == "probe"
    found = verify_targets(one, other, folds)
    assert found.kept.name == "average"
    assert found.kept.accuracy > max(found.candidates[0].accuracy, found.candidates[-1].accuracy)
    assert found.temperatures == (1.0, 1.0)
    assert found.kept.measure == "R2"


def test_what_is_kept_is_never_worse_than_the_probe(numbers):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for task, truth in (("regression", numbers), ("multi_label", (numbers > 0).astype(float))):
            folds = folds_of(task, truth)
            one, other = (numbers + rng.normal(size=numbers.shape) * 30 for _ in range(2))
            found = verify_targets(one, other, folds)
            probe = found.candidates[0]
            assert found.kept.accuracy >= probe.accuracy
            assert found.kept.log_loss <= probe.log_loss


def test_logits_of_labels_are_put_on_one_scale(numbers):
    truth = (numbers > 0).astype(float)
    noisy = numbers / (1, 50) + np.random.default_rng(9).normal(size=numbers.shape) / 2
    found = verify_targets(100 * noisy, noisy, folds_of("multi_label", truth))
    assert found.temperatures[0] == pytest.approx(100 * found.temperatures[1], rel=0.05)
    assert len(found.thresholds) == 2


def test_batches_hold_standardised_numbers_and_labels_as_they_are():
    far = 1e9 + np.arange(8.0)[:, None]
    held = training_targets(folds_of("regression", far))
    assert held.dtype == np.float32
    assert held.std() == pytest.approx(1)
    assert (np.diff(held[:, 0]) > 0.3).all()  # single precision has steps of 64 there
    labels = (np.arange(8)[:, None] % 2).astype(float)
    np.testing.assert_array_equal(training_targets(folds_of("multi_label", labels)), labels)
