"""What the model returns, against what the loss makes of it: probed with outputs of our own, so that a loss of a
person's own is understood as well."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped
from transferkit.doctor.subject import Loss, Subject, seeded
from transferkit.records import Symptom

__all__ = ["SUM_ERROR"]

SUM_ERROR = 1e-4
"""Largest distance of a sum of probabilities from 1."""

EQUAL = 1e-3
"""Relative difference of two losses that are the same up to rounding."""

CERTAIN = 3.0
"""Logit of an outcome that is nearly sure."""

BETTER = 0.8
"""A loss of logits is lower at right logits than this share of its value at right probabilities: 0.1 for binary
cross-entropy, 0.55 with targets smoothed by 0.1."""

BOUNDED = {"Sigmoid": "a sigmoid", "Hardsigmoid": "a sigmoid", "Tanh": "a tanh"}
CLIPPED = {"Relu": "a rectifier", "Hardtanh": "a rectifier"}
"""Operation in torch's graph -> what it is called."""

PASSING = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Clone", "ToCopy", "Alias", "T", "Select", "Slice")
"""Operations that change shape or type alone."""


@dataclass(frozen=True)
class _Probe:
    """A loss at outputs of our own choice.

    Args:
        loss: (outputs, targets) -> scalar.
        targets: Those of the batch.
        start: (N, ...) outputs of the model and noise: a last layer of zeros must not hide what the loss does.
    """

    loss: Loss
    targets: torch.Tensor
    start: torch.Tensor

    def at(self, outputs: torch.Tensor, targets: torch.Tensor | None = None) -> float:
        """The loss; NaN where it refuses such outputs."""
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return float(self.loss(outputs, self.targets if targets is None else targets))
        except Exception:  # whatever a loss raises for outputs outside of its domain
            return math.nan

    @property
    def is_constant(self) -> bool:
        """Whether the outputs do not matter."""
        found = [self.at(scale * self.start.roll(one, 0)) for one, scale in enumerate((1.0, 0.5, 2.0, 10.0))]
        if not all(map(math.isfinite, found)) or not all(_same(one, found[0]) for one in found):
            return False
        outputs = self.start.clone().requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = self.loss(outputs, self.targets)
        if not loss.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(loss, [outputs], allow_unused=True)
        return gradient is None or not bool(gradient.any())

    @property
    def applies_softmax(self) -> bool:
        """Whether adding a number to all outputs of an image changes nothing, as before a softmax."""
        if self.start.dim() < 2 or self.start.shape[1] < 2:
            return False
        shift = CERTAIN * self.start.roll(1, 0)[:, :1]
        return _same(self.at(self.start), self.at(self.start + shift))

    @property
    def applies_sigmoid(self) -> bool:
        """Whether right logits, of both signs, cost less than right probabilities."""
        wanted = self._wanted()
        if wanted is None:
            return False
        logits = self.at(CERTAIN * (2 * wanted - 1))
        return 0 <= logits < BETTER * self.at(wanted)

    @property
    def takes_logarithms(self) -> bool:
        """Whether it is minus the output of the right class, as the negative log-likelihood of log-probabilities."""
        if self.start.dim() < 2 or self.start.shape[1] < 2 or self.targets.is_floating_point():
            return False
        if self.targets.dim() != self.start.dim() - 1:
            return False
        plain, twice = self.at(self.start), self.at(2 * self.start)
        one, two = self.at(self.start + 1), self.at(self.start + 2)
        return _same(2 * plain, twice) and _same(plain - one, one - two) and one < plain

    def _wanted(self) -> torch.Tensor | None:
        """Targets as outputs in [0, 1]."""
        shape, targets = self.start.shape, self.targets
        if targets.numel() == self.start.numel():
            wanted = targets.reshape(shape).to(self.start.dtype)
        elif not targets.is_floating_point() and targets.dim() == 1 and self.start.dim() == 2:
            if not 0 <= int(targets.min()) <= int(targets.max()) < shape[1]:
                return None
            wanted = torch.nn.functional.one_hot(targets.long(), shape[1]).to(self.start.dtype)
        else:
            return None
        return wanted if 0 <= float(wanted.min()) <= float(wanted.max()) <= 1 else None


@CHECKS.register("loss")
def check_loss(subject: Subject) -> Iterator[Symptom]:
    """Does the loss expect what the model returns: logits or probabilities, in the shape of the targets?"""
    model, _ = subject.copy()
    with torch.enable_grad(), seeded(subject.seed):
        outputs = subject.run(model)
    targets = subject.targets
    if not isinstance(outputs, torch.Tensor) or not isinstance(targets, torch.Tensor) or not outputs.dim():
        raise Skipped("outputs or targets are not a tensor")
    if not outputs.is_floating_point() or not bool(torch.isfinite(outputs).all()):
        raise Skipped("the outputs are not finite numbers")
    last, values = _last_operation(outputs), outputs.detach()
    with seeded(subject.seed):
        probe = _Probe(subject.loss, targets, values + torch.randn_like(values))
        if last == "Softmax" and values.dim() > 1 and values.shape[1] == 1:
            yield _twice("A softmax over a single output is 1 for every image.")
        elif probe.is_constant:
            yield _ignores_outputs(tuple(values.shape))
        elif math.isfinite(probe.at(probe.start)):
            yield from _shapes(probe)
        if math.isfinite(probe.at(values)):
            yield from _activations(probe, values, last)


