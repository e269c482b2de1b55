"""Learning rates over steps: closed forms, torch's own schedulers, borders of phases, and going on after a stop."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from transferkit.core.errors import CheckpointError, OptionError
from transferkit.finetune.schedule import SCHEDULES, PhasedSchedule, factor

FALLING = ("linear", "exponential", "cosine")

stretches = st.integers(1, 200).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, steps - 1)))
minima = st.floats(1e-3, 1.0)


def make_optimizer(groups: int = 1, lr: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(groups)], lr=lr)


def run(schedule, steps: int) -> list[list[float]]:
    """The learning rates that `steps` optimizer steps are made with."""
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return used


def torchs(make, steps: int) -> list[float]:
    """The learning rates of one of torch's schedulers, from 1."""
    optimizer = make_optimizer()
    return [rates[0] for rates in run(make(optimizer), steps)]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=0.05)),
        ("linear", lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.05, total_iters=50)),
        ("exponential", lambda o: lr_scheduler.ExponentialLR(o, gamma=0.05 ** (1 / 50))),
        ("constant", lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_curves_are_those_of_torch(name, make):
    ours = [factor(name, step, steps=50, minimum=0.05) for step in range(50)]
    np.testing.assert_allclose(ours, torchs(make, 50), rtol=1e-9)


def test_warm_up_is_torchs_linear_one_from_the_first_stair():
    ours = [factor("constant", step, steps=30, warmup=9) for step in range(30)]
    expected = torchs(lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9), 30)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_warm_up_and_cosine_in_a_row_are_torchs_in_a_row():
    def make(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=16, eta_min=0.1)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[4])

    ours = [factor("cosine", step, steps=20, warmup=4, minimum=0.1) for step in range(20)]
    np.testing.assert_allclose(ours, torchs(make, 20), rtol=1e-9)


@given(stretches, minima, st.sampled_from(sorted(SCHEDULES)))
def test_a_factor_rises_to_one_then_never_rises_again(stretch, minimum, name):
    steps, warmup = stretch
    factors = [factor(name, step, steps=steps, warmup=warmup, minimum=minimum) for step in range(steps)]
    assert factors[warmup] == pytest.approx(1)
    assert all(0 < value <= 1 + 1e-12 for value in factors)
    assert np.all(np.diff(factors[: warmup + 1]) > 0)
    assert np.all(np.diff(factors[warmup:]) <= 1e-12)
    assert min(factors[warmup:]) >= minimum * (1 - 1e-12)


@given(stretches, minima, st.sampled_from(FALLING), st.integers(0, 5))
def test_a_curve_ends_at_its_minimum_and_stays_there(stretch, minimum, name, later):
    steps, warmup = stretch
    end = factor(name, steps + later, steps=steps, warmup=warmup, minimum=minimum)
    assert end == pytest.approx(minimum)


@given(stretches, st.sampled_from(("linear", "cosine")))
def test_no_step_is_wasted_where_the_minimum_is_zero(stretch, name):
    steps, warmup = stretch
    assert all(factor(name, step, steps=steps, warmup=warmup) > 0 for step in range(steps))


@pytest.mark.parametrize("name", FALLING)
def test_a_linear_curve_has_even_steps_an_exponential_one_even_ratios_and_a_cosine_is_even_about_its_middle(name):
    values = np.array([factor(name, step, steps=40, minimum=0.02) for step in range(41)])
    if name == "linear":
        np.testing.assert_allclose(np.diff(values), -0.98 / 40)
    elif name == "exponential":
        np.testing.assert_allclose(values[1:] / values[:-1], 0.02 ** (1 / 40))
    else:
        np.testing.assert_allclose(values + values[::-1], 1.02)


def test_an_unknown_schedule_is_told_with_the_nearest_one():
    with pytest.raises(OptionError, match="Unknown schedule 'cosin'. Closest known: cosine"):
        factor("cosin", 0, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "warmup": 5}, "0 <= warmup < steps"),
        ({"steps": 0}, "0 <= warmup < steps"),
        ({"steps": 5, "minimum": 1.5}, "must be in [0, 1], got 1.5"),
        ({"steps": 5, "minimum": 0.0}, "never reaches 0: set a minimum above it"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError) as caught:
        factor("exponential", 0, **{"minimum": 0.1, **options})
    assert message in str(caught.value)


