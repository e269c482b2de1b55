"""Whether evaluation is deterministic."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["ROUNDING"]

ROUNDING = 1e-5
"""Largest difference of deterministic passes, in units of the largest output."""


@CHECKS.register("evaluation")
def check_evaluation(subject: Subject) -> Iterator[Symptom]:
    """Do two passes in evaluation mode give the same outputs, whatever the random generator?"""
    model, _ = subject.copy()
    model.eval()
    outputs = []
    with torch.no_grad():
        for seed in (subject.seed, subject.seed + 1):
            with seeded(seed):
                outputs.append(subject.run(model))
    if not isinstance(outputs[0], torch.Tensor):
        raise Skipped("the model does not return a tensor")
    first, second = (one.nan_to_num().float() for one in outputs)
    # Some kernels of GPUs add in any order.
    if float((first - second).abs().max()) > ROUNDING * max(float(first.abs().max()), 1e-12):
        active = [name or "the model itself" for name, module in model.named_modules() if module.training]
        where = f" Still in training mode after eval(): {listed(active)}." if active else ""
        yield Symptom(
            cause="random_evaluation",
            severity="alarm",
            evidence=f"Two passes in evaluation mode differ.{where}",
            remedy="Call model.eval() before evaluating; use nn.Dropout, or pass training=self.training to F.dropout.",
            items=tuple(active),
        )
