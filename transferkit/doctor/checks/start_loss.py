"""The loss before the first step, against that of guessing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["FAR", "TOO_FAR"]

FAR, TOO_FAR = 2.0, 10.0
"""Times ln K from which on the first loss is worth a note, and an alarm. Some architectures start at two to six (an
EfficientNet of torchvision, five classes) with the random heads they come with, and train all the same; inputs in the
wrong range give ten and more."""

ADDED = 0.02
"""Relative difference up to which the losses of two halves add up to that of the whole."""


@CHECKS.register("start_loss")
def check_start_loss(subject: Subject) -> Iterator[Symptom]:
    """Is the first loss finite, and not far above ln K?"""
    model, _ = subject.copy()
    with torch.no_grad(), seeded(subject.seed):
        outputs = subject.run(model)
        loss = float(subject.loss(outputs, subject.targets))
        if math.isfinite(loss) and _is_sum(subject, outputs, loss):
            loss /= len(subject.first_input)
    if not math.isfinite(loss):
        yield Symptom(
            cause="loss_not_finite",
            severity="alarm",
            evidence=f"The first loss is {loss}.",
            remedy="Check inputs and weights for NaN and infinity, and logarithms and divisions in the loss for zeros.",
        )
        return
    if not subject.classes:
        raise Skipped("the number of classes is not known")
    if loss > FAR * subject.log_classes:
        yield Symptom(
            cause="start_loss",
            severity="alarm" if loss > TOO_FAR * subject.log_classes else "note",
            evidence=f"The first loss is {loss:.3g}; guessing among {subject.classes} classes gives "
            f"{subject.log_classes:.3g}.",
            remedy="Start the last layer at zero or with small weights, normalise the inputs as the network expects "
            "them (mean, standard deviation, range), and check that targets are the right class numbers.",
        )


def _is_sum(subject: Subject, outputs: Any, loss: float) -> bool:
    """Whether the loss is summed over images, not averaged."""
    images = len(subject.first_input)
    if not isinstance(outputs, torch.Tensor) or len(outputs) != images:
        return False
    halves = (slice(0, images // 2), slice(images // 2, images))
    parts = sum(float(subject.loss(outputs[rows], subject.take(rows)[1])) for rows in halves)
    return abs(parts - loss) <= ADDED * abs(loss)