def make_phased(name: str = "cosine", **options) -> PhasedSchedule:
    """Head and trunk; the trunk is frozen in the first of three phases."""
    setting = {"starts": [0, 4, 10], "steps": 20, "warmup": 0.25, "minimum": 0.1}
    lrs = [(1.0, 0.5, 0.2), (0.0, 0.1, 0.05)]
    return PhasedSchedule(make_optimizer(2), name, lrs=lrs, **{**setting, **options})


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_each_phase_runs_its_own_curve_with_its_own_learning_rates(name):
    used = run(make_phased(name), 20)
    expected = []
    # a warm-up of a quarter: 1 of 4 steps, 1.5 of 6 is 2, 2.5 of 10 is 2
    for head, trunk, steps, warmup in ((1.0, 0.0, 4, 1), (0.5, 0.1, 6, 2), (0.2, 0.05, 10, 2)):
        curve = [factor(name, step, steps=steps, warmup=warmup, minimum=0.1) for step in range(steps)]
        expected += [[head * value, trunk * value] for value in curve]
    np.testing.assert_allclose(used, expected, rtol=1e-12)
    assert all(trunk == 0 for _, trunk in used[:4])
    assert all(trunk > 0 for _, trunk in used[4:])


def test_a_curve_that_restarts_is_torchs():
    schedule = PhasedSchedule(make_optimizer(), "cosine", lrs=[(1.0,)], starts=[0], steps=30, minimum=0.1,
                              restarts=[10, 20])  # fmt: skip
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, eta_min=0.1), 30)
    np.testing.assert_allclose([rates[0] for rates in run(schedule, 30)], expected, rtol=1e-12)


def test_only_the_first_cycle_of_a_phase_warms_up():
    setting = {"lrs": [(1.0, 1.0)], "starts": [0, 8], "steps": 24, "warmup": 0.5}
    used = [rates[0] for rates in run(PhasedSchedule(make_optimizer(), "cosine", restarts=[16], **setting), 24)]
    plain = [rates[0] for rates in run(PhasedSchedule(make_optimizer(), "cosine", **setting), 24)]
    assert used[:8] == plain[:8]
    assert used[8:12] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert used[16:] == [factor("cosine", step, steps=8) for step in range(8)]


def test_phases_are_told_from_the_coming_step():
    schedule = make_phased()
    seen = []
    for _ in range(21):
        seen.append(schedule.phase)
        schedule.optimizer.step()
        schedule.step()
    assert seen == [0] * 4 + [1] * 6 + [2] * 11


def test_learning_rates_of_the_optimizer_are_overwritten_before_the_first_step():
    optimizer = make_optimizer(1, lr=123.0)
    schedule = PhasedSchedule(optimizer, "constant", lrs=[[0.25]], starts=[0], steps=3)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert schedule.get_last_lr() == [0.25]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 0.99), st.sampled_from(sorted(SCHEDULES)))
def test_every_phase_reaches_its_full_rate_however_short_it_is(lengths, warmup, name):
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    rates = [1.0] * len(lengths)
    schedule = PhasedSchedule(
        make_optimizer(), name, lrs=[rates], starts=starts, steps=sum(lengths), warmup=warmup, minimum=0.5
    )
    for start, length in zip(starts, lengths, strict=True):
        assert max(schedule.factor_at(step) for step in range(start, start + length)) == pytest.approx(1)


def test_all_that_does_not_fit_is_said_at_once():
    with pytest.raises(OptionError) as caught:
        PhasedSchedule(
            make_optimizer(2),
            "exponential",
            lrs=[(1.0, math.nan, 1.0)],
            starts=[0, 9],
            steps=9,
            warmup=1.0,
            reduction=1,
        )
    message = str(caught.value)
    for part in (
        "never reaches 0",
        "the warm-up is a share of a phase, in [0, 1), got 1.0",
        "0 < reduction < 1",
        "phases must start at 0, then rise, and end before 9 steps, got [0, 9]",
        "the optimizer has 2 groups, but learning rates came for 1",
        "every group needs 2 learning rates, one per phase, got [3]",
        "learning rates must be finite and >= 0",
    ):
        assert part in message


