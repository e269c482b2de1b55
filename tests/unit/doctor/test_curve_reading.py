"""Shapes of loss curves, drawn and from real training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from transferkit.core.errors import DataError, OptionError
from transferkit.doctor import Curves, read_curves

EPOCHS = np.arange(20)
HEALTHY = 0.1 + 2.2 * np.exp(-EPOCHS / 4)


def causes(train, **more):
    return [one.cause for one in read_curves(Curves(train_loss=list(train), classes=10, **more))]


def test_a_healthy_run_gets_no_word():
    held = 0.3 + 2.0 * np.exp(-EPOCHS / 4)
    accuracy = 0.9 - 0.8 * np.exp(-EPOCHS / 4)
    assert causes(HEALTHY, held_back_loss=list(held), held_back_accuracy=list(accuracy), held_back_images=300) == []


@given(st.integers(0, 10_000))
def test_noise_is_not_a_shape(seed):
    noise = np.random.default_rng(seed).normal(size=20)
    assert causes(HEALTHY + 0.02 * noise, held_back_loss=list(HEALTHY + 0.2 + 0.004 * noise)) == []


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        ([2.3, 2.0, 1.5, 3.0, 9.0, 30.0], "divergence"),
        ([2.3, 2.0, math.nan, math.nan, math.nan], "not_finite"),
        (2.0 + 0.5 * (-1) ** EPOCHS, "lr_too_high"),
        (np.concatenate([np.full(7, 2.30), 2.3 * np.exp(-np.arange(13) / 3)]), "bad_start"),
        (2.3 - 0.03 * EPOCHS, "lr_too_low"),
        (1.6 + 0.7 * np.exp(-EPOCHS / 2), "underfitting"),
        (np.full(20, 2.302), "no_learning"),
    ],
)
def test_shapes_of_the_training_loss(train, cause):
    assert causes(train) == [cause]


def test_overfitting_is_dated():
    held = np.concatenate([np.linspace(2, 1, 8), np.linspace(1.02, 1.6, 12)])
    (found,) = read_curves(Curves(train_loss=list(HEALTHY), held_back_loss=list(held), classes=10))
    assert found.cause == "overfitting"
    assert "lowest in epoch 8 (1)" in found.evidence


def test_accuracy_that_falls_while_the_rest_is_learnt_by_heart():
    accuracy = np.concatenate([np.linspace(0.2, 0.85, 6), np.linspace(0.84, 0.6, 14)])
    found = causes(HEALTHY, held_back_accuracy=list(accuracy), held_back_images=500)
    assert found == ["label_noise"]
    assert causes(HEALTHY, held_back_accuracy=list(accuracy), held_back_images=8) == []


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ([2.3], []),
        ([2.3, 1.9], []),
        ([2.3, 2.31], []),
        ([0.3, 0.4, 0.35], []),
        ([2.3, 1.9, 1.7], []),
        ([0.05, 0.85], ["divergence"]),
        ([2.3, 9.0, 50.0], ["divergence"]),
        ([2.3, 2.3, 2.3], ["no_learning"]),
        ([70.0, 20.0, 12.0], ["bad_start"]),
    ],
)
def test_of_few_epochs_only_what_is_plain_is_read(train, found):
    assert causes(train) == found


@given(
    st.sampled_from([5, 10, 30, 100]),
    st.integers(2, 1000),
    st.floats(0.0, 0.15),
    st.floats(0.05, 0.25),
    st.integers(0, 10_000),
)
def test_a_healthy_fall_has_no_symptom_at_any_length_and_scale(count, classes, level, pace, seed):
    guessing = math.log(classes)
    fall = np.exp(-np.arange(count) / max(1.0, pace * count))
    noise = 1 + 0.01 * np.random.default_rng(seed).normal(size=count)
    train = guessing * (level + (0.95 - level) * fall) * noise
    held = guessing * (level + 0.05 + (0.9 - level) * fall)
    assert read_curves(Curves(train_loss=train, held_back_loss=held, classes=classes)) == ()


@pytest.mark.parametrize("count", [5, 10, 30, 100])
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01])
def test_flat_from_beginning_to_end(count, noise):
    jitter = 1 + noise * np.random.default_rng(0).normal(size=count)
    (alarm,) = read_curves(Curves(train_loss=2.30 * jitter, classes=10))
    assert (alarm.cause, alarm.severity) == ("no_learning", "alarm")
    assert "% of guessing" in alarm.evidence
    (note,) = read_curves(Curves(train_loss=0.46 * jitter, classes=10))
    assert (note.cause, note.severity) == ("no_gain", "note")
    assert read_curves(Curves(train_loss=0.05 * jitter, classes=10)) == ()
    (unknown,) = read_curves(Curves(train_loss=0.46 * jitter))
    assert (unknown.cause, unknown.severity) == ("no_learning", "note")
    assert "guessing" not in unknown.evidence


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        ([0.8, 0.6, 1.9, 2.31, 2.3, 2.31, 2.3, 2.3], "divergence"),
        ([78.0, 3.0, 2.4, 2.35, 2.3, 2.31, 2.3, 2.31, 2.3, 2.31], "lr_too_high"),
        ([80.0, 17.0, 3.0, 1.5, 0.7, 0.4, 0.2, 0.2], "bad_start"),
        ([2.0, 1.2, 0.92, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], "plateau"),
        ([2.2, 1.6, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 0.6, 0.4], "plateau"),
        ([2.3, 2.28, 2.26, 2.25, 2.245, 2.24, 2.24, 2.24, 2.24, 2.24], "no_learning"),
    ],
)
def test_further_shapes(train, cause):
    assert causes(train) == [cause]


def test_right_more_often_than_it_dares_to_say_is_a_low_rate():
    train = list(1.8 + 0.45 * np.exp(-EPOCHS / 4))
    timid = {"held_back_loss": train, "held_back_accuracy": [0.89] * 20}
    assert causes(train, **timid) == ["lr_too_low"]
    assert causes(train, **{**timid, "held_back_accuracy": [0.3] * 20}) == ["underfitting"]


def test_what_says_nothing_of_new_images():
    held = list(2.35 + 0.1 * EPOCHS)
    assert causes(HEALTHY, held_back_loss=held) == ["labels_unrelated"]
    seen = {"held_back_loss": held, "held_back_images": 200}
    assert causes(HEALTHY, held_back_accuracy=[0.11] * 20, **seen) == ["labels_unrelated"]
    assert causes(HEALTHY, held_back_accuracy=[0.45] * 20, **seen) == ["overfitting"]


def test_epochs_without_a_measurement_are_gaps():
    held = np.concatenate([np.linspace(2, 1, 8), np.linspace(1.02, 1.6, 12)])
    held[::2] = math.nan
    (found,) = read_curves(Curves(train_loss=HEALTHY, held_back_loss=held, classes=10))
    assert (found.cause, "lowest in epoch 8" in found.evidence) == ("overfitting", True)
    held[5] = math.inf
    (found,) = read_curves(Curves(train_loss=HEALTHY, held_back_loss=held, classes=10))
    assert found.evidence.startswith("The held-back loss is not finite in epoch 6, though the training loss is")


def test_places_are_batches_where_values_are():
    (found,) = read_curves(Curves(train_loss=[2.3, 2.0, 1.5, 3.0, 9.0, 30.0], classes=10, batches=40))
    assert "in batch 120" in found.evidence


def test_curves_check_themselves():
    with pytest.raises(DataError, match="held_back_loss has 2 values, train_loss 3"):
        Curves(train_loss=[1, 2, 3], held_back_loss=[1, 2])
    with pytest.raises(OptionError, match="classes must be >= 2"):
        Curves(train_loss=[1.0], classes=1)


def test_without_classes_the_first_loss_stands_for_guessing():
    assert [one.cause for one in read_curves(Curves(train_loss=[5.0] * 9))] == ["no_learning"]


@given(st.lists(st.floats(0, 100), min_size=5, max_size=30), st.integers(2, 1000))
def test_any_curve_is_read_without_an_error(losses, classes):
    found = read_curves(Curves(train_loss=losses, held_back_loss=losses[::-1], classes=classes))
    assert [one.severity for one in found] == sorted(one.severity for one in found)


def run(lr, *, epochs=12, wrong=0.0, scale=1.0, images=400):
    """A small network on scikit-learn's digits: its curves."""
    torch.manual_seed(0)
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    rows = torch.tensor(digits.data[order] / 16 - 0.3, dtype=torch.float32)
    labels = torch.tensor(digits.target[order])
    given_labels = labels[:images].clone()
    flipped = rng.choice(images, round(wrong * images), replace=False)
    given_labels[flipped] = torch.tensor(rng.integers(0, 10, len(flipped)))
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    train, held, accuracy = [], [], []
    for _ in range(epochs):
        total = 0.0
        for part in torch.randperm(images).split(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(rows[part]), given_labels[part])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        train.append(total / images)
        with torch.no_grad():
            out = model(rows[images:])
            held.append(float(F.cross_entropy(out, labels[images:])))
            accuracy.append(float((out.argmax(dim=1) == labels[images:]).float().mean()))
    return Curves(
        train_loss=train,
        held_back_loss=held,
        held_back_accuracy=accuracy,
        classes=10,
        held_back_images=len(labels) - images,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.02}, set()),
        ({"lr": 1e-4}, {"lr_too_low"}),
        ({"lr": 5.0}, {"lr_too_high", "divergence", "not_finite", "no_learning", "underfitting"}),
        ({"lr": 0.0}, {"no_learning"}),
        ({"lr": 0.02, "wrong": 0.4, "epochs": 60}, {"overfitting", "label_noise"}),
    ],
)
def test_real_training(settings, expected):
    found = {one.cause for one in read_curves(run(**settings))}
    assert found <= expected
    assert bool(found) == bool(expected)


