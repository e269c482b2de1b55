"""A module in the last phase of its plan, as it is trained for most of the time, without a trainer."""

from __future__ import annotations

import torch

from transferkit.finetune.module import TransferModule
from transferkit.finetune.recipe import make_optimizer

__all__ = ["last_optimizer", "start_last_phase"]


def start_last_phase(module: TransferModule) -> None:
    """Freeze and train what the last phase does, in training mode; `freeze_plan.release` undoes it."""
    plan = module.freeze_plan
    plan.start(len(plan.phases) - 1)
    module.train()
    plan.set_modes(training=True)


def last_optimizer(module: TransferModule) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of the last phase, at the plan's rates, without schedule and warm-up.

    Which optimizer a trainer gets is for `TransferModule.configure_optimizers` to say; it needs to know the number of
    steps.
    """
    groups = [{**group, "lr": group["lrs"][-1]} for group in module.freeze_plan.groups() if group["lrs"][-1] > 0]
    return make_optimizer(module.recipe, groups)
