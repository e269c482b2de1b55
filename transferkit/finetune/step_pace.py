"""How long a training step takes on this machine, for an image of its batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch

from transferkit.features.identity import probe_inputs
from transferkit.finetune.freeze import FreezePlan
from transferkit.finetune.unlabelled import FURTHER_LOSSES
from transferkit.nn import Backbone, CutError, TransferModel, cut
from transferkit.strategies import Plan

__all__ = ["step_seconds"]

ROUNDS = 4
"""Steps that are timed at most; the fastest counts: other load on the machine only slows the others."""

SECONDS = 0.4
"""Seconds after which no further step begins."""


def step_seconds(
    backbone: Backbone, plan: Plan, *, batch_size: int, device: torch.device, mixed: bool = False
) -> float:
    """Seconds that an image takes in a training step of a plan's last phase, forward and backward.

    Batches are fixed images, or their activations where the frozen stages can be cached. Strategies with a loss of
    unlabelled images cache none, and run the network on these too. Costs one step to warm up and up to 0.4 seconds
    more, or a second step where these take longer.

    Args:
        backbone: Not modified.
        plan: A strategy's, with phases.
        batch_size: Images per step.
        device: Where it will be trained.
        mixed: In bfloat16 mixed precision.

    Raises:
        OptionError, BackboneError: If nothing can be trained as planned, or the network cannot take the images.
        RuntimeError: If it has no gradients, or memory runs out.
    """
    # A head and dropout draw: a run must not depend on whether its steps were timed or remembered.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        return _fastest_step(backbone, plan, batch_size, device, mixed) / batch_size


def _fastest_step(backbone: Backbone, plan: Plan, batch_size: int, device: torch.device, mixed: bool) -> float:
    copied = copy.deepcopy(backbone).without_head()
    model = TransferModel(copied, stages=plan.stages, pooling="avg", classes=["a", "b"])
    model.to(device).to(memory_format=torch.channels_last)
    freezing = FreezePlan(model, plan.phases)
    pixels = torch.from_numpy(probe_inputs(model.preprocessing, batch_size)).to(device)
    further = FURTHER_LOSSES[plan.further_loss] if plan.further_loss else None
    run, inputs = _cut_off(copied, None if further else freezing.cut, model.normalise(pixels))
    freezing.start(len(plan.phases) - 1)
    model.train()
    freezing.set_modes(training=True)

    def step() -> float:
        began = time.perf_counter()
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = run(inputs).float().square().mean()
            for _ in range(further.trained_passes if further else 0):
                loss = loss + run(inputs).float().square().mean()
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            for _ in range(further.frozen_passes if further else 0):
                run(inputs)
        torch.autograd.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    step()  # allocates memory, loads kernels
    seconds = [step()]
    while len(seconds) < ROUNDS and sum(seconds) < SECONDS:
        seconds.append(step())
    return min(seconds)


def _cut_off(
    backbone: Backbone, stage: str | None, images: torch.Tensor
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """What a step runs, and on what: the part behind the frozen stages where a run would cache their activations."""
    inputs = images.contiguous(memory_format=torch.channels_last)
    if stage is None:
        return backbone, inputs
    try:
        tail = cut(backbone, stage)
    except CutError:
        return backbone, inputs
    if not tail.stores_less:
        return backbone, inputs
    with torch.no_grad():
        return tail, tail.activations(inputs)[0]
