"""The range test: where the edge is known it is found, and nothing tells afterwards that there was one."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from tests.unit.finetune.test_cross_validation import make_task  # noqa: F401 - a fixture
from tests.unit.finetune.training_toys import CLASSES, draw, fit, head_then, make_backbone, phase, plan_of, quiet
from transferkit.core.errors import OptionError
from transferkit.data.loading import EpochSampler
from transferkit.finetune import CutBatch, Runner, TransferModule, fine_tune
from transferkit.finetune.range_test import HIGHEST, LOWEST, SAFETY, RangeTest, find_rate, judge
from transferkit.nn import TransferModel, cut
from transferkit.options import Recipe
from transferkit.records import Fold
from transferkit.strategies import HEAD, Phase, Plan, Rule, scaled_plan

RATES = np.geomspace(1e-5, 1e-1, 60)
"""As a range test around 1e-3 has them."""

STEP = RATES[1] / RATES[0]

LATE = SAFETY
"""The edge is seen late: at so many times the true one at most, or what is taken would be above it."""


def make_module(*phases: Phase, plan: Plan | None = None, **options: Any) -> TransferModule:
    names = [str(number) for number in range(CLASSES)]
    usual = plan_of(*(phases or (phase("all", stem=0.01, middle=0.01, top=0.01),)))
    return TransferModule(make_backbone(), usual if plan is None else plan, classes=names, pooling="avg", **options)


# ---- An edge that is known ------------------------------------------------------------------------------------------


def edge_of(curvature: float, momentum: float) -> float:
    """Rate above which steps with Nesterov momentum leave a parabola: the roots of
    z^2 - (1 + m)(1 - lr c) z + m (1 - lr c) = 0 are on the unit circle at z = -1."""
    return (2 + 2 * momentum) / (1 + 2 * momentum) / curvature


def make_parabola(lr: float) -> tuple[TransferModule, list[Any], float]:
    """A head alone, half the squared error: the loss is quadratic in its weights. Also its edge, from the Hessian."""
    images, _ = draw(1, 32)[0]
    module = make_module(
        plan=plan_of(Phase(name="head", rules=(Rule(stage=HEAD, lr=lr), Rule(stage="*")))),
        recipe=Recipe(optimizer="sgd", weight_decay=0.0, clip=1e9),
        task="regression",
    )
    with torch.no_grad():
        features = module.eval().features(images)
        targets = 0.01 * torch.randn(32, CLASSES, generator=torch.Generator().manual_seed(5))
        inputs = torch.cat([features / module.model.classifier.scale, torch.ones(32, 1)], dim=1).double()
        # The mean is over images and outputs: each output's weights have this Hessian, divided by the outputs.
        curvature = torch.linalg.eigvalsh(inputs.T @ inputs / 32 / CLASSES)[-1].item()
    return module, [(images, targets)], edge_of(curvature, 0.9)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_on_a_parabola_the_edge_is_the_one_of_its_curvature_wherever_the_plan_starts(share: float) -> None:
    edge = make_parabola(1.0)[2]
    module, batches, _ = make_parabola(share * edge)
    found = find_rate(module, batches, seed=0)
    assert edge < SAFETY * found.lr < LATE * edge


def test_the_parabola_is_really_left_above_the_edge_and_not_below_it() -> None:
    for share, is_left in ((0.95, False), (1.05, True)):
        module, [(images, targets)], edge = make_parabola(1.0)
        head = module.model.classifier.linear
        optimizer = torch.optim.SGD(head.parameters(), lr=share * edge, momentum=0.9, nesterov=True)
        for _ in range(150):
            optimizer.zero_grad()
            loss = module.task.loss(module(images), targets)
            loss.backward()
            optimizer.step()
        assert bool(loss > 0.01) is is_left


def test_no_rate_is_told_by_a_loss_that_does_not_rise() -> None:
    _, batches, edge = make_parabola(1.0)
    found = find_rate(make_parabola(edge / 1e4)[0], batches, seed=0)
    assert found.factor == pytest.approx(HIGHEST / SAFETY)
    assert "does not rise" in found.why


# ---- The rule -------------------------------------------------------------------------------------------------------


def curve(edge: float, *, start: float, noise: float, seed: int) -> np.ndarray:
    """Flat and noisy, then it doubles with every step above the edge."""
    draws = start + noise * np.random.default_rng(seed).standard_normal(len(RATES))
    above = np.clip(np.log(RATES / edge) / np.log(STEP), 0, None)
    return np.maximum(draws, 0) + 0.05 * (2**above - 1)


@given(edge=st.floats(1e-4, 1e-2), start=st.floats(0, 2.3), noise=st.floats(0, 0.1), seed=st.integers(0, 1000))
def test_a_noisy_edge_is_found_within_a_few_steps(edge: float, start: float, noise: float, seed: int) -> None:
    found = judge(RATES, curve(edge, start=start, noise=noise * start, seed=seed), planned=1e-3, nothing=2.3)
    assert edge < SAFETY * found.lr < edge * STEP**8


@pytest.mark.parametrize(("noise", "rarely"), [(0.1, 0), (0.3, 0.002), (0.5, 0.005)])
def test_noise_is_rarely_taken_for_a_rise(noise: float, rarely: float) -> None:
    """There is no signal in these losses: a fortieth of the plan's own rate, or less, is a false alarm."""
    draws = (noise * np.random.default_rng(seed).standard_normal(len(RATES)) for seed in range(1000))
    found = [judge(RATES, 1 + losses, planned=1e-3, nothing=2.3).lr for losses in draws]
    assert np.mean(np.array(found) < RATES[14] / SAFETY) <= rarely


