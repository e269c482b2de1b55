"""Whether evaluation is deterministic."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__: list[str] = []


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
    if not torch.equal(outputs[0].nan_to_num(), outputs[1].nan_to_num()):
        active = [name or "the model itself" for name, module in model.named_modules() if module.training]
        where = f" Still in training mode after eval(): {listed(active)}." if active else ""
        yield Symptom(
            cause="random_evaluation",
            severity="alarm",
            evidence=f"Two passes in evaluation mode differ.{where}",
            remedy="Call model.eval() before evaluating; use nn.Dropout, or pass training=self.training to F.dropout.",
            items=tuple(active),
        )
