"""Whether evaluation is deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["ROUNDING", "is_random"]

ROUNDING = 1e-5
"""Largest difference of deterministic passes, in units of the largest output."""


def is_random(subject: Subject, model: nn.Module, inputs: Any) -> bool:
    """Whether two passes give different outputs.

    Raises:
        Skipped: The model does not return a tensor.
    """
    outputs = []
    with torch.no_grad():
        for seed in (subject.seed, subject.seed + 1):
            with seeded(seed):
                outputs.append(subject.run(model, inputs))
    if not isinstance(outputs[0], torch.Tensor):
        raise Skipped("the model does not return a tensor")
    first, second = (one.nan_to_num().float() for one in outputs)
    # Some kernels of GPUs add in any order.
    return float((first - second).abs().max()) > ROUNDING * max(float(first.abs().max()), 1e-12)


@CHECKS.register("evaluation")
def check_evaluation(subject: Subject) -> Iterator[Symptom]:
    """Do two passes in evaluation mode give the same outputs, whatever the random generator?"""
    model, _ = subject.copy()
    model.eval()
    if is_random(subject, model, subject.inputs):
        active = [name or "the model itself" for name, module in model.named_modules() if module.training]
        where = f" Still in training mode after eval(): {listed(active)}." if active else ""
        yield Symptom(
            cause="random_evaluation",
            severity="alarm",
            evidence=f"Two passes in evaluation mode differ.{where}",
            remedy="Call model.eval() before evaluating; use nn.Dropout, or pass training=self.training to F.dropout.",
            items=tuple(active),
        )
