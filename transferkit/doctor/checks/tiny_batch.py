"""Whether the set-up can learn a handful of images by heart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, take_step
from transferkit.doctor.checks.trial import start_trial
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["IMAGES", "STEPS"]

IMAGES, STEPS = 8, 50
"""Images to learn by heart, and steps for it."""

FITTED = 0.5
"""The loss must fall below this share of the first one, if that was not small to begin with."""

SMALL = 0.1
"""First loss below which there is nothing to learn."""

RISEN = 1.5
"""A loss that rose this much on its way is not one of a rate that is too low."""

UNMOVED = 1e-3
"""Relative change of the loss below which nothing was learnt at all."""


@CHECKS.register("tiny_batch")
def check_tiny_batch(subject: Subject) -> Iterator[Symptom]:
    """Does the loss on eight images fall to half within 50 steps of the optimizer, dropout off, at constant rate?"""
    model, optimizer = start_trial(subject)
    inputs, targets = subject.take(slice(0, IMAGES))
    losses = list[float]()
    with seeded(subject.seed):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = subject.loss(subject.run(model, inputs), targets)
            if not loss.requires_grad:
                raise Skipped("no parameter is trained")
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            torch.autograd.backward(loss)
            take_step(optimizer)
    first, last, highest = losses[0], losses[-1], max(losses)
    if not math.isfinite(first):
        return  # the first loss has a check of its own
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    at = f"learning rate {rates[0]:.3g}" if len(rates) == 1 else f"learning rates {rates[0]:.3g} to {rates[-1]:.3g}"
    said = f"on {IMAGES} images, {len(losses)} steps at {at} took the loss from {first:.3g} to {last:.3g}."
    if not math.isfinite(last) or last > max(2 * first, SMALL):
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"Training diverges: {said}",
            remedy="Divide the learning rate by ten, or warm up; clip gradients if single steps are the trouble.",
        )
    elif first > SMALL and abs(last - first) < UNMOVED * first:
        yield Symptom(
            cause="no_learning",
            severity="alarm",
            evidence=f"Nothing is learnt: {said}",
            remedy="Check that trainable parameters get gradients and are in the optimizer, and that the rate is "
            "not near zero.",
        )
    elif first > SMALL and last > FITTED * first and highest < RISEN * first:
        yield Symptom(
            cause="lr_too_low",
            severity="note",
            evidence=f"A handful of images is learnt slowly: {said}",
            remedy="Multiply the learning rate by three to ten, unless few parameters are trained on purpose.",
        )
