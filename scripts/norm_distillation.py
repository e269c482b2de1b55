"""Distillation of fitted group normalisation: trains weight and bias of the layers that `fit_group_norms` inserted.

`bench_norm.py` measures its gain over the fit in closed form; it is small, so this is not in the package.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from transferkit.core.errors import OptionError, list_problems
from transferkit.nn.norm.conversion import check_images
from transferkit.nn.norm.standardised import StandardisedGroupNorm
from transferkit.nn.stages import evaluating


def distil_norms(
    student: nn.Module,
    teacher: nn.Module,
    images: torch.Tensor,
    *,
    epochs: int = 8,
    lr: float = 3e-4,
    batch: int = 32,
    seed: int = 0,
) -> tuple[float, ...]:
    """Train only weight and bias of the fitted layers, to bring the student's outputs closer to the teacher's.

    The loss is the divergence of the two softmaxes plus the squared distance of what the last fitted layer gives,
    averaged over positions, in units of its variance. Half of the batches are mirrored.

    Args:
        student: A classifier that `fit_group_norms` went over; changed in place, its modes and gradient flags are as
            before afterwards.
        teacher: The network as it was; unchanged.
        images: (N, 3, H, W) float, as both take them. No labels.
        epochs: Passes over the images, >= 1.
        lr: Highest learning rate of Adam, > 0; it rises over a tenth of the steps and then falls away.
        batch: Images per step.
        seed: Of the order and the mirroring.

    Returns:
        Mean loss of each epoch.

    Raises:
        OptionError: If the student has no fitted layer, or a number is out of range.
        DataError: If there are no images or a value of theirs is not finite.

    References:
        Hinton et al., 2015. Deviations: temperature 1, no labels, and only normalisation learns.
    """
    check_images(images)
    _check_training(epochs, lr, batch)
    fitted = {path: part for path, part in student.named_modules() if isinstance(part, StandardisedGroupNorm)}
    if not fitted:
        raise OptionError("The student has no StandardisedGroupNorm; call fit_group_norms on it first.")
    learning = [parameter for norm in fitted.values() for parameter in (norm.weight, norm.bias)]
    steps = epochs * math.ceil(len(images) / batch)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(learning, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2), pct_start=0.1)
    last = list(fitted)[-1]
    losses = []
    with evaluating(student), evaluating(teacher), _only_learning(student, learning), torch.enable_grad():
        for _ in range(epochs):
            total = 0.0
            for rows in _shuffled(len(images), batch, generator):
                mirrored = bool(torch.rand((), generator=generator) < 0.5)
                chosen = images[rows.to(images.device)]
                loss = _distance(student, teacher, chosen.flip(-1) if mirrored else chosen, last)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(images))
    return tuple(losses)


def _shuffled(count: int, batch: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Shuffled row numbers, batch by batch."""
    order = torch.randperm(count, generator=generator)
    return [order[start : start + batch] for start in range(0, count, batch)]


def _check_training(epochs: int, lr: float, batch: int) -> None:
    problems = [f"epochs must be >= 1, got {epochs!r}"] if epochs < 1 else []
    problems += [f"lr must be finite and > 0, got {lr!r}"] if not (lr > 0 and math.isfinite(lr)) else []
    problems += [f"batch must be >= 1, got {batch!r}"] if batch < 1 else []
    if problems:
        raise OptionError(list_problems("The layers cannot be distilled:", problems))


@contextmanager
def _only_learning(module: nn.Module, learning: Collection[nn.Parameter]) -> Iterator[None]:
    """Enable gradients for these parameters alone; afterwards all flags are restored and gradients are removed."""
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        module.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for parameter in learning:
            parameter.grad = None


def _distance(student: nn.Module, teacher: nn.Module, images: torch.Tensor, last: str) -> torch.Tensor:
    """Distance of student and teacher on one batch, see `distil_norms`."""
    with torch.no_grad():
        wanted, inner = _watched(teacher, images, last)
    given, own = _watched(student, images, last)
    divergence = F.kl_div(given.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    spread = inner.square().mean().clamp(min=torch.finfo(inner.dtype).tiny)
    return divergence + F.mse_loss(own, inner) / spread


def _watched(network: nn.Module, images: torch.Tensor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the network, and those of the module at `path`, averaged over positions."""
    seen: list[torch.Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        output = network(images)
    finally:
        handle.remove()
    return cast(torch.Tensor, output), seen[-1].mean((2, 3))
