"""Answers that depend on the image carry information; answers that do not, however sure, carry none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.measure import HeadScale, fit_head_scale, measure_head_information

CLASSES = 100


def answer(rng, images, *, kinds, sureness):
    """(N, Z): each image is of one of `kinds` classes, and is given that class with probability `sureness`."""
    rows = np.full((images, CLASSES), (1 - sureness) / (CLASSES - 1))
    rows[np.arange(images), rng.integers(0, kinds, images)] = sureness
    return rows


def test_it_is_the_entropy_of_the_classes_where_answers_are_sure():
    found = measure_head_information(answer(np.random.default_rng(0), 4000, kinds=10, sureness=1 - 1e-9))
    assert found.share == pytest.approx(math.log(10) / math.log(CLASSES), abs=0.01)
    assert found.told_apart == pytest.approx(10, rel=0.05)
    assert found.confidence == pytest.approx(1)


@pytest.mark.parametrize("sureness", [0.011, 0.5, 0.99])
def test_confidence_without_difference_is_nothing(sureness):
    found = measure_head_information(answer(np.random.default_rng(0), 200, kinds=1, sureness=sureness))
    assert found.share == pytest.approx(0, abs=1e-6)
    assert found.confidence == pytest.approx(sureness)


@given(st.integers(0, 100))
def test_it_rises_with_confidence_and_with_kinds(seed):
    rng = np.random.default_rng(seed)
    order = [(2, 0.5), (2, 0.95), (20, 0.95), (90, 0.99)]
    shares = [measure_head_information(answer(rng, 300, kinds=kinds, sureness=sure)).share for kinds, sure in order]
    assert shares == sorted(shares)


def test_its_bias_at_few_images_is_small_and_its_error_is_right():
    rng = np.random.default_rng(0)
    full = answer(rng, 4000, kinds=10, sureness=0.8)
    truth = measure_head_information(full).share
    small = [measure_head_information(full[rng.permutation(4000)[:60]]) for _ in range(60)]
    shares = np.array([found.share for found in small])
    plain = math.log(10) / math.log(CLASSES)
    assert abs(shares.mean() - truth) < 0.01 * plain + 3 * shares.std() / math.sqrt(60)
    assert np.mean([found.error for found in small]) == pytest.approx(shares.std(), rel=0.5)


def test_order_of_classes_does_not_matter():
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(CLASSES, 0.1), size=150)
    found, mixed = measure_head_information(rows), measure_head_information(rows[:, rng.permutation(CLASSES)])
    assert (found.share, found.error) == pytest.approx((mixed.share, mixed.error))


def test_a_scale_is_found_again_and_says_how_far_it_is_off():
    rng = np.random.default_rng(0)
    truth = HeadScale(0.4, 6.0, 0.3)
    shares = rng.uniform(0, 1, 300)
    logits = truth.steepness * (shares - truth.middle) + rng.normal(0, truth.scatter, 300)
    scale = fit_head_scale(shares, 1 / (1 + np.exp(-logits)), [str(number % 30) for number in range(300)])
    assert (scale.middle, scale.steepness, scale.scatter) == pytest.approx((0.4, 6.0, 0.3), rel=0.15)
    low, high = scale.interval(0.5, 0.0)
    assert low < scale.similarity(0.5) < high
    wide = scale.interval(0.5, 0.1)
    assert wide[0] < low
    assert wide[1] > high


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: measure_head_information(np.ones((1, 5))), r"N, Z >= 2, got \(1, 5\)"),
        (lambda: measure_head_information(np.ones(5)), r"got \(5,\)"),
        (lambda: fit_head_scale(np.arange(4.0), np.full(4, 0.5), list("aabb")), "3 families or more, got 2"),
        (lambda: fit_head_scale(np.arange(3.0), np.array([0.9, 0.5, 0.1]), list("abc")), "do not increase"),
        (lambda: HeadScale(0.5, 0.0, 1.0), "steepness > 0"),
    ],
)
def test_what_cannot_be_measured_is_an_error(call, said):
    with pytest.raises(OptionError, match=said):
        call()
