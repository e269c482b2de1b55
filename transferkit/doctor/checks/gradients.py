"""Analytic gradients against differences of the loss, in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["STEP", "TOLERANCE"]

IMAGES = 4
STEP = 1e-5
"""Length of a step relative to the parameter's own norm: central differences are exact to its square."""

TOLERANCE = 1e-2
"""Largest relative difference; kinks of rectifiers between the two points give up to a thousandth."""

TINY = 1e-7
"""Directional derivatives below this share of the loss are lost in rounding."""

MOST = 12
"""Parameters checked, evenly spaced over the network: each costs two forward passes."""


def _double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_double(one) for one in value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@CHECKS.register("gradients")
def check_gradients(subject: Subject) -> Iterator[Symptom]:
    """Does the loss change along random directions as the gradient says?"""
    model, _ = subject.copy()
    model = model.double().eval()
    inputs, targets = subject.take(slice(0, IMAGES))
    inputs, targets = _double(inputs), _double(targets)
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    if not named:
        raise Skipped("no parameter is trained")
    with seeded(subject.seed):
        loss = subject.loss(subject.run(model, inputs), targets)
        if not loss.requires_grad:
            raise Skipped("the loss does not depend on a trained parameter by gradient")
        found = torch.autograd.grad(loss, [one for _, one in named], allow_unused=True)
    wrong = []
    for name, one, gradient in _some([(*pair, gradient) for pair, gradient in zip(named, found, strict=True)]):
        expected, measured = _derivatives(subject, model, one, gradient, inputs, targets)
        scale = max(abs(expected), abs(measured))
        if scale > TINY * max(abs(loss.item()), 1.0) and abs(expected - measured) > TOLERANCE * scale:
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


def _some(things: list[Any]) -> list[Any]:
    step = max(1, -(-len(things) // MOST))
    return things[::step]


def _derivatives(
    subject: Subject, model: Any, one: torch.Tensor, gradient: torch.Tensor | None, inputs: Any, targets: Any
) -> tuple[float, float]:
    """Derivatives of the loss along one random direction of one parameter: by its gradient, and by a central
    difference."""
    with seeded(subject.seed):
        direction = torch.randn_like(one)
    direction *= STEP * max(float(one.detach().norm()), 1e-3) / direction.norm()
    expected = 0.0 if gradient is None else float((gradient * direction).sum())
    losses = []
    with torch.no_grad():
        start = one.detach().clone()
        for sign in (1, -1):
            one.copy_(start + sign * direction)
            with seeded(subject.seed):
                losses.append(float(subject.loss(subject.run(model, inputs), targets)))
        one.copy_(start)
    length = float(direction.norm())
    return expected / length, (losses[0] - losses[1]) / (2 * length)