def test_a_falling_loss_is_no_rise() -> None:
    found = judge(RATES, np.geomspace(2.3, 1e-3, len(RATES)), planned=1e-3, nothing=2.3)
    assert found.lr == pytest.approx(RATES[-1] / SAFETY)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_a_rise_due_to_the_rate_before(broken: float) -> None:
    losses = np.full(30, 0.1)
    losses[20:] = broken
    assert judge(RATES[:30], losses, planned=1e-3, nothing=2.3).lr == pytest.approx(RATES[19] / SAFETY)


def test_where_the_loss_is_not_finite_to_begin_with_the_plan_stays() -> None:
    found = judge(RATES[:1], [np.nan], planned=1e-3, nothing=2.3)
    assert (found.lr, found.factor) == (1e-3, 1.0)
    assert "the initial loss is not finite" in found.why


def test_many_times_next_to_nothing_is_no_rise() -> None:
    """A solved head: the loss grows a hundredfold and is still next to nothing."""
    losses = np.where(RATES < 1e-3, 1e-4, 1e-2)
    assert "does not rise" in judge(RATES, losses, planned=1e-3, nothing=2.3).why


def test_the_units_of_the_loss_do_not_matter() -> None:
    losses = curve(1e-3, start=0.5, noise=0.05, seed=3)
    one = judge(RATES, losses, planned=1e-3, nothing=2.3)
    thousand = judge(RATES, 1000 * losses, planned=1e-3, nothing=2300.0)
    assert one.lr == thousand.lr


def test_the_sentence_has_the_numbers_in_it() -> None:
    found = judge(RATES, curve(1e-2, start=0.1, noise=0.0, seed=0), planned=1e-3, nothing=2.3)
    assert f"{found.lr:.2g}" in found.why
    assert "60 steps" in found.why


# ---- The steps ------------------------------------------------------------------------------------------------------


def test_rates_rise_from_a_hundredth_of_the_last_phase_to_a_hundred_times_it() -> None:
    module = make_module(
        plan=plan_of(phase("first", 0.5, head=1e-2), Phase(name="last", rules=(Rule(stage="*", lr=1e-7),), share=0.5))
    )
    found = find_rate(module, draw(), seed=0, steps=5)
    assert found.planned == 1e-7
    assert found.rates == pytest.approx([1e-7 * LOWEST, 1e-8, 1e-7, 1e-6, 1e-7 * HIGHEST])
    assert len(found.losses) == 5


def test_it_stops_where_the_loss_has_risen() -> None:
    module, batches, _ = make_parabola(0.3)
    found = find_rate(module, batches, seed=0)
    assert len(found.rates) == len(found.losses) < 60
    assert max(found.losses[:-1]) < 1.0


def test_the_same_seed_finds_the_same_whatever_was_drawn_before() -> None:
    module = make_module(recipe=Recipe(dropout=0.2))
    images, labels = draw(1, 16)[0]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
    first = find_rate(module, loader, seed=3)
    torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    assert find_rate(module, loader, seed=3) == first
    assert find_rate(module, loader, seed=4) != first


def test_clipped_gradients_are_clipped() -> None:
    """Far above the edge, where steps of at most 1e-9 are still steps of nothing."""
    module, batches, _ = make_parabola(1.0)
    module.recipe = Recipe(optimizer="sgd", weight_decay=0.0, clip=1e-9)
    assert "does not rise" in find_rate(module, batches, seed=0).why


# ---- No trace -------------------------------------------------------------------------------------------------------


def make_loader(**options: Any) -> DataLoader[Any]:
    """Shuffled by a generator of its own."""
    images = torch.cat([images for images, _ in draw(4)])
    labels = torch.cat([labels for _, labels in draw(4)])
    generator = torch.Generator().manual_seed(9)
    return DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True, generator=generator, **options)