@pytest.mark.parametrize("starts", [[], [1], [0, 3, 3], [0, 5, 4], [0, 20]])
def test_phases_that_do_not_follow_one_another_are_refused(starts):
    with pytest.raises(OptionError, match="phases must start at 0"):
        make_phased(starts=starts)


losses = st.lists(st.floats(0.0, 10.0) | st.just(math.nan), max_size=40)


@given(losses, st.integers(0, 4), st.sampled_from((0.1, 0.5)), st.sampled_from((0.0, 0.05)))
def test_plateau_lowers_the_rate_when_torch_does(seen, patience, reduction, minimum):
    schedule = PhasedSchedule(
        make_optimizer(), "plateau", lrs=[[1.0]], starts=[0], steps=100, minimum=minimum, patience=patience,
        reduction=reduction,
    )  # fmt: skip
    optimizer = make_optimizer()
    torchs_own = lr_scheduler.ReduceLROnPlateau(optimizer, factor=reduction, patience=patience, min_lr=minimum, eps=0.0)
    for loss in seen:
        run(schedule, 1)
        optimizer.step()
        schedule.observe(loss)
        torchs_own.step(loss)
        assert schedule.get_last_lr()[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert schedule.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0]


def test_plateau_warms_up_and_starts_each_phase_afresh():
    schedule = make_phased("plateau", patience=0, reduction=0.5, minimum=0.2)
    used = []
    for _ in range(10):  # epochs of 2 steps; the loss never falls
        used += [head for head, _ in run(schedule, 2)]
        schedule.observe(1.0)
    # the first epoch of a phase sets its best loss, each later one halves the level, down to 0.2
    first = [0.5, 1, 1, 1]
    second = [0.5 / 3, 0.5 * 2 / 3, 0.5, 0.5, 0.25, 0.25]
    third = [0.2 / 3, 0.2 * 2 / 3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.04, 0.04]
    np.testing.assert_allclose(used, first + second + third)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"plateau"}))
def test_only_plateau_cares_for_losses(name):
    watched, alone = make_phased(name), make_phased(name)
    used = []
    for _ in range(20):
        used += run(watched, 1)
        watched.observe(1.0)
    assert used == run(alone, 20)
    assert watched.state_dict() == {"step": 20}


def train(schedule, weights, first: int, last: int, *, epoch: int = 2) -> None:
    """Momentum SGD on |w - target|^2, the target a function of the step; a loss that is no function of the weights."""
    for step in range(first, last):
        loss = sum((weight - math.sin(step + 1)).square().sum() for weight in weights)
        schedule.optimizer.zero_grad()
        loss.backward()
        schedule.optimizer.step()
        schedule.step()
        if (step + 1) % epoch == 0:
            schedule.observe(1 + math.cos(step))


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("stop", [2, 4, 8, 10, 16])
@pytest.mark.parametrize("name", ["cosine", "plateau"])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(name, stop, optimizer_first):
    def begin():
        weights = [torch.nn.Parameter(torch.arange(3.0)), torch.nn.Parameter(torch.ones(3))]
        optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0, momentum=0.9)
        lrs = [(0.1, 0.05, 0.02), (0.0, 0.1, 0.05)]
        schedule = PhasedSchedule(
            optimizer, name, lrs=lrs, starts=[0, 4, 10], steps=20, warmup=0.3, minimum=0.01, patience=0
        )
        return weights, schedule

    whole, schedule = begin()
    train(schedule, whole, 0, 20)

    before, schedule = begin()
    train(schedule, before, 0, stop)
    saved = copy.deepcopy((schedule.state_dict(), schedule.optimizer.state_dict()))
    after, schedule = begin()
    for new, old in zip(after, before, strict=True):
        new.data.copy_(old.data)
    if optimizer_first:
        schedule.optimizer.load_state_dict(saved[1])
    schedule.load_state_dict(saved[0])
    if not optimizer_first:
        schedule.optimizer.load_state_dict(saved[1])
    assert schedule.get_last_lr() == [group["lr"] for group in schedule.optimizer.param_groups]
    train(schedule, after, stop, 20)
    assert all(torch.equal(one, other) for one, other in zip(whole, after, strict=True))


def test_the_state_of_another_schedule_is_refused():
    with pytest.raises(CheckpointError, match="Expected a state of schedule 'cosine' with step; got step, phase"):
        make_phased("cosine").load_state_dict(make_phased("plateau").state_dict())
