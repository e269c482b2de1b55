"""A few steps of training on copies: how they begin, and how far they go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from transferkit.doctor.checks.registry import Skipped
from transferkit.doctor.subject import Subject

__all__ = ["aimed_rate", "median_move", "start_trial"]


def start_trial(subject: Subject, *, factor: float = 1.0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Copies of model and optimizer, dropout off, at a multiple of the rate that a warm-up leads to.

    Raises:
        Skipped: There is no optimizer.
    """
    model, optimizer = subject.copy()
    if optimizer is None:
        raise Skipped("there is no optimizer")
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for group in optimizer.param_groups:  # a warm-up that starts at zero says nothing about the rate it leads to
        group["lr"] = factor * aimed_rate(group)
    return model, optimizer


def aimed_rate(group: dict[str, Any]) -> float:
    """The rate of a parameter group, or that to which its schedule leads."""
    return float(max(group["lr"], group.get("initial_lr", 0.0), group.get("max_lr", 0.0)))


def median_move(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Median over (before, now) of the distance in units of the norm before; None if all were zero.

    Example:
        >>> median_move([(torch.ones(4), 1.5 * torch.ones(4)), (torch.zeros(2), torch.ones(2))])
        0.5
    """
    moves = [float((now.detach() - before).norm() / before.norm()) for before, now in pairs if bool(before.any())]
    return float(torch.tensor(moves).nan_to_num(math.inf).median()) if moves else None
