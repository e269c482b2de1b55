"""Which networks are trained in mixed precision: a function of hardware and layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.finetune import precision
from transferkit.finetune.precision import LEAST_PARAMETERS, trains_mixed

CPU = torch.device("cpu")
WIDE = int(LEAST_PARAMETERS**0.5) + 1


@pytest.fixture
def can(monkeypatch):
    monkeypatch.setattr(precision, "_multiplies_bfloat16", lambda device: True)


def dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(WIDE, WIDE))


@pytest.mark.usefixtures("can")
def test_a_large_dense_network_is_trained_in_mixed_precision_where_hardware_gains():
    assert trains_mixed(dense(), CPU)


@pytest.mark.usefixtures("can")
def test_depthwise_convolutions_and_small_networks_are_trained_in_single_precision():
    assert not trains_mixed(nn.Sequential(dense(), nn.Conv2d(8, 8, 3, groups=8)), CPU)
    assert not trains_mixed(nn.Linear(8, 8), CPU)


def test_without_such_hardware_nothing_is(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert not trains_mixed(dense(), CPU)
    assert not trains_mixed(dense(), torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not trains_mixed(dense(), torch.device("cuda"))


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_cpus_with_matrix_instructions_for_bfloat16_gain(monkeypatch, flag):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True}, raising=False)
    assert trains_mixed(dense(), CPU)


def test_older_torch_that_does_not_tell_trains_in_single_precision(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not trains_mixed(dense(), CPU)
