"""What one training step moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed, take_step
from transferkit.doctor.subject import Subject, seeded
from transferkit.records import Symptom

__all__: list[str] = []


@CHECKS.register("step")
def check_step(subject: Subject) -> Iterator[Symptom]:
    """Does one step give every trainable parameter a gradient, and move those that are trained and nothing else?"""
    model, optimizer = subject.copy()
    before = {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    for one, original in zip(model.parameters(), subject.model.parameters(), strict=True):
        # A frozen parameter that kept a gradient is moved by it, and by weight decay.
        keeps = original.grad is not None and not original.requires_grad
        one.grad = original.grad.clone() if keeps and original.grad is not None else None
    with seeded(subject.seed):
        loss = subject.loss(subject.run(model), subject.targets)
        if not loss.requires_grad:
            yield _no_gradient("The loss does not depend on any trainable parameter.")
            return
        if not bool(torch.isfinite(loss)):
            raise Skipped("the loss is not finite")
        torch.autograd.backward(loss)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if all(one.grad is None for one in trained.values()):
        yield _no_gradient("No trainable parameter gets a gradient from the loss.")
        return
    yield from _not_finite(trained)
    yield from _without_gradient(trained)
    yield from _drifting_statistics(model, before)
    if optimizer is None:
        raise Skipped("without an optimizer only gradients and statistics were looked at")
    take_step(optimizer)
    moved = {name for name, one in model.named_parameters() if not torch.equal(one.detach(), before[name])}
    held = {id(one) for group in optimizer.param_groups for one in group["params"] if group["lr"] != 0}
    if frozen := sorted(moved - set(trained)):
        yield Symptom(
            cause="frozen_moves",
            severity="alarm",
            evidence=f"A step moves {len(frozen)} frozen parameters: {listed(frozen)}.",
            remedy="Take them out of the optimizer, or set their gradients to None.",
            items=tuple(frozen),
        )
    still = [name for name, one in trained.items() if id(one) in held and _has_gradient(one) and name not in moved]
    if still and len(still) == sum(id(one) in held and _has_gradient(one) for one in trained.values()):
        yield Symptom(
            cause="step_changes_nothing",
            severity="alarm",
            evidence=f"A step moves none of the {len(still)} parameters that have a gradient.",
            remedy="Check the learning rate, its schedule or warm-up, gradient clipping, and that the precision "
            "can hold the change.",
        )


def _no_gradient(evidence: str) -> Symptom:
    return Symptom(
        cause="no_gradient",
        severity="alarm",
        evidence=evidence,
        remedy="Check requires_grad, and look for detach(), .data, item(), argmax() and no_grad() in the forward pass "
        "and in the loss.",
    )


def _not_finite(trained: Mapping[str, nn.Parameter]) -> Iterator[Symptom]:
    broken = [
        name for name, one in trained.items() if one.grad is not None and not bool(torch.isfinite(_values(one)).all())
    ]
    if broken:
        yield Symptom(
            cause="gradient_not_finite",
            severity="alarm",
            evidence=f"The loss is finite, and the gradients of {len(broken)} of {len(trained)} parameters are not: "
            f"{listed(broken)}.",
            remedy="Look for roots, norms and quotients at zero, whose derivative is infinite: add a small number.",
            items=tuple(broken),
        )


def _values(one: nn.Parameter) -> torch.Tensor:
    assert one.grad is not None
    return one.grad.coalesce().values() if one.grad.is_sparse else one.grad


def _has_gradient(one: nn.Parameter) -> bool:
    return one.grad is not None and bool((_values(one) != 0).any())


def _without_gradient(trained: Mapping[str, nn.Parameter]) -> Iterator[Symptom]:
    unused = [name for name, one in trained.items() if one.grad is None]
    zero = [name for name, one in trained.items() if one.grad is not None and not _has_gradient(one)]
    if unused:
        yield Symptom(
            cause="unused_parameters",
            severity="note",
            evidence=f"{len(unused)} of {len(trained)} trainable parameters take no part in the loss: "
            f"{listed(unused)}.",
            remedy="Freeze or remove them; or call the layer that was forgotten in the forward pass.",
            items=tuple(unused),
        )
    if zero and len(zero) == len(trained) - len(unused):
        yield Symptom(
            cause="dead_network",
            severity="alarm",
            evidence=f"The gradients of all {len(zero)} parameters are zero.",
            remedy="Initialise anew: all-zero weights and dead rectifiers pass no gradient (nn.init.initialise).",
            items=tuple(zero),
        )
    elif 2 * len(zero) > len(trained) and not _starts_at_zero(trained):
        yield Symptom(
            cause="zero_gradients",
            severity="note",
            evidence=f"The gradients of {len(zero)} of {len(trained)} parameters are zero: {listed(zero)}.",
            remedy="Look for dead rectifiers, and layers that are cut off from the loss.",
            items=tuple(zero),
        )


def _starts_at_zero(trained: Mapping[str, nn.Parameter]) -> bool:
    """Whether a whole weight is zero, as heads and the last scales of residual blocks often are: it passes no
    gradient in the first step, and does in the second."""
    return any(name.endswith("weight") and not bool(one.detach().any()) for name, one in trained.items())


def _drifting_statistics(model: nn.Module, before: Mapping[str, torch.Tensor]) -> Iterator[Symptom]:
    """Running statistics that a step changed in layers with nothing to train."""
    buffers = dict(model.named_buffers())
    drifting = []
    for name, module in model.named_modules():
        frozen = not any(one.requires_grad for one in module.parameters(recurse=False))
        has_parameters = next(module.parameters(recurse=False), None) is not None
        own = [f"{name}.{key}".lstrip(".") for key, _ in module.named_buffers(recurse=False)]
        if (
            frozen
            and has_parameters
            and any(key in before and not torch.equal(buffers[key], before[key]) for key in own)
        ):
            drifting.append(name)
    if drifting:
        yield Symptom(
            cause="frozen_norm_in_training_mode",
            severity="alarm",
            evidence=f"A step changes the running statistics of {len(drifting)} frozen normalisation layers: "
            f"{listed(drifting)}.",
            remedy="Keep frozen layers in evaluation mode, also after model.train() (FreezePlanCallback does).",
            items=tuple(drifting),
        )