def generators() -> list[Any]:
    legacy = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), legacy[1].tolist(), *legacy[2:], torch.get_rng_state().tolist()]


def all_of(module: TransferModule) -> dict[str, Any]:
    """Everything that a run can tell, in bits: values, gradients, modes, who asks for gradients, hooks."""
    return {
        "tensors": {name: value.numpy().tobytes() for name, value in module.state_dict().items()},
        "buffers": {name: value.numpy().tobytes() for name, value in module.named_buffers()},
        "places": {name: value.data_ptr() for name, value in module.named_parameters()},
        "asked": {name: value.requires_grad for name, value in module.named_parameters()},
        "gradients": {
            name: None if value.grad is None else value.grad.numpy().tobytes()
            for name, value in module.named_parameters()
        },
        "modes": {name: part.training for name, part in module.named_modules()},
        "hooks": {
            name: [
                *map(id, part._forward_pre_hooks.values()),
                *map(id, part._forward_hooks.values()),
                *map(id, part._backward_hooks.values()),
            ]
            for name, part in module.named_modules()
        },
        "phase": module.freeze_plan.phase,
        "attributes": {name: id(value) for name, value in vars(module).items()},
    }


class Breaking:
    """Batches that end in an error."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(draw()):
            if number == self.after:
                random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
                raise RuntimeError("the disk is gone")
            yield batch


def in_the_middle_of_a_fit() -> TransferModule:
    """With a phase in force, gradients from a step, and half of it in training mode."""
    module = make_module(*head_then(top=0.01), recipe=Recipe(dropout=0.3, average="ema", l2_sp=0.01))
    module.freeze_plan.start(0)
    module.freeze_plan.set_modes(training=True)
    images, labels = draw()[0]
    torch.nn.functional.cross_entropy(module(images), labels).backward()
    return module


@pytest.mark.parametrize("batches", [draw(), Breaking(0), Breaking(2)], ids=["whole", "no batch", "two batches"])
@pytest.mark.parametrize("make", [make_module, in_the_middle_of_a_fit])
def test_module_and_generators_are_bit_for_bit_what_they_were(make: Any, batches: Any) -> None:
    module = make()
    optimizer = torch.optim.AdamW(module.freeze_plan.groups())
    before, drawn, steps = all_of(module), generators(), pickle.dumps(optimizer.state_dict())
    if isinstance(batches, Breaking):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            find_rate(module, batches, seed=0)
    else:
        assert len(find_rate(module, batches, seed=0).losses) > 5
    assert all_of(module) == before
    assert generators() == drawn
    assert pickle.dumps(optimizer.state_dict()) == steps


def test_the_copy_did_move() -> None:
    """Or else the test above would pass by doing nothing."""
    module = make_module()
    found = find_rate(module, draw(1), seed=0)
    assert len(set(found.losses[:10])) == 10


def test_a_module_that_a_trainer_has_is_copied_without_it() -> None:
    module = make_module()
    trainer = fit(module, 1)
    before, drawn = all_of(module), generators()
    find_rate(module, draw(), seed=0)
    assert all_of(module) == before
    assert generators() == drawn
    assert module.trainer is trainer


def test_behind_a_cut_it_is_the_copy_that_learns() -> None:
    """The part behind the cut holds on to a backbone: it must be the copy's. The head is frozen, so that nothing else
    could make the loss fall."""
    backbone = make_backbone().without_head()
    model = TransferModel(backbone, stages=("top",), pooling="avg", classes=["a", "b", "c"])
    module = TransferModule(model, plan_of(phase("all", top=0.05, head=0.0)), tail=cut(backbone, "middle"))
    batches = [(CutBatch(torch.randn(4, 6, 4, 4), {}), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    before = all_of(module)
    found = find_rate(module, batches, seed=0)
    assert all_of(module) == before
    assert min(found.losses) < 0.9 * found.losses[0]


def test_the_plan_in_force_goes_on_freezing_the_module_itself() -> None:
    module = in_the_middle_of_a_fit()
    find_rate(module, draw(), seed=0)
    module.train()
    before = copy.deepcopy(dict(module.model.backbone.trunk.named_buffers()))
    module(draw()[0][0])
    after = dict(module.model.backbone.trunk.named_buffers())
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_a_loader_gives_the_epoch_that_it_would_have_given() -> None:
    untouched, used = make_loader(), make_loader()
    find_rate(make_module(), used, seed=0)
    for one, other in zip(untouched, used, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_loader_that_draws_from_the_global_generator_too() -> None:
    images, labels = draw(1, 16)[0]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
    module = make_module()
    torch.manual_seed(1)
    expected = [labels.tolist() for _, labels in loader]
    torch.manual_seed(1)
    find_rate(module, loader, seed=0)
    assert [labels.tolist() for _, labels in loader] == expected


def test_a_sampler_stays_in_its_epoch() -> None:
    images, labels = draw(1, 16)[0]
    sampler = EpochSampler(16, 4, seed=0)
    sampler.set_epoch(3)
    loader = DataLoader(
        TensorDataset(images, labels),
        batch_size=None,
        sampler=sampler,
        collate_fn=None,
        generator=torch.Generator(),
    )
    loader.dataset.__class__ = type("Keyed", (TensorDataset,), {"__getitem__": by_key})
    before = [key.positions.tolist() for key in sampler]
    find_rate(make_module(), loader, seed=0)
    assert sampler.epoch == 3
    assert [key.positions.tolist() for key in sampler] == before


def by_key(self: TensorDataset, key: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[torch.from_numpy(key.positions)] for tensor in self.tensors)


# ---- What cannot be -------------------------------------------------------------------------------------------------


def test_batches_that_can_be_gone_through_only_once_are_refused() -> None:
    with pytest.raises(OptionError, match="iterated repeatedly"):
        find_rate(make_module(), iter(draw()), seed=0)


def test_no_batches_are_refused() -> None:
    with pytest.raises(OptionError, match="at least one batch"):
        find_rate(make_module(), [], seed=0)


def test_one_step_is_no_range() -> None:
    with pytest.raises(OptionError, match="steps >= 2, got 1"):
        find_rate(make_module(), draw(), seed=0, steps=1)


def test_a_range_test_checks_itself() -> None:
    with pytest.raises(ValueError, match="finite and > 0"):
        RangeTest(lr=float("nan"), planned=1.0, rates=(), losses=(), why="")
    with pytest.raises(ValueError, match="a rate and a loss"):
        RangeTest(lr=1.0, planned=1.0, rates=(1.0,), losses=(), why="")


def test_a_scaled_plan_differs_in_its_rates_alone() -> None:
    plan = plan_of(*head_then(top=0.01))
    twice = scaled_plan(plan, 2.0)
    assert scaled_plan(twice, 0.5) == plan
    rates = [rule.lr for part in plan.phases for rule in part.rules]
    assert [rule.lr for part in twice.phases for rule in part.rules] == [2 * rate for rate in rates]
    assert [str(rule) for rule in twice.phases[1].rules] == [str(rule) for rule in plan.phases[1].rules]


def test_a_transfer_model_can_be_tested_as_well_as_a_backbone() -> None:
    model = TransferModel(make_backbone(), stages=("top",), pooling="avg", classes=["a", "b", "c"])
    module = TransferModule(model, plan_of(phase("all", top=0.01)))
    assert find_rate(module, draw(), seed=0).planned == 0.05


# ---- Within a run ---------------------------------------------------------------------------------------------------


def run(task: Any, folder: Any = None) -> Any:
    everyone = np.arange(len(task.labels))
    runner = Runner(device=torch.device("cpu"), folder=folder, progress=False)
    with quiet():
        return fine_tune(replace(task, refit=False), [Fold(everyone[:20], everyone[20:])], runner)


def rates_of(tuned: Any) -> list[float]:
    return [claim.lr for claim in tuned.record.claims]


def test_a_run_that_finds_its_rate_trains_all_phases_at_it_and_says_so(make_task) -> None:  # noqa: F811
    asked, found = run(make_task(epochs=2)), run(make_task(epochs=2, lr="find"))
    factors = {new / old for new, old in zip(rates_of(found), rates_of(asked), strict=True) if old}
    assert len({round(factor, 9) for factor in factors}) == 1
    assert factors != {1.0}
    assert any("range test" in note for note in found.record.notes)
    assert not any("range test" in note for note in asked.record.notes)


def test_a_run_that_is_taken_up_finds_the_same_rate(make_task, tmp_path) -> None:  # noqa: F811
    first = run(make_task(epochs=2, lr="find"), tmp_path / "run")
    torch.rand(3)
    again = run(make_task(epochs=2, lr="find"), tmp_path / "run")
    assert rates_of(again) == rates_of(first)
    assert again.record.notes == first.record.notes
    assert again.record.epochs == first.record.epochs


def test_where_memory_runs_out_smaller_batches_are_tried(make_task, monkeypatch) -> None:  # noqa: F811
    from transferkit.finetune import rate_race

    sizes = []

    def find(module: Any, batches: Any, **options: Any) -> RangeTest:
        sizes.append(max(len(labels) for _, labels in batches))
        if sizes[-1] > 5:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return find_rate(module, batches, **options)

    monkeypatch.setattr(rate_race, "find_rate", find)
    tuned = run(make_task(epochs=2, lr="find"))
    assert sizes == [10, 4]
    assert any("range test" in note for note in tuned.record.notes)
