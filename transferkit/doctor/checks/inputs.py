"""Whether images reach the network in the range it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.pixel_values import find_misfit
from transferkit.doctor.subject import Subject, seeded
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
        if subject.preprocessing is None and _scales_itself(subject):
            return
        yield Symptom(
            cause=misfit.cause,
            severity="alarm",
            evidence=f"Inputs are not normalised as the network expects: {misfit.found}.",
            remedy="Scale to [0, 1], then subtract the mean and divide by the standard deviation that belong to the "
            "checkpoint.",
        )


def _scales_itself(subject: Subject) -> bool:
    """Whether the first layer with weights gets other values than the model does, or is a normalisation."""
    model, _ = subject.copy()
    seen = list[tuple[nn.Module, torch.Tensor]]()

    def hook(module: nn.Module, given: Any) -> None:
        if given and isinstance(given[0], torch.Tensor):
            seen.append((module, given[0].detach()))

    for one in model.modules():
        if next(one.children(), None) is None and next(one.parameters(recurse=False), None) is not None:
            one.register_forward_pre_hook(hook)
    with torch.no_grad(), seeded(subject.seed):
        subject.run(model.eval(), subject.take(slice(0, 2))[0])
    if not seen:
        return False
    layer, values = seen[0]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return True
    return values.dim() == 4 and find_misfit(values, None) is None
