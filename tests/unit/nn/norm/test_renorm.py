"""Batch renormalisation between its two ends: plain batch normalisation and the running statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.norm.inputs import along_channels, check_alike, same_state, shapes, trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import FROM_SCRATCH, BatchRenorm, Clipping, FrozenBatchNorm

NONE = Clipping(r_max=1, d_max=0)
UNCLIPPED = Clipping(r_max=math.inf, d_max=math.inf)


@settings(max_examples=30, deadline=None)
@given(shapes())
def test_without_corrections_it_is_batch_normalisation(shape):
    plain = trained(shape[1], axes=len(shape))
    check_alike(plain, BatchRenorm(plain, clipping=NONE), shape)


@settings(max_examples=30, deadline=None)
@given(shapes())
def test_without_limits_training_gives_what_evaluation_gives(shape):
    layer, values = trained(shape[1], axes=len(shape)), values_of(*shape)
    renorm = BatchRenorm(layer, clipping=UNCLIPPED)
    torch.testing.assert_close(renorm.train()(values), FrozenBatchNorm(layer)(values), rtol=1e-9, atol=1e-9)


def test_without_limits_gradients_still_flow_through_the_batch():
    layer = trained(3)
    batches = [values_of(4, 3, 2, 2).requires_grad_() for _ in range(2)]
    for one, values in zip((BatchRenorm(layer, clipping=UNCLIPPED), FrozenBatchNorm(layer)), batches, strict=True):
        (one(values) * values_of(4, 3, 2, 2, seed=1)).sum().backward()
    # A batch's own moments take away what all its values have in common; the frozen layer lets it pass.
    torch.testing.assert_close(batches[0].grad.sum(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    assert batches[1].grad.sum(dim=(0, 2, 3)).abs().min() > 1


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 4), st.floats(0, 4))
def test_corrections_are_the_clipped_ratio_and_shift(r_max, d_max):
    layer, values = trained(4), values_of(3, 4, 2, 2)
    made = BatchRenorm(layer, clipping=Clipping(r_max=r_max, d_max=d_max))(values)
    mean, deviation = values.mean((0, 2, 3)), (values.var((0, 2, 3), correction=0) + 1e-5).sqrt()
    source = (layer.running_var + 1e-5).sqrt()
    ratio = torch.tensor(np.clip((deviation / source).numpy(), 1 / r_max, r_max))
    shift = torch.tensor(np.clip(((mean - layer.running_mean) / source).numpy(), -d_max, d_max))
    plain = nn.functional.batch_norm(values, None, None, training=True)
    corrected = plain * along_channels(ratio, plain) + along_channels(shift, plain)
    expected = corrected * along_channels(layer.weight, plain) + along_channels(layer.bias, plain)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_a_schedule_begins_as_batch_normalisation_and_ends_at_its_limits():
    clipping = Clipping(r_max=3, d_max=5, start=2, r_batches=6, d_batches=4)
    found = [clipping.at(batches) for batches in (0, 1, 2, 3, 4, 5, 6, 100)]
    assert [r for r, _ in found] == [1, 1, 1, 1.5, 2, 2.5, 3, 3]
    assert [d for _, d in found] == [0, 0, 0, 2.5, 5, 5, 5, 5]
    assert FROM_SCRATCH.at(4_999) == (1, 0)
    assert FROM_SCRATCH.at(25_000)[1] == 5
    assert Clipping(r_max=math.inf, start=1, r_batches=3, d_batches=3).at(1)[0] == 1


def test_a_schedule_goes_on_after_a_round_trip_through_the_state():
    values, clipping = values_of(4, 3, 2, 2), Clipping(start=2, r_batches=4, d_batches=4)
    whole, half = (BatchRenorm(trained(3), clipping=clipping) for _ in range(2))
    for _ in range(3):
        whole(values), half(values)
    resumed = BatchRenorm(trained(3), clipping=clipping)
    resumed.load_state_dict(half.state_dict())
    assert int(resumed.corrected) == 3
    assert torch.equal(whole(values), resumed(values))
    assert same_state(whole, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "Clipping.r_max must be >= 1, got 0.5"),
        ({"r_max": math.nan}, "Clipping.r_max must be >= 1, got nan"),
        ({"d_max": -1}, "Clipping.d_max must be >= 0, got -1"),
        ({"start": 5, "r_batches": 9}, "start <= d_batches, got 5, 9, 0"),
        ({"start": -1}, "0 <= start"),
    ],
)
def test_limits_that_cannot_be_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Clipping(**options)


def test_what_it_cannot_work_on_is_refused():
    with pytest.raises(OptionError, match="no running statistics, which batch renormalisation needs"):
        BatchRenorm(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(DataError, match="BatchRenorm in training needs at least 2 values per channel"):
        BatchRenorm(trained(3))(torch.zeros(1, 3, 1, 1, dtype=torch.float64))
