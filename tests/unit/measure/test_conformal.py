"""Prediction sets: known thresholds, brute force, and coverage under exchangeability."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from transferkit.core.errors import OptionError
from transferkit.measure import check_coverage, fit_sets, set_scores, summarise_sets
from transferkit.measure.conformal import SET_SCORES
from transferkit.records import HeldBackScores, HeldOut


def draw(images: int, classes: int, *, seed: int, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are no more right than the labels are noisy."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    return softmax(rng.normal(size=(images, classes)) + signal * np.eye(classes)[labels], axis=1), labels


def test_threshold_is_the_order_statistic_of_vovk():
    probabilities = np.stack([1 - np.arange(1, 10) / 10, np.arange(1, 10) / 10], axis=1)
    labels = np.zeros(9, dtype=np.int64)  # scores 0.1, 0.2, ... 0.9
    assert fit_sets(probabilities, labels, coverage=0.8).threshold == pytest.approx(0.8)
    assert fit_sets(probabilities, labels, coverage=0.9).threshold == pytest.approx(0.9)
    assert fit_sets(probabilities, labels, coverage=0.91).threshold == math.inf


def test_too_few_images_give_all_classes():
    probabilities, labels = draw(8, 4, seed=0)
    assert fit_sets(probabilities, labels, coverage=0.9).sets(probabilities).all()


@pytest.mark.parametrize("score", SET_SCORES)
def test_the_stated_coverage_is_kept_on_average(score):
    covered = []
    for seed in range(60):
        probabilities, labels = draw(299, 6, seed=seed)
        rng = np.random.default_rng(seed)
        rule = fit_sets(probabilities[:199], labels[:199], coverage=0.9, score=score, rng=rng)
        sets = rule.sets(probabilities[199:], rng=rng, allow_empty=True)
        covered.append(sets[np.arange(100), labels[199:]].mean())
    # Exchangeable: 0.9 exactly on average; its standard error over 60 draws is 0.005.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)


def test_aps_agrees_with_a_loop():
    probabilities, _ = draw(20, 5, seed=3)
    found = set_scores(probabilities, score="aps")
    for row, scores in zip(probabilities, found, strict=True):
        for label in range(5):
            assert scores[label] == pytest.approx(row[row >= row[label]].sum())


def test_a_random_share_of_the_own_probability_comes_off():
    probabilities, _ = draw(50, 4, seed=1)
    whole = set_scores(probabilities, score="aps")
    part = set_scores(probabilities, score="aps", rng=np.random.default_rng(0))
    again = set_scores(probabilities, score="aps", rng=np.random.default_rng(0))
    np.testing.assert_array_equal(part, again)
    assert ((whole - probabilities <= part + 1e-12) & (part <= whole)).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 60), classes=st.integers(2, 7))
def test_more_coverage_never_makes_a_set_smaller(seed, images, classes):
    probabilities, labels = draw(images, classes, seed=seed)
    rules = [fit_sets(probabilities, labels, coverage=coverage) for coverage in (0.5, 0.8, 0.95)]
    small, middle, large = (rule.sets(probabilities) for rule in rules)
    assert (small <= middle).all()
    assert (middle <= large).all()
    assert small.any(axis=1).all()
    assert small[np.arange(images), probabilities.argmax(axis=1)].all()


def test_no_images_give_no_sets():
    probabilities, labels = draw(30, 3, seed=0)
    assert fit_sets(probabilities, labels, coverage=0.5).sets(np.empty((0, 3))).shape == (0, 3)
    assert summarise_sets(None, None) == ()


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, 90, math.nan, True, "0.9", None])
def test_what_is_no_coverage_is_refused(wrong):
    with pytest.raises(OptionError, match=r"coverage is the share of images .* in \(0, 1\): 0.9 is 90 %"):
        check_coverage(wrong)


def test_an_unknown_score_is_named():
    with pytest.raises(OptionError, match="Unknown score of prediction sets 'lacs'. Closest known: lac"):
        set_scores(np.ones((1, 1)), score="lacs")


def test_the_summary_counts_both_splits():
    probabilities, labels = draw(500, 4, seed=5)
    scores = HeldBackScores(
        labels=labels[:400], logits=np.log(probabilities[:400]).astype(np.float32), rows=np.arange(400)
    )
    answers = HeldOut(
        split="test", labels=labels[400:], probabilities=probabilities[400:].astype(np.float32), items=("x",) * 100
    )
    rows = summarise_sets(scores, answers)
    assert [row.coverage for row in rows] == [0.8, 0.9, 0.95]
    for row in rows:
        assert row.held_back_coverage == pytest.approx(row.coverage, abs=0.01)
        assert row.tested_coverage == pytest.approx(row.coverage, abs=0.1)
    assert rows[0].held_back_size < rows[1].held_back_size < rows[2].held_back_size
    assert summarise_sets(scores, None)[0].tested_coverage is None