def test_a_collapse_is_a_divergence_and_nan_is_seen_at_once():
    assert causes([2.2, 0.5, 0.1, 0.05, 0.04, 1.9, 2.1, 2.1, 2.1, 2.1]) == ["divergence"]
    assert causes([2.3, math.nan]) == ["not_finite"]


def test_without_classes_nothing_is_read_against_guessing():
    assert read_curves(Curves(train_loss=[0.11, 0.09, 0.1, 0.08, 0.1, 0.09, 0.1, 0.08])) == ()
    assert read_curves(Curves(train_loss=[0.5, 0.35, 0.32, 0.31, 0.305, 0.302, 0.301, 0.3])) == ()


def test_mixed_images_are_no_underfitting():
    train = list(1.4 + 0.9 * np.exp(-EPOCHS / 2))
    assert causes(train, held_back_loss=[0.3 + value / 10 for value in train]) == []


def test_arrays_are_taken_as_lists_are():
    found = Curves(train_loss=HEALTHY, held_back_loss=HEALTHY + 0.2, held_back_accuracy=HEALTHY / 3, classes=10)
    assert read_curves(found) == ()
    with pytest.raises(OptionError, match=r"held_back_accuracy must be in \[0, 1\]"):
        Curves(train_loss=[1.0, 1.0], held_back_accuracy=[90.0, 91.0])
