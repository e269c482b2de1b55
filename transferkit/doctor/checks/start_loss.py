"""The loss before the first step, against that of guessing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["FAR", "TOO_FAR"]

FAR, TOO_FAR = 2.0, 5.0
"""Times ln K from which on the first loss is worth a note, and an alarm. Some architectures start at two to three
with the random heads they come with, and train all the same; inputs in the wrong range give ten and more."""


@CHECKS.register("start_loss")
def check_start_loss(subject: Subject) -> Iterator[Symptom]:
    """Is the first loss finite, and not far above ln K?"""
    model, _ = subject.copy()
    with torch.no_grad(), seeded(subject.seed):
        loss = float(subject.loss(subject.run(model), subject.targets))
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
