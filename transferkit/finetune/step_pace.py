"""How long a training step takes on this machine, for an image of its batch."""

from __future__ import annotations

import copy
import time

import torch

from transferkit.finetune.freeze import FreezePlan
from transferkit.nn import Backbone, CutError, Tail, TransferModel, cut
from transferkit.strategies import Plan

__all__ = ["step_seconds"]

ROUNDS = 4
"""Steps that are timed at most; the fastest counts: other load on the machine only slows the others."""

SECONDS = 0.4
"""Seconds after which no further step begins."""


def step_seconds(backbone: Backbone, plan: Plan, *, batch_size: int, device: torch.device) -> float:
    """Seconds that an image takes in a training step of a plan's last phase, forward and backward.

    Batches are noise: images, or activations where the frozen stages can be cached. Costs one step to warm up and up to
    0.4 seconds more, or a second step where these take longer.

    Args:
        backbone: Not modified.
        plan: A strategy's, with phases.
        batch_size: Images per step.
        device: Where it will be trained.
    """
    copied = copy.deepcopy(backbone).without_head()
    model = TransferModel(copied, stages=plan.stages, pooling="avg", classes=["a", "b"])
    model.to(device).to(memory_format=torch.channels_last)
    freezing = FreezePlan(model, plan.phases)
    tail = _find_tail(backbone, freezing.cut)
    run, shape = (copied, _image_shape(backbone)) if tail is None else (tail.on(copied), tail.shape)
    inputs = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    if inputs.ndim == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    freezing.start(len(plan.phases) - 1)
    model.train()
    freezing.set_modes(training=True)

    def step() -> float:
        began = time.perf_counter()
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(run(inputs).square().mean())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    with torch.enable_grad():
        step()  # allocates memory, loads kernels
        seconds = [step()]
        while len(seconds) < ROUNDS and sum(seconds) < SECONDS:
            seconds.append(step())
    return min(seconds) / batch_size


def _image_shape(backbone: Backbone) -> tuple[int, ...]:
    preprocessing = backbone.spec.preprocessing
    return (3, *(preprocessing.shape or (preprocessing.size, preprocessing.size)))


def _find_tail(backbone: Backbone, stage: str | None) -> Tail | None:
    """The part behind the frozen stages, where a run would cache what they return."""
    if stage is None:
        return None
    try:
        tail = cut(backbone, stage)
    except CutError:
        return None
    return tail if tail.stores_less else None
