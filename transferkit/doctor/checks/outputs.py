"""What the model returns, against what the loss expects."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["SUM_ERROR"]

IGNORED = -100
"""Target that torch's cross-entropy leaves out."""

SUM_ERROR = 1e-4
"""Largest distance of a sum of probabilities from 1."""


@CHECKS.register("outputs")
def check_outputs(subject: Subject) -> Iterator[Symptom]:
    """Are there K outputs that tell images apart, and are they logits, not probabilities already?"""
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
    sums = outputs.sum(dim=1)
    if outputs.shape[1] > 1 and bool((outputs >= 0).all()) and bool(((sums - 1).abs() < SUM_ERROR).all()):
        yield Symptom(
            cause="double_softmax",
            severity="alarm",
            evidence="The outputs are probabilities: they are >= 0 and sum to 1 for each image.",
            remedy="Cross-entropy applies its own softmax: return logits, or use the negative log-likelihood of "
            "log-probabilities.",
        )
