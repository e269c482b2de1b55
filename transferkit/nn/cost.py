"""Computational cost of a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transferkit.nn.backbone import Backbone
from transferkit.nn.stages import evaluating

__all__ = ["count_operations"]


def count_operations(backbone: Backbone) -> int:
    """Floating-point operations per image at the size in use; one multiply-add counts two.

    Counts convolutions and matrix products, as is standard, not normalisation and activations. Takes one forward pass.

    Example:
        >>> from torch import nn
        >>> from transferkit.records import BackboneSpec, Preprocessing
        >>> plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> spec = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=plain, pretrained=False)
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 8, 2, 2), nn.ReLU(), nn.Flatten())
        >>> count_operations(Backbone(toy, spec)) == 2 * (16 * 16 * 4 * (3 * 4) + 8 * 8 * 8 * (4 * 4))
        True
    """
    from torch.utils.flop_counter import FlopCounterMode

    side = backbone.spec.preprocessing.size
    device = next((tensor.device for tensor in backbone.state_dict().values()), torch.device("cpu"))
    image = torch.zeros(1, 3, side, side, device=device)
    with FlopCounterMode(display=False) as counter, _attention_in_parts(), evaluating(backbone), torch.no_grad():
        backbone(image)
    return int(counter.get_total_flops())


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Disable fused attention, which the counter does not support on every device; unfused, it is matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mha = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before)
