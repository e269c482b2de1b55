"""How many outputs and classes there are."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["IGNORED"]

IGNORED = -100
"""Target that torch's cross-entropy leaves out."""


@CHECKS.register("outputs")
def check_outputs(subject: Subject) -> Iterator[Symptom]:
    """Are there K outputs, and do targets number the classes from 0 to K - 1?"""
    model, _ = subject.copy()
    with torch.no_grad(), seeded(subject.seed):
        outputs = subject.run(model)
    if (
        not subject.classes
        or not isinstance(outputs, torch.Tensor)
        or not isinstance(subject.targets, torch.Tensor)
        or outputs.dim() != 2
    ):
        raise Skipped("outputs are not (N, K) logits of a known number of classes")
    if outputs.shape[1] != subject.classes and not (outputs.shape[1] == 1 and subject.classes == 2):
        yield Symptom(
            cause="number_of_outputs",
            severity="alarm",
            evidence=f"The model has {outputs.shape[1]} outputs for {subject.classes} classes.",
            remedy="Give the last layer one output for each class.",
        )
    ignored = getattr(subject.loss, "ignore_index", IGNORED)
    known = subject.targets[subject.targets != ignored]
    low, high = (int(known.min()), int(known.max())) if known.numel() else (0, 0)
    if (
        subject.targets.dim() == 1
        and not subject.targets.is_floating_point()
        and not 0 <= low <= high < subject.classes
    ):
        yield Symptom(
            cause="targets_out_of_range",
            severity="alarm",
            evidence=f"Targets run from {low} to {high}; {subject.classes} classes are numbered 0 to "
            f"{subject.classes - 1}.",
            remedy="Number the classes from 0, in one order for all splits.",
        )
