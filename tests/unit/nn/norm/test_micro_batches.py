"""Smaller parts of a batch, and several batches together: against plain batch normalisation of just these images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.norm.inputs import check_alike, same_state, shapes, trained, values_of
from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm import AccumulatedBatchNorm, GhostBatchNorm


@settings(max_examples=30, deadline=None)
@given(shapes(), st.integers(3, 9))
def test_one_ghost_is_batch_normalisation(shape, size):
    plain = trained(shape[1], axes=len(shape))
    ghost, values = GhostBatchNorm(plain, size=size), values_of(*shape)
    assert torch.equal(ghost(values), plain(values))
    assert same_state(ghost, plain)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 17), st.integers(2, 6))
def test_every_ghost_is_normalised_by_itself_and_none_is_smaller_than_asked(images, size):
    values, layer = values_of(images, 4, 2, 2), trained(4)
    made = GhostBatchNorm(layer, size=size)
    got = made(values)
    ghosts = torch.tensor_split(values, max(1, images // size))
    assert min(map(len, ghosts)) >= min(size, images)
    expected = [nn.functional.batch_norm(g, None, None, layer.weight, layer.bias, True) for g in ghosts]
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-9, atol=1e-9)
    means = torch.stack([ghost.mean((0, 2, 3)) for ghost in ghosts]).mean(0)
    variances = torch.stack([ghost.var((0, 2, 3)) for ghost in ghosts]).mean(0)
    torch.testing.assert_close(made.running_mean, 0.9 * layer.running_mean + 0.1 * means)
    torch.testing.assert_close(made.running_var, 0.9 * layer.running_var + 0.1 * variances)
    assert int(made.num_batches_tracked) == 8
    torch.testing.assert_close(GhostBatchNorm(layer, size=size).eval()(values), layer.eval()(values))


def test_a_ghost_of_one_value_is_refused():
    with pytest.raises(OptionError, match="must be >= 1 image, got 0"):
        GhostBatchNorm(trained(3), size=0)
    with pytest.raises(DataError, match=r"GhostBatchNorm .* needs at least 2 values .*, got 1: shape \(1, 3\)"):
        GhostBatchNorm(trained(3, axes=2), size=1)(values_of(4, 3))


@settings(max_examples=30, deadline=None)
@given(shapes())
def test_one_batch_per_step_is_batch_normalisation(shape):
    plain = trained(shape[1], axes=len(shape))
    check_alike(plain, AccumulatedBatchNorm(plain, batches=1), shape, batches=2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_the_last_batch_is_normalised_as_if_all_had_come_together(sizes):
    values = values_of(sum(sizes), 4, 2, 2)
    together, ours = trained(4), AccumulatedBatchNorm(trained(4), batches=len(sizes))
    for number, part in enumerate(torch.split(values, sizes)):
        so_far = values[: sum(sizes[: number + 1])]
        expected = nn.functional.batch_norm(so_far, None, None, together.weight, together.bias, True)[-len(part) :]
        torch.testing.assert_close(ours(part), expected, rtol=1e-9, atol=1e-9)
    together(values)
    torch.testing.assert_close(ours.running_mean, together.running_mean)
    torch.testing.assert_close(ours.running_var, together.running_var)
    assert int(ours.num_batches_tracked) == 8
    assert (int(ours.pooled_batches), int(ours.pooled_values)) == (0, 0)


def test_all_batches_may_go_forward_before_any_goes_backward():
    ours = AccumulatedBatchNorm(trained(4), batches=2)
    inputs = [values_of(3, 4, 2, 2, seed=seed).requires_grad_() for seed in range(4)]
    sum(ours(values).square().sum() for values in inputs).backward()
    assert all(values.grad.abs().sum() > 0 for values in inputs)


def test_a_step_on_fewer_batches_is_told_by_forgetting():
    ours, fresh, values = (*(AccumulatedBatchNorm(trained(4), batches=3) for _ in range(2)), values_of(3, 4, 2, 2))
    ours(values_of(3, 4, 2, 2, seed=1))
    ours.forget()
    assert torch.equal(ours(values), fresh(values))


def test_a_run_that_stops_between_two_steps_goes_on_the_same():
    whole, half = (AccumulatedBatchNorm(trained(4), batches=3) for _ in range(2))
    batches = [values_of(3, 4, 2, 2, seed=seed) for seed in range(3)]
    for values in batches[:2]:
        whole(values), half(values)
    resumed = AccumulatedBatchNorm(trained(4), batches=3)
    resumed.load_state_dict(half.state_dict())
    assert torch.equal(whole(batches[2]), resumed(batches[2]))
    assert same_state(whole, resumed)


def test_evaluation_neither_pools_nor_follows():
    layer = trained(4).eval()
    ours = AccumulatedBatchNorm(layer)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert torch.equal(ours(values_of(3, 4, 2, 2)), layer(values_of(3, 4, 2, 2)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_only_the_first_batch_needs_two_values_of_its_own():
    ours = AccumulatedBatchNorm(trained(4, axes=2), batches=2)
    with pytest.raises(DataError, match="AccumulatedBatchNorm in training needs at least 2 values per channel"):
        ours(values_of(1, 4))
    ours(values_of(2, 4))
    ours(values_of(1, 4))
    with pytest.raises(OptionError, match="Micro-batches per optimizer step must be >= 1, got 0"):
        AccumulatedBatchNorm(trained(4), batches=0)
