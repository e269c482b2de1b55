"""Between source and batch: its two ends, and the sum written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.norm.inputs import same_state, shapes, trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import AlphaBatchNorm, FrozenBatchNorm

CLOSE = 1e-9
"""Sums in another order."""


@settings(max_examples=30, deadline=None)
@given(shapes(), st.booleans())
def test_without_strength_the_batch_decides_and_with_all_of_it_the_source(shape, training):
    layer, values = trained(shape[1], axes=len(shape)), values_of(*shape)
    by_batch = nn.functional.batch_norm(values, None, None, layer.weight, layer.bias, True)
    for strength, expected in [(0, by_batch), (math.inf, FrozenBatchNorm(layer)(values))]:
        made = AlphaBatchNorm(layer, strength=strength).train(training)(values)
        torch.testing.assert_close(made, expected, rtol=CLOSE, atol=CLOSE)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.floats(0.1, 100))
def test_moments_are_blended_by_numbers_of_images(images, strength):
    layer, values = trained(4), values_of(images, 4, 3, 3)
    ours = AlphaBatchNorm(layer, strength=strength)
    share = strength / (strength + images)
    assert ours.source_weight(images) == pytest.approx(share)
    blended = nn.BatchNorm2d(4).double().eval()
    blended.load_state_dict(layer.state_dict())
    blended.running_mean.mul_(share).add_(values.mean((0, 2, 3)) * (1 - share))
    blended.running_var.mul_(share).add_(values.var((0, 2, 3), correction=0) * (1 - share))
    torch.testing.assert_close(ours(values), blended(values), rtol=CLOSE, atol=CLOSE)


def test_it_goes_from_one_end_to_the_other_steadily():
    layer, values = trained(4), values_of(8, 4, 3, 3)
    end = FrozenBatchNorm(layer)(values)
    distances = [
        float((AlphaBatchNorm(layer, strength=strength)(values) - end).detach().norm())
        for strength in (0, 1, 8, 64, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 < distances[-2]


def test_training_and_evaluation_are_alike_and_nothing_moves():
    ours, values = AlphaBatchNorm(trained(4)), values_of(3, 4, 2, 2)
    assert torch.equal(ours.train()(values), ours.eval()(values))
    assert same_state(ours, trained(4))


def test_gradients_flow_through_the_share_of_the_batch():
    values = values_of(3, 2, 2, 2).requires_grad_()
    ours = AlphaBatchNorm(trained(2), strength=3.0)
    assert torch.autograd.gradcheck(ours, (values,))


def test_one_image_will_do_as_long_as_the_source_has_a_say():
    value = torch.zeros(1, 4, dtype=torch.float64)
    assert AlphaBatchNorm(trained(4, axes=2), strength=1)(value).isfinite().all()
    with pytest.raises(DataError, match="needs at least 2 values per channel"):
        AlphaBatchNorm(trained(4, axes=2), strength=0)(value)


@pytest.mark.parametrize("strength", [-1, math.nan])
def test_a_strength_that_cannot_be_is_refused(strength):
    with pytest.raises(OptionError, match="must be >= 0 images, got"):
        AlphaBatchNorm(trained(3), strength=strength)
