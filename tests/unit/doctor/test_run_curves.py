"""Curves that are kept while a run goes on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transferkit.doctor.run_curves import RunCurves


def kept(losses, **epoch):
    found = RunCurves()
    for loss in losses:
        found.observe(loss)
        found.end_batch()
    if epoch:
        found.end_epoch(**{"held_back_loss": None, "held_back_accuracy": None, **epoch})
    return found


@given(st.integers(1, 3000))
def test_a_run_of_one_epoch_is_read_by_batches_of_equal_number(count):
    curves = kept([torch.tensor(float(n)) for n in range(count)]).curves()
    assert len(curves.train_loss) <= 12
    if curves.train_loss:
        size = curves.batches
        assert size >= 4
        means = [start * size + (size - 1) / 2 for start in range(len(curves.train_loss))]
        assert curves.train_loss == pytest.approx(means)
    assert bool(curves.train_loss) == (count >= 20)


def test_five_epochs_are_read_by_epoch():
    found = RunCurves()
    for epoch in range(5):
        for _ in range(10):
            found.observe(5.0 - epoch)
            found.end_batch()
        found.end_epoch(None if epoch == 0 else 1.0, 80.0 + epoch)
    curves = found.curves(classes=10)
    assert curves.batches is None
    assert list(curves.train_loss) == [5, 4, 3, 2, 1]
    assert math.isnan(curves.held_back_loss[0])
    assert list(curves.held_back_accuracy) == pytest.approx([0.8, 0.81, 0.82, 0.83, 0.84])


def test_half_precision_does_not_stand_still():
    found = kept([torch.tensor(1.0, dtype=torch.bfloat16)] * 1000, train_loss=None)
    assert found.epochs == [(1.0, None, None)]


def test_an_epoch_without_a_step_is_none_and_what_a_module_logs_stands_in_for_what_nobody_saw():
    found = kept([1.0], train_loss=7.0)
    found.end_epoch(0.5, 0.5, train_loss=7.0)
    assert found.epochs == [(1.0, None, None)]
    unseen = RunCurves()
    unseen.end_epoch(0.5, None, train_loss=7.0)
    assert unseen.epochs == [(7.0, 0.5, None)]
    assert not unseen.observed


@given(st.integers(0, 400), st.integers(0, 400))
def test_a_resumed_run_goes_on(first, more):
    whole = kept(list(range(first + more)))
    resumed = RunCurves()
    resumed.load_state_dict(kept(list(range(first))).state_dict())
    for loss in range(first, first + more):
        resumed.observe(loss)
        resumed.end_batch()
    assert resumed.state_dict() == whole.state_dict()