def _activations(probe: _Probe, values: torch.Tensor, last: str) -> Iterator[Symptom]:
    """What the last operation of the model does, and the loss does again or does not."""
    if probe.applies_softmax:
        sums = values.sum(dim=1)
        if bool((values >= 0).all()) and bool(((sums - 1).abs() < SUM_ERROR).all()):
            yield _twice("The outputs are probabilities: they are >= 0 and sum to 1 for each image.")
        elif last in BOUNDED:
            yield _squashed(f"{BOUNDED[last]} in front of a loss with a softmax of its own", "alarm")
        elif last in CLIPPED:
            yield _squashed(f"{CLIPPED[last]} in front of a loss with a softmax of its own", "note")
        elif last == "LogSoftmax":
            yield _twice("A logarithm of a softmax is taken in the model and again in the loss, to no effect.", "note")
        yield from _no_distributions(probe)
    elif last in BOUNDED or last in CLIPPED:
        if probe.applies_sigmoid:
            name = {**BOUNDED, **CLIPPED}[last]
            yield _squashed(f"{name} in front of a loss with a sigmoid of its own", "alarm")
    elif probe.takes_logarithms and float((values.exp().sum(dim=1) - 1).abs().max()) > EQUAL:
        given = "probabilities" if last == "Softmax" else "plain outputs"
        yield Symptom(
            cause="missing_log_softmax",
            severity="alarm",
            evidence=f"The loss is minus the log-probability of the right class, and gets {given}: it falls without "
            "bound.",
            remedy="Return F.log_softmax(outputs, dim=1), or use cross-entropy on logits.",
        )


def _shapes(probe: _Probe) -> Iterator[Symptom]:
    """Outputs and targets of different shapes, which the loss spreads over each other."""
    outputs, targets = probe.start, probe.targets
    if outputs.shape == targets.shape or not targets.dim():
        return
    try:
        both = torch.broadcast_shapes(outputs.shape, targets.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return
    plain = probe.at(outputs)
    if not _same(plain, probe.at(outputs.expand(both), targets.expand(both))):
        return
    fits = outputs.numel() == targets.numel()
    if fits and _same(plain, probe.at(outputs.reshape(targets.shape))):
        return  # the same either way, as where the outputs have an axis of one image
    across = outputs.dim() != targets.dim()
    yield Symptom(
        cause="shape_mismatch",
        severity="alarm" if across else "note",
        evidence=f"Outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} are spread to "
        f"{tuple(both)}: "
        + ("the outputs of each image are compared with the targets of all." if across else "values are repeated."),
        remedy="Give both one shape: outputs.squeeze(1), or targets[:, None].",
    )


def _no_distributions(probe: _Probe) -> Iterator[Symptom]:
    if not probe.targets.is_floating_point() or probe.targets.shape != probe.start.shape:
        return
    off = (probe.targets.sum(dim=1) - 1).abs() > EQUAL
    if bool(off.any()):
        yield Symptom(
            cause="targets_no_distribution",
            severity="note",
            evidence=f"The targets of {int(off.sum())} of {off.numel()} images do not sum to 1, and the loss has a "
            "softmax, under which classes exclude each other.",
            remedy="For several labels an image use nn.BCEWithLogitsLoss.",
        )


def _twice(evidence: str, severity: Any = "alarm") -> Symptom:
    return Symptom(
        cause="double_softmax",
        severity=severity,
        evidence=evidence,
        remedy="Cross-entropy applies its own softmax: return logits, or use the negative log-likelihood of "
        "log-probabilities.",
    )


def _squashed(what: str, severity: Any) -> Symptom:
    return Symptom(
        cause="squashed_outputs",
        severity=severity,
        evidence=f"The model ends with {what}: confident predictions are out of its reach.",
        remedy="Return the outputs of the last layer as they are.",
    )


def _ignores_outputs(shape: tuple[int, ...]) -> Symptom:
    single = "; a softmax over one output is always 1" if shape[1:2] == (1,) else ""
    return Symptom(
        cause="loss_ignores_outputs",
        severity="alarm",
        evidence=f"The loss is the same for all outputs of shape {shape}{single}.",
        remedy="Use nn.BCEWithLogitsLoss for one output, or one output for each class with cross-entropy; check that "
        "the loss reads the model's outputs.",
    )


def _last_operation(outputs: torch.Tensor) -> str:
    """Name of the last operation in the graph that changes values, without torch's suffix; empty if there is none."""
    node: Any = outputs.grad_fn
    while node is not None:
        name: str = node.name().partition("Backward")[0]
        if name not in PASSING:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= EQUAL * max(abs(one), abs(other), EQUAL)
