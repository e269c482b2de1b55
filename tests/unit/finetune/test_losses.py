"""Losses and the pull to the start, against torch and brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import nn
from torch.nn import functional as F

from transferkit.core.errors import CheckpointError, DataError, OptionError
from transferkit.finetune.losses import (
    L2SP,
    TASKS,
    l2_sp,
    multi_label_loss,
    regression_loss,
    single_label_loss,
)

smoothings = st.floats(0, 0.9)


def draw(seed: int, *, images: int = 7, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and class weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    weights = 0.1 + 3 * torch.rand(classes, dtype=torch.float64, generator=generator)
    return logits, labels, weights


@given(st.integers(0, 10**6), smoothings)
def test_cross_entropy_is_torchs(seed, smoothing):
    logits, labels, _ = draw(seed)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(single_label_loss(logits, labels, smoothing=smoothing), expected)


@given(st.integers(0, 10**6))
def test_weighted_cross_entropy_is_torchs_but_for_the_sum_of_the_weights(seed):
    logits, labels, weights = draw(seed)
    expected = F.cross_entropy(logits, labels, weight=weights) * weights[labels].mean()
    torch.testing.assert_close(single_label_loss(logits, labels, weights=weights), expected)


@given(st.integers(0, 10**6), smoothings)
def test_a_weight_is_a_number_of_copies(seed, smoothing):
    logits, labels, _ = draw(seed)
    copies = torch.tensor([1, 3, 2, 5])
    rows = torch.repeat_interleave(torch.arange(len(labels)), copies[labels])
    expected = single_label_loss(logits[rows], labels[rows], smoothing=smoothing) * len(rows) / len(labels)
    torch.testing.assert_close(single_label_loss(logits, labels, smoothing=smoothing, weights=copies), expected)


@given(st.integers(0, 10**6), smoothings, st.floats(0, 1), st.booleans())
def test_a_mixed_image_costs_its_shares_of_both_classes(seed, smoothing, share, weighted):
    logits, labels, weights = draw(seed)
    others = labels.roll(1)
    options = {"smoothing": smoothing, "weights": weights if weighted else None}
    one_hot = F.one_hot(labels, 4).double(), F.one_hot(others, 4).double()
    mixed = single_label_loss(logits, share * one_hot[0] + (1 - share) * one_hot[1], **options)
    apart = share * single_label_loss(logits, labels, **options) + (1 - share) * single_label_loss(
        logits, others, **options
    )
    torch.testing.assert_close(mixed, apart)


def test_balanced_weights_make_the_loss_the_mean_over_classes():
    logits, _, _ = draw(0, images=12)
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 2 + [3])
    weights = torch.from_numpy(TASKS["single_label"].weigh(labels.numpy(), 4, "balanced"))
    by_class = [F.cross_entropy(logits[labels == k], labels[labels == k]) for k in range(4)]
    torch.testing.assert_close(single_label_loss(logits, labels, weights=weights), torch.stack(by_class).mean())


@given(st.integers(0, 10**6), smoothings, st.booleans())
def test_binary_cross_entropy_is_brute_force(seed, smoothing, weighted):
    logits, _, weights = draw(seed)
    targets = (logits.roll(1, dims=0) > 0).long()
    loss = multi_label_loss(logits, targets, smoothing=smoothing, weights=weights if weighted else None)
    total = 0.0
    for i in range(len(logits)):
        for k in range(4):
            on = 1 / (1 + np.exp(-logits[i, k].item()))
            share = (1 - smoothing / 2) if targets[i, k] else smoothing / 2
            weight = weights[k].item() if weighted else 1.0
            total -= weight * share * np.log(on) + (1 - share) * np.log1p(-on)
    assert loss.item() == pytest.approx(total / logits.numel())


def test_binary_cross_entropy_is_scikit_learns_log_loss():
    logits, _, _ = draw(1, images=30)
    targets = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    expected = metrics.log_loss(targets.flatten().numpy(), torch.sigmoid(logits).flatten().numpy())
    assert multi_label_loss(logits, targets).item() == pytest.approx(expected)


def test_squares_are_half_of_scikit_learns_and_huber_is_torchs():
    outputs, targets = torch.randn(2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    squares = regression_loss(outputs, targets, delta=None)
    assert squares.item() == pytest.approx(metrics.mean_squared_error(targets, outputs) / 2)
    torch.testing.assert_close(regression_loss(outputs, targets), F.huber_loss(outputs, targets))
    torch.testing.assert_close(regression_loss(outputs, targets, delta=1e9), squares)


@pytest.mark.parametrize("delta", [1.0, None])
def test_a_column_and_a_row_of_numbers_are_the_same(delta):
    outputs, targets = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    flat = regression_loss(outputs, targets, delta=delta)
    assert regression_loss(outputs[:, None], targets, delta=delta) == flat
    assert regression_loss(outputs, targets[:, None], delta=delta) == flat


def test_weights_of_targets_scale_their_columns():
    outputs, targets = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0))
    columns = [regression_loss(outputs[:, k], targets[:, k]) for k in range(2)]
    loss = regression_loss(outputs, targets, weights=torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(loss, (2 * columns[0] + columns[1] / 2) / 2)


def test_targets_of_another_shape_are_refused_not_broadcast():
    with pytest.raises(DataError, match="Outputs are .4, 2., targets .4, 1.: they must agree."):
        regression_loss(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_smoothing_out_of_range_is_refused(name):
    with pytest.raises(OptionError, match="Label smoothing must be in"):
        TASKS[name].loss(torch.zeros(2, 3), torch.zeros(2, 3), smoothing=1.0)


def test_numbers_are_not_smoothed():
    with pytest.raises(OptionError, match="Label smoothing must be 0 in a regression, got 0.1."):
        TASKS["regression"].loss(torch.zeros(2), torch.zeros(2), smoothing=0.1)


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_the_loss_in_full(name, dtype):
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    targets = torch.eye(5)[:, :3]
    loss = TASKS[name].loss(outputs, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TASKS[name].loss(outputs.double(), targets).float())
    loss.backward()
    assert outputs.grad.dtype == dtype


def test_an_unknown_task_is_told_with_the_nearest_one():
    with pytest.raises(OptionError, match="Unknown task 'multilabel'. Closest known: multi_label"):
        TASKS["multilabel"]


def anchored() -> tuple[nn.Sequential, L2SP]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    start = {name: value for name, value in model.named_parameters() if name.startswith("0.")}
    return model, L2SP(start, head=["2.weight", "2.bias"], alpha=0.3, beta=0.02)


def shift(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.add_(by)


def test_the_pull_is_weight_decay_about_the_start_and_about_zero():
    model, penalty = anchored()
    shift(model, 0.7)
    penalty(dict(model.named_parameters())).backward()
    for name, value in model.named_parameters():
        expected = 0.3 * 0.7 * torch.ones_like(value) if name.startswith("0.") else 0.02 * value.detach()
        torch.testing.assert_close(value.grad, expected)


def test_the_penalty_at_the_start_is_that_of_the_head_alone():
    model, penalty = anchored()
    expected = 0.01 * sum(value.square().sum() for value in model[2].parameters())
    torch.testing.assert_close(penalty(dict(model.named_parameters())), expected)


def test_the_start_does_not_move_with_the_weights():
    model, penalty = anchored()
    state = copy.deepcopy(penalty.state_dict())
    shift(model, 1.0)
    for name, value in penalty.state_dict()["start"].items():
        assert torch.equal(value, state["start"][name])


def test_with_a_start_at_zero_it_is_an_l2_penalty():
    model, _ = anchored()
    values = dict(model.named_parameters())
    zeros = {name: torch.zeros_like(value) for name, value in values.items()}
    everything = torch.cat([value.flatten() for value in values.values()])
    torch.testing.assert_close(l2_sp(values, zeros, alpha=0.5, beta=9.0), everything.square().sum() / 4)


def test_the_stronger_the_pull_the_nearer_to_the_start_training_ends():
    distances = []
    for alpha in (0.0, 0.1, 10.0):
        weight = nn.Parameter(torch.tensor([1.0]))
        penalty = L2SP({"weight": weight}, head=[], alpha=alpha, beta=0.0)
        optimizer = torch.optim.SGD([weight], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            ((weight - 3).square().sum() + penalty({"weight": weight})).backward()
            optimizer.step()
        distances.append(weight.item() - 1)
    # the minimum of (w - 3)^2 + alpha / 2 (w - 1)^2
    np.testing.assert_allclose(distances, [4 / (2 + alpha) for alpha in (0.0, 0.1, 10.0)], rtol=1e-4)


def test_what_asks_for_no_gradient_adds_nothing():
    model, penalty = anchored()
    shift(model, 1.0)
    model[0].requires_grad_(False)
    head = 0.01 * sum(value.square().sum() for value in model[2].parameters())
    torch.testing.assert_close(penalty(dict(model.named_parameters())), head)
    model.requires_grad_(False)
    assert penalty(dict(model.named_parameters())).item() == 0


def test_a_resumed_penalty_pulls_to_the_start_of_the_first_run():
    model, penalty = anchored()
    shift(model, 1.0)
    values = dict(model.named_parameters())
    late = L2SP(
        {name: values[name] for name in ("0.weight", "0.bias")}, head=["2.weight", "2.bias"], alpha=0.3, beta=0.02
    )
    assert late(values) != penalty(values)
    late.load_state_dict(copy.deepcopy(penalty.state_dict()))
    assert torch.equal(late(values), penalty(values))


def test_a_start_of_other_parameters_is_refused():
    _, penalty = anchored()
    with pytest.raises(CheckpointError, match="2 differ, such as '0.bias'"):
        penalty.load_state_dict({"start": {}})


def test_a_parameter_without_a_start_is_not_taken_for_the_heads():
    model, penalty = anchored()
    with pytest.raises(OptionError, match="Unknown parameter '2.bais'. Closest known: .* L2-SP has no start for it."):
        penalty({"2.bais": model[2].bias})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "finite and >= 0, got -1.0"),
        ({"beta": float("inf")}, "got 0.1 and inf"),
        ({"head": ["w"]}, "'w' is in both"),
    ],
)
def test_a_penalty_that_cannot_be_is_refused(options, message):
    with pytest.raises(OptionError) as caught:
        L2SP({"w": torch.ones(1)}, **{"head": [], "alpha": 0.1, "beta": 0.1, **options})
    assert message in str(caught.value)
