"""A deadline: training ends at an epoch, and what was trained until then is judged and returned as ever."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.unit.finetune.test_cross_validation import CPU, IMAGES, make_task, run
from transferkit.finetune import Runner
from transferkit.finetune.deadline import NEVER, Deadline
from transferkit.records import Fold

__all__ = ["make_task"]  # a fixture

ALL = np.arange(IMAGES)
ONE = [Fold(ALL[:20], ALL[20:])]
THREE = [Fold(np.setdiff1d(ALL, ALL[start::3]), ALL[start::3]) for start in range(3)]


def allowing(times: int) -> Deadline:
    """A deadline that says yes so many times, whatever is asked: its clock strikes 1, 2, 3, ... a million seconds
    apart, so that the seconds of epochs do not matter."""
    return Deadline(at=(times + 0.5) * 1e6, clock=map(float, itertools.count(10**6, 10**6)).__next__)


def runner_until(deadline: Deadline) -> Runner:
    return Runner(device=CPU, progress=False, deadline=deadline)


def test_a_deadline_allows_what_ends_before_it():
    deadline = Deadline(at=10.0, clock=lambda: 4.0)
    assert deadline.allows(6.0)
    assert not deadline.allows(6.1)
    assert deadline.is_set


def test_without_a_deadline_everything_is_allowed_and_the_clock_is_not_read():
    assert NEVER.allows(1e12)
    assert not NEVER.is_set
    assert Deadline(at=math.inf, clock=lambda: pytest.fail("the clock was read")).allows(1.0)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_training_ends_with_the_epoch_after_which_the_deadline_allows_no_other(make_task, times):
    runner = runner_until(allowing(times))
    tuned = run(make_task(epochs=6), folds=ONE, runner=runner)
    assert len(tuned.record.epochs) == 1 + times
    assert f"The budget ended training after {1 + times} of 6 epochs." in tuned.record.notes
    probe, *_ = tuned.record.candidates
    assert tuned.record.kept.accuracy >= probe.accuracy


def test_a_deadline_far_away_changes_nothing(make_task):
    without = run(make_task(), folds=THREE, runner=runner_until(NEVER))
    far = run(make_task(), folds=THREE, runner=runner_until(Deadline(at=1e12)))
    assert far.record.candidates == without.record.candidates
    assert not any("budget" in note for note in far.record.notes)


def test_a_fold_that_would_not_be_finished_is_not_begun_and_the_others_are_judged(make_task):
    epochs = 3
    runner = runner_until(allowing(epochs - 1))  # the further epochs of the first fold, and nothing else
    tuned = run(make_task(epochs=epochs), folds=THREE, runner=runner, keep=1.0)
    assert "The budget left no time for more than 1 of 3 folds." in tuned.record.notes
    assert tuned.record.held_back == len(THREE[0].held_back)
    assert len(tuned.record.epochs) == epochs


def test_without_time_for_a_refit_the_network_of_the_fold_is_returned(make_task):
    epochs = 3
    task = make_task(epochs=epochs)
    cut = run(task, folds=ONE, refit=True, keep=1.0, runner=runner_until(allowing(epochs - 1)))
    assert "The budget left no time to train the network once more on all images." in cut.record.notes
    assert "trained on the others only" in cut.record.how
    unfitted = run(task, folds=ONE, refit=False, keep=1.0)
    assert cut.record.candidates == unfitted.record.candidates
    for name, tensor in unfitted.model.state_dict().items():
        assert tensor.equal(cut.model.state_dict()[name]), name


def test_two_rates_that_race_against_a_deadline_give_a_network(make_task):
    runner = runner_until(allowing(1))
    tuned = run(make_task(epochs=6, lr=None), folds=THREE, runner=runner)
    assert tuned.record.kept.accuracy >= tuned.record.candidates[0].accuracy
    assert "The budget left no time for more than" in " ".join(tuned.record.notes)
