"""Whether images reach the network in the range it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.pixel_values import find_misfit
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__: list[str] = []


@CHECKS.register("inputs")
def check_inputs(subject: Subject) -> Iterator[Symptom]:
    """Are the inputs finite, different from each other, and normalised as the backbone expects?"""
    images = subject.first_input
    if not images.is_floating_point():
        raise Skipped("inputs are whole numbers, which the model itself has to scale")
    if not bool(torch.isfinite(images).all()):
        yield Symptom(
            cause="inputs_not_finite",
            severity="alarm",
            evidence=f"{int((~torch.isfinite(images)).sum())} values of the inputs are NaN or infinite.",
            remedy="Look for divisions by a standard deviation of zero, and for missing values in the files.",
        )
        return
    if bool((images == images[:1]).all()):
        yield Symptom(
            cause="same_inputs",
            severity="alarm",
            evidence=f"All {len(images)} inputs of the batch are equal.",
            remedy="Look at what the dataset returns for different indices.",
        )
    elif images.dim() == 4 and (misfit := find_misfit(images, subject.preprocessing)):
        yield Symptom(
            cause=misfit.cause,
            severity="alarm",
            evidence=f"Inputs are not normalised as the network expects: {misfit.found}.",
            remedy="Scale to [0, 1], then subtract the mean and divide by the standard deviation that belong to the "
            "checkpoint.",
        )
