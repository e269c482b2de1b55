"""Learning rates of TransferModule: every group, at every step, through all phases."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch

from tests.unit.finetune.training_toys import (
    HEAD_NAMES,
    draw,
    fit,
    loader,
    make_module,
    moved,
    phase,
    states,
)
from transferkit.core.errors import OptionError
from transferkit.options import Recipe


class Rates(pl.Callback):
    """The learning rates that every step is made with."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_group_follows_the_schedule_from_its_first_step_on(accumulate):
    """Linear, no warm-up: a line that falls over each phase's steps and would reach 0 at the next one."""
    recipe = Recipe(schedule="linear", warmup=0.0, minimum=0.0)
    module, rates = make_module(recipe=recipe), Rates()
    fit(module, 4, [rates], accumulate_grad_batches=accumulate, train=loader(draw(4)))
    per_phase = 2 * 4 // accumulate
    falling = [1 - step / per_phase for step in range(per_phase)]
    assert [step["head"] for step in rates.seen] == pytest.approx([0.05 * share for share in falling * 2])
    assert [step["top"] for step in rates.seen] == pytest.approx([0.0] * per_phase + [0.05 * x for x in falling])
    assert all(step[name] == step[f"{name} (no decay)"] for step in rates.seen for name in ("head", "top"))


def test_a_plateau_lowers_the_rate():
    recipe = Recipe(schedule="plateau", warmup=0.0)
    module, rates = make_module(phase("top", top=1e-9, head=1e-8), recipe=recipe), Rates()
    fit(module, 5, [rates], held_back=loader())
    assert rates.seen[-1]["head"] == pytest.approx(rates.seen[0]["head"] / 10)


def test_epochs_may_be_left_out_where_steps_are_counted_and_there_is_one_phase():
    recipe = Recipe(schedule="linear", warmup=0.0, minimum=0.0)
    module, rates = make_module(phase("top", top=0.02), recipe=recipe), Rates()
    fit(module, -1, [rates], max_steps=5)
    assert [step["top"] for step in rates.seen] == pytest.approx([0.02 * (1 - step / 5) for step in range(5)])


def test_a_trial_run_of_lightnings_comes_to_the_first_phase():
    module = make_module()
    before = states(module)
    trainer = fit(module, 1, held_back=loader(), fast_dev_run=2)
    assert trainer.global_step == 2
    assert moved(before, states(module)) == HEAD_NAMES


def test_a_run_without_an_end_has_no_schedule():
    module = make_module(phase("top", top=0.05))
    warnings.simplefilter("ignore")  # Lightning warns of it as well; pytest puts the filters back
    with pytest.raises(OptionError, match="max_epochs or max_steps"):
        fit(module, -1, train=EndlessLoader())


class EndlessLoader(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from draw()


def test_phases_are_where_the_epochs_are_though_steps_end_the_run():
    module, rates = make_module(), Rates()
    fit(module, 4, [rates], max_steps=8)
    assert len(rates.seen) == 8
    assert [step["top"] > 0 for step in rates.seen] == [False] * 6 + [True] * 2
