"""Whether an image's outputs depend on the others of its batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.evaluation import is_random
from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["TOLERANCE"]

IMAGES = 4
TOLERANCE = 1e-2
"""Largest difference in evaluation mode, in units of the largest output: kernels for other batch sizes round
differently."""


@CHECKS.register("mixing")
def check_mixing(subject: Subject) -> Iterator[Symptom]:
    """Does each image get the same outputs alone as in a batch, in evaluation mode?"""
    model, _ = subject.copy()
    model.eval()
    inputs, _ = subject.take(slice(0, IMAGES))
    if is_random(subject, model, inputs):  # then an image alone differs for that reason, which `evaluation` names
        raise Skipped("outputs are random in evaluation mode")
    with torch.no_grad(), seeded(subject.seed):
        together = subject.run(model, inputs)
        if not isinstance(together, torch.Tensor) or len(together) != min(IMAGES, len(subject.first_input)):
            raise Skipped("the model does not return one row of outputs for each image")
        try:
            alone = torch.cat([subject.run(model, subject.take(slice(i, i + 1))[0]) for i in range(len(together))])
        except Exception as error:  # whatever a model raises for one image
            yield _symptom(f"The model fails on a single image: {type(error).__name__}: {str(error).splitlines()[0]}.")
            return
    if alone.shape != together.shape:
        yield _symptom(
            f"One image alone gives outputs of shape {tuple(alone.shape[1:])}, in a batch {tuple(together.shape[1:])}."
        )
        return
    difference = float((alone - together).abs().max()) / max(float(together.abs().max()), 1e-12)
    if difference > TOLERANCE:
        yield _symptom(f"Outputs of an image differ by {100 * difference:.2g} % between alone and in a batch.")


def _symptom(evidence: str) -> Symptom:
    return Symptom(
        cause="mixes_samples",
        severity="alarm",
        evidence=evidence,
        remedy="Look for view() or reshape() across the batch axis, a mean or softmax over axis 0, and "
        "normalisation that uses batch statistics in evaluation mode.",
    )
