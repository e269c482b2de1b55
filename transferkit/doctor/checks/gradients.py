"""Analytic gradients against differences of the loss, in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["STEPS", "TOLERANCE", "leave_kinks"]

IMAGES = 4
STEPS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
"""Lengths of steps relative to the parameter's own norm. Long ones cross kinks of rectifiers, of which a deep network
has many; short ones lose digits."""

JITTER = 1e-3
"""Relative size of the move that takes parameters off kinks."""

TOLERANCE = 1e-2
"""Largest relative difference."""

TINY = 1e-5
"""A parameter is not checked if doubling it would change the loss by less than this share: rounding decides then."""

MOST = 12
"""Parameters checked, evenly spaced over the network: each costs two forward passes."""


def _double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_double(one) for one in value)
    if isinstance(value, Mapping):
        return {name: _double(one) for name, one in value.items()}
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@CHECKS.register("gradients")
def check_gradients(subject: Subject) -> Iterator[Symptom]:
    """Does the loss change along random directions as the gradient says?"""
    if subject.first_input.device.type == "mps":
        raise Skipped("this device has no double precision")
    if isinstance(subject.loss, torch.nn.Module):  # class weights are tensors of a loss
        subject = replace(subject, loss=copy.deepcopy(subject.loss).double())
    model, _ = subject.copy()
    model = model.double().eval()
    inputs, targets = subject.take(slice(0, IMAGES))
    inputs, targets = _double(inputs), _double(targets)
    # The row of an embedding for padding gets no gradient on purpose.
    padded = {id(part.weight) for part in model.modules() if getattr(part, "padding_idx", None) is not None}
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad and id(one) not in padded]
    if not named:
        raise Skipped("no parameter is trained")
    leave_kinks([one for _, one in named], seed=subject.seed)
    with seeded(subject.seed):
        loss = subject.loss(subject.run(model, inputs), targets)
        if not loss.requires_grad:
            raise Skipped("the loss does not depend on a trained parameter by gradient")
        if loss.dtype != torch.float64:
            raise Skipped("model or loss computes in single precision, in which differences are too coarse")
        with torch.no_grad(), seeded(subject.seed):
            again = subject.loss(subject.run(model, inputs), targets)
        if bool(torch.isfinite(loss)) and not torch.allclose(loss, again, rtol=1e-9):
            raise Skipped("the loss is random, whatever torch's seed")
        found = torch.autograd.grad(loss, [one for _, one in named], allow_unused=True)
    wrong = []
    for name, one, gradient in _some([(*pair, gradient) for pair, gradient in zip(named, found, strict=True)]):
        expected, measured = _nearest(subject, model, one, gradient, (inputs, targets))
        scale = max(abs(expected), abs(measured))
        if scale * _length(one) > TINY * max(abs(loss.item()), 1.0) and abs(expected - measured) > TOLERANCE * scale:
            wrong.append(f"{name} ({expected:.3g} against {measured:.3g})")
    if wrong:
        yield Symptom(
            cause="wrong_gradient",
            severity="alarm",
            evidence=f"Analytic and numerical derivatives differ: {listed(wrong)}.",
            remedy="Check custom backward functions, detach() and no_grad() in the forward pass, and operations "
            "in place.",
            items=tuple(wrong),
        )


def leave_kinks(parameters: list[torch.nn.Parameter], *, seed: int) -> None:
    """Move every parameter a little: biases of zero leave dead units exactly on the kink of their rectifier, where the
    derivative is not defined."""
    with torch.no_grad(), seeded(seed):
        for one in parameters:
            one.add_(torch.randn_like(one) * JITTER * max(float(one.abs().mean()), JITTER))


def _some(things: list[Any]) -> list[Any]:
    step = max(1, -(-len(things) // MOST))
    return things[::step]


def _nearest(
    subject: Subject, model: Any, one: torch.Tensor, gradient: torch.Tensor | None, batch: tuple[Any, torch.Tensor]
) -> tuple[float, float]:
    """Derivatives of the loss along one random direction of one parameter: by its gradient, and by the central
    difference that comes nearest to it. A right gradient agrees once the step crosses no kink; a wrong one never
    does."""
    with seeded(subject.seed):
        direction = torch.randn_like(one)
    length = _length(one)
    direction *= length / direction.norm()
    expected = 0.0 if gradient is None else float((gradient * direction).sum()) / length
    measured = math.inf
    for step in STEPS:
        found = _difference(subject, model, one, step * direction, batch) / (step * length)
        measured = min(measured, found, key=lambda value: abs(value - expected))
        if abs(measured - expected) <= TOLERANCE * max(abs(expected), abs(measured)):
            break
    return expected, measured


def _length(one: torch.Tensor) -> float:
    """Norm of a parameter, of which steps are fractions."""
    return max(float(one.detach().norm()), 1e-3)


def _difference(
    subject: Subject, model: Any, one: torch.Tensor, change: torch.Tensor, batch: tuple[Any, torch.Tensor]
) -> float:
    """Half the difference of the losses with a parameter changed in one direction and in the other."""
    losses = []
    with torch.no_grad():
        start = one.detach().clone()
        for sign in (1, -1):
            one.copy_(start + sign * change)
            with seeded(subject.seed):
                losses.append(float(subject.loss(subject.run(model, batch[0]), batch[1])))
        one.copy_(start)
    return (losses[0] - losses[1]) / 2
