"""The time of a training step: of what is trained alone, without what goes before it, and nothing is changed by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.unit.finetune.training_toys import make_backbone, moved, phase, plan_of, states
from transferkit.finetune import step_pace
from transferkit.finetune.step_pace import step_seconds
from transferkit.nn import Backbone

CPU = torch.device("cpu")
WHOLE = plan_of(phase("all", stem=0.01, middle=0.01, top=0.01))
LAST = plan_of(phase("top", top=0.01))


class Counted(nn.Module):
    """Counts its calls."""

    calls = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Counted.calls += 1
        return self.inner(images)


def calls_of_the_stem(plan) -> int:
    backbone = make_backbone()
    backbone.trunk.stem[0] = Counted(backbone.trunk.stem[0])
    backbone = Backbone(backbone.trunk, backbone.spec)
    before = Counted.calls
    step_seconds(backbone, plan, batch_size=2, device=CPU)
    return Counted.calls - before


def test_frozen_stages_whose_activations_would_be_cached_are_not_run_in_the_steps(monkeypatch):
    monkeypatch.setattr(step_pace, "SECONDS", 1e9)
    more = step_pace.ROUNDS + 3
    calls = {plan: [] for plan in ("whole", "last")}
    for rounds in (step_pace.ROUNDS, more):
        monkeypatch.setattr(step_pace, "ROUNDS", rounds)
        calls["whole"].append(calls_of_the_stem(WHOLE))
        calls["last"].append(calls_of_the_stem(LAST))
    assert calls["whole"][1] - calls["whole"][0] == 3
    assert calls["last"][1] == calls["last"][0]


@pytest.mark.parametrize(("loss", "passes"), [("fixmatch", 1 + 2 + 2), ("dann", 1 + 1)])
def test_a_step_with_unlabelled_images_runs_the_network_on_these_too(monkeypatch, loss, passes):
    monkeypatch.setattr(step_pace, "SECONDS", 1e9)
    plan, calls = replace(LAST, further_loss=loss), []
    for rounds in (step_pace.ROUNDS, step_pace.ROUNDS + 1):
        monkeypatch.setattr(step_pace, "ROUNDS", rounds)
        calls.append(calls_of_the_stem(plan))
    assert calls[1] - calls[0] == passes


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
