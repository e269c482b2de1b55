"""Never worse than the probe, on any logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from transferkit.finetune.verify import WEIGHTS, verify


@st.composite
def answers(draw):
    """Logits of two models, each right to its own degree, on its own scale; labels."""
    count, classes = draw(st.integers(2, 40)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    labels = rng.integers(0, classes, count)

    def logits() -> np.ndarray:
        strength = draw(st.sampled_from([-2.0, 0.0, 0.5, 2.0, 8.0]))
        scale = draw(st.sampled_from([1e-4, 1.0, 30.0, 1e4]))
        return scale * (rng.normal(size=(count, classes)) + strength * np.eye(classes)[labels])

    return logits(), logits(), labels


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


@settings(max_examples=150, deadline=None)
@given(answers())
def test_what_is_kept_is_no_less_accurate_than_the_probe(drawn):
    probe, tuned, labels = drawn
    verdict = verify(probe, tuned, labels)
    first, last = verdict.candidates[0], verdict.candidates[-1]
    assert (first.name, first.weight, last.name, last.weight) == ("probe", 0, "fine-tuned", 1)
    assert first.accuracy == accuracy(probe, labels)
    assert last.accuracy == accuracy(tuned, labels)
    assert verdict.kept in verdict.candidates
    assert verdict.kept.accuracy >= first.accuracy
    # What is promised of the returned model holds of the logits that it will be made of.
    weight, (one, other) = verdict.kept.weight, verdict.temperatures
    mixed = (1 - weight) / one * probe + weight / other * tuned
    assert accuracy(mixed, labels) == pytest.approx(verdict.kept.accuracy, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_none_within_one_standard_error_of_the_best_is_more_certain(drawn):
    probe, tuned, labels = drawn
    verdict = verify(probe, tuned, labels)
    best = max(candidate.accuracy for candidate in verdict.candidates)
    error = np.sqrt(best * (1 - best) / len(labels))
    assert verdict.kept.accuracy >= best - error - 1e-12
    rivals = [c for c in verdict.candidates if c.accuracy >= max(best - error, verdict.candidates[0].accuracy)]
    assert verdict.kept.log_loss == min(rival.log_loss for rival in rivals)


def test_log_losses_and_temperatures_are_those_of_other_programs():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    probe, tuned = (rng.normal(size=(200, 3)) + k * np.eye(3)[labels] for k in (1.0, 2.0))
    verdict = verify(3 * probe, tuned / 2, labels)

    def softened(logits, temperature):
        scaled = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        return scaled / scaled.sum(1, keepdims=True)

    for logits, temperature in ((3 * probe, verdict.temperatures[0]), (tuned / 2, verdict.temperatures[1])):
        found = minimize_scalar(
            lambda t, z=logits: log_loss(labels, softened(z, t)), bounds=(0.05, 20), method="bounded"
        )
        assert temperature == pytest.approx(found.x, rel=1e-2)
    for candidate in verdict.candidates:
        mixed = (1 - candidate.weight) * 3 * probe / verdict.temperatures[0]
        mixed = mixed + candidate.weight * tuned / 2 / verdict.temperatures[1]
        assert candidate.log_loss == pytest.approx(log_loss(labels, softened(mixed, 1.0)), rel=1e-6)
    assert [candidate.weight for candidate in verdict.candidates] == list(WEIGHTS)


def test_two_that_err_independently_are_averaged():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 2000)
    probe, tuned = (rng.normal(size=(2000, 4)) + 1.2 * np.eye(4)[labels] for _ in range(2))
    verdict = verify(probe, 50 * tuned, labels)
    assert (verdict.kept.name, verdict.kept.weight) == ("average", 0.5)
    assert verdict.kept.accuracy > max(verdict.candidates[0].accuracy, verdict.candidates[-1].accuracy)


def test_among_equals_one_network_is_kept_not_two():
    labels = np.arange(50) % 2
    perfect = 1e4 * np.eye(2)[labels]
    verdict = verify(-perfect, perfect, labels)
    assert {candidate.log_loss for candidate in verdict.candidates[3:]} == {0.0}
    assert verdict.kept.name == "fine-tuned"
    assert verify(perfect, perfect, labels).kept.name == "probe"


def test_a_clearly_better_network_is_kept_and_a_clearly_worse_one_is_not():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise, good = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 2 * np.eye(2)[labels]
    assert verify(noise, good, labels).kept.name == "fine-tuned"
    assert verify(good, noise, labels).kept.name == "probe"


def test_images_that_count_more_count_more():
    labels = np.array([0, 0, 0, 1])
    crowd = np.array([[3.0, 0.0]] * 4)  # right of the three, wrong of the one
    fair = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0]])
    assert verify(fair, crowd, labels).kept.name == "fine-tuned"
    weights = np.array([1.0, 1.0, 1.0, 3.0])
    verdict = verify(fair, crowd, labels, weights)
    assert [verdict.candidates[place].accuracy for place in (0, -1)] == pytest.approx([4 / 6, 3 / 6])
    assert verdict.kept.accuracy >= 4 / 6


def test_what_counts_by_class_is_judged_plainly_as_well():
    labels = np.array([0, 0, 0, 1])
    probe, tuned = np.eye(2)[[0, 0, 0, 0]], np.eye(2)[[0, 1, 1, 1]]
    weights = np.array([2.0, 2.0, 2.0, 6.0])  # each class counts the same
    weighted = verify(probe, tuned, labels, weights, shares=np.ones(4))
    assert [(c.accuracy, c.plain_accuracy) for c in weighted.candidates[:: len(WEIGHTS) - 1]] == [
        (pytest.approx(0.5), 0.75),
        (pytest.approx(2 / 3), 0.5),
    ]
    assert verify(probe, tuned, labels).kept.plain_accuracy is None
