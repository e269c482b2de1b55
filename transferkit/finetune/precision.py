"""Whether a network is trained in bfloat16 mixed precision, unless the person names another."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["MIXED", "trains_mixed"]

MIXED = "bf16-mixed"
"""Lightning's name of it."""

LEAST_PARAMETERS = 4_000_000
"""Of networks that gain by it; steps of smaller ones are calls more than arithmetic."""


def trains_mixed(network: nn.Module, device: torch.device) -> bool:
    """Whether training is faster in bfloat16 mixed precision: dense layers, on hardware that multiplies such matrices.

    A function of hardware and layers alone, not of measured times: the same run gives the same weights, however busy
    the machine is. On two cores of an AMD EPYC with AVX512-BF16, steps of ResNet-18, a ResNet-50 of half the width and
    ViT-Tiny are 1.4 to 1.8 times as fast, epochs with all else 1.3 times. Networks with depthwise convolutions are
    slower (EfficientNet-Lite0 0.5 times): there are no fast kernels for these.

    Args:
        network: Its layers are looked at.
        device: Where it is trained.
    """
    is_large = sum(parameter.numel() for parameter in network.parameters()) >= LEAST_PARAMETERS
    return is_large and _multiplies_bfloat16(device) and not any(map(_is_grouped, network.modules()))


def _is_grouped(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
