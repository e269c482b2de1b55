"""Strategy that trains low-rank updates of the weights (LoRA)."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Adapters, Plan, PlanRequest
from transferkit.strategies.rates import light_plan

__all__ = ["lora"]

RANK = 8
"""Rank of the updates. Hu et al. find little difference between 4 and 64; with 8 an EfficientNet-Lite0 has fewer than
0.2 million trained parameters."""

ALPHA = 16.0
"""Twice the rank, so updates are scaled by 2, the common choice in the method's examples."""


@STRATEGIES.register("lora")
def lora(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head and a low-rank update of every large linear layer and 1x1 convolution; afterwards the updates are
    merged into the weights, so that a plain network is saved.

    Args:
        request: Its `stage`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="lora", stage="top", lr=1e-3, norm="keep")
        >>> [f"{rule} {rule.lr:g}" for rule in lora(request, ["stem", "top"]).phases[0].rules]
        ['head 0.0001', '* (adapter) 0.01', '* 0']
    """
    adapters = Adapters(rank=RANK, alpha=ALPHA)
    return light_plan("lora", request, stages, phase="adapters", kind="adapter", adapters=adapters)
