"""Finished runs over networks that are small, and networks that show who runs them and how."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tests.unit.nn.toy_networks import Pyramid, spec_of
from tests.unit.report.conftest import build_record
from transferkit.nn import Backbone, Blend, TransferModel
from transferkit.result import Result

CLASSES = ("ant", "bee", "cat")


def make_model(network: nn.Module | None = None, *, seed: int = 0) -> TransferModel:
    """Three classes on all stages; weights and statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Backbone(Pyramid() if network is None else network, spec_of())
        model = TransferModel(
            backbone, stages=[stage.name for stage in backbone.stages], pooling="avg", classes=CLASSES
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval()


def make_result(model: TransferModel | Blend | None = None) -> Result:
    """A run that ended with this model."""
    model = make_model() if model is None else model
    first = model.parts[0] if isinstance(model, Blend) else model
    record = build_record(CLASSES)
    evidence = replace(record.evidence, backbone=first.backbone.spec)
    return Result(model, replace(record, evidence=evidence, held_back_accuracy=None))


def draw_pictures(count: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 40, 36, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 36, 3), dtype=np.uint8)


class Gate:
    """Where a chosen thread stops in the middle of a forward pass until it is let on."""

    def __init__(self) -> None:
        self.stopped, self.open = threading.Event(), threading.Event()
        self.stopping: threading.Thread | None = None

    def __deepcopy__(self, _: Any) -> Gate:
        return self

    def pass_through(self) -> None:
        if threading.current_thread() is self.stopping:
            self.stopped.set()
            assert self.open.wait(20)


class Stops(nn.Module):
    """Halfway through a network: the thread that the gate is for stops here. Then dropout, if anybody trains."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.gate.pass_through()
        return self.dropout(images)


class Stopping(Pyramid):
    """A Pyramid with a gate in front of its last stage."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.stops = Stops(gate)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.stops(self.middle(self.stem(images)))).mean((2, 3))


class Remembering(Pyramid):
    """Keeps an activation on itself between two of its layers, as networks do."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.kept: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.kept = self.middle(self.stem(images))
        self.gate.pass_through()
        return self.last(self.kept).mean((2, 3))
