"""Whether the learning rate is in a range in which something is learnt and nothing is destroyed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from transferkit.doctor.checks.registry import CHECKS, Skipped, take_step
from transferkit.doctor.checks.trial import median_move, start_trial
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__ = ["IMAGES", "STEPS"]

IMAGES, STEPS = 16, 24
"""Images and steps of a trial."""

BLOWN = 8.0
"""A loss that rises to this many times the first one, where a tenth of the rate stays below half of that, is thrown
off by the rate."""

STILL = {"weights": 2e-3, "norms and biases": 8e-3}
"""Kind of parameters -> how far they go in a trial, in units of their norms, at a rate that does nothing. In 36 healthy
set-ups (four networks, nine strategies) it was 4e-3 and more, and 2e-2 and more."""

CALM = {"weights": 1e-2, "norms and biases": 0.2}
"""The same up to which a loss that hardly falls is a matter of the rate; weights that move more learn, but slowly."""

DISPLACED = 0.3
"""The same beyond which weights of a pretrained network lose what they know: 0.2 and less in those set-ups, 0.4 and
more at a hundred times the rate."""

SLOW, SMOOTH, FAST = 0.15, 3.5, 0.6
"""The loss falls by less than the first; at a hundred times the rate it never exceeds the second, in units of the first
loss, and ends below the third, in units of the last one: then the rate is a hundred times too low. A rate that is right
is thrown off by a hundred times as much."""

SMALL = 0.05
"""Loss below which nothing is left to learn."""


@dataclass(frozen=True)
class _Trial:
    """A few steps at a multiple of the rate, on copies.

    Args:
        first, highest: Losses.
        last: Mean of the last four.
        moved: How far trained parameters before the last layer went, in units of their norms: the median over
            weights, or over norms and biases if no weight is trained; None if only the last layer is.
    """

    first: float
    last: float
    highest: float
    moved: float | None
    kind: str


@CHECKS.register("rate")
def check_rate(subject: Subject) -> Iterator[Symptom]:
    """Would a tenth, or a hundred times, of the learning rate do what this one does not?"""
    if subject.optimizer is None:
        raise Skipped("there is no optimizer")
    now = _try(subject, 1.0)
    if now is None or now.first < SMALL:
        return  # nothing is trained, or nothing is left to learn: others say so
    rates = sorted({group["lr"] for group in subject.optimizer.param_groups})
    displaced = subject.preprocessing is not None and now.kind == "weights" and (now.moved or 0.0) > DISPLACED
    if displaced or now.highest > BLOWN * now.first:
        lower = _try(subject, 0.1)
        if lower is not None and (displaced or lower.highest < now.highest / 2):
            moved = f", and weights move by {100 * (now.moved or 0.0):.0f} % of their size" if displaced else ""
            yield Symptom(
                cause="lr_too_high",
                severity="alarm",
                evidence=f"The learning rate {rates[-1]:.3g} throws the network off: within {STEPS} steps the loss "
                f"goes from {now.first:.3g} up to {now.highest:.3g}{moved}; at a tenth of it to no more than "
                f"{lower.highest:.3g}.",
                remedy="Divide it by ten or more.",
            )
    elif _is_low(now):
        higher = _try(subject, 100.0)
        smooth = higher is not None and higher.highest < SMOOTH * now.first
        if higher is not None and smooth and higher.last < FAST * now.last:
            yield Symptom(
                cause="lr_too_low",
                severity="alarm",
                evidence=f"The learning rate {rates[-1]:.3g} is far too low: {STEPS} steps take the loss from "
                f"{now.first:.3g} to {now.last:.3g}, at a hundred times the rate smoothly to {higher.last:.3g}.",
                remedy="Multiply it by thirty to a hundred.",
            )


def _is_low(now: _Trial) -> bool:
    """Whether hardly anything happens; a hundred times the rate must show that it could."""
    if now.moved is not None and now.moved < STILL[now.kind]:
        return True
    return now.last > (1 - SLOW) * now.first and (now.moved is None or now.moved < CALM[now.kind])


def _try(subject: Subject, factor: float) -> _Trial | None:
    """A trial, dropout off; None if no parameter is trained or the first loss is not finite."""
    model, optimizer = start_trial(subject, factor=factor)
    # Two halves in turn: what a step does to the images it has not seen shows what it destroys.
    half = max(1, min(IMAGES, len(subject.first_input)) // 2)
    halves = [subject.take(slice(0, half)), subject.take(slice(half, 2 * half))]
    kind, watched = _watched(model)
    start = [one.detach().clone() for one in watched]
    losses = list[float]()
    with seeded(subject.seed):
        for step in range(STEPS):
            inputs, targets = halves[step % 2]
            optimizer.zero_grad()
            loss = subject.loss(subject.run(model, inputs), targets)
            losses.append(loss.item())
            if not loss.requires_grad or not math.isfinite(losses[0]):
                return None
            if not math.isfinite(losses[-1]):
                break
            torch.autograd.backward(loss)
            take_step(optimizer)
    moved = median_move(zip(start, watched, strict=True))
    if len(losses) < STEPS:
        return _Trial(losses[0], math.inf, math.inf, moved, kind)
    return _Trial(losses[0], sum(losses[-4:]) / 4, max(losses), moved, kind)


def _watched(model: nn.Module) -> tuple[str, list[nn.Parameter]]:
    """Trained weights before the last layer, which may be new and move as far as it likes; or norms and biases."""
    named = list(model.parameters())
    last = max((place for place, one in enumerate(named) if one.dim() > 1), default=0)
    hidden = [one for one in named[:last] if one.requires_grad]
    weights = [one for one in hidden if one.dim() > 1]
    return ("weights", weights) if weights else ("norms and biases", hidden)
