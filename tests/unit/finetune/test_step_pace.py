"""The time of a training step: of what is trained alone, without what goes before it, and nothing is changed by it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from tests.unit.finetune.training_toys import make_backbone, moved, phase, plan_of, states
from transferkit.finetune import step_pace
from transferkit.finetune.step_pace import step_seconds
from transferkit.nn import Backbone

CPU = torch.device("cpu")
SLOW = 0.02
WHOLE = plan_of(phase("all", stem=0.01, middle=0.01, top=0.01))
LAST = plan_of(phase("top", top=0.01))


class Waiting(nn.Module):
    """Takes its time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(SLOW)
        return self.inner(images)


def make_slow() -> Backbone:
    backbone = make_backbone()
    backbone.trunk.stem[0] = Waiting(backbone.trunk.stem[0])
    return Backbone(backbone.trunk, backbone.spec)


def test_frozen_stages_whose_activations_would_be_cached_do_not_count(monkeypatch):
    monkeypatch.setattr(step_pace, "SECONDS", 0.0)
    assert step_seconds(make_slow(), WHOLE, batch_size=2, device=CPU) >= SLOW / 2
    assert step_seconds(make_slow(), LAST, batch_size=2, device=CPU) < SLOW / 2


def test_the_fastest_step_after_the_first_counts(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 10.25, 20.0, 20.08, 30.0, 30.2])
    monkeypatch.setattr(step_pace.time, "perf_counter", lambda: next(clock))
    assert step_seconds(make_backbone(), WHOLE, batch_size=4, device=CPU) == pytest.approx(0.02)


@pytest.mark.parametrize("plan", [WHOLE, LAST], ids=["all", "last"])
def test_the_backbone_is_left_as_it_was(plan):
    backbone = make_backbone()
    backbone.train()
    before, needed = states(backbone), [one.requires_grad for one in backbone.parameters()]
    drawn = torch.get_rng_state()
    step_seconds(backbone, plan, batch_size=4, device=CPU)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not moved(before, states(backbone))
    assert backbone.training
    assert [one.requires_grad for one in backbone.parameters()] == needed
    assert all(one.grad is None for one in backbone.parameters())
