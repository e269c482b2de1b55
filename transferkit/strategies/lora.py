"""Low-rank updates learn in place of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Adapters, Plan, PlanRequest
from transferkit.strategies.rates import light_plan

__all__ = ["lora"]

RANK = 8
"""Of the updates. Hu et al. find little between 4 and 64; eight keeps a whole EfficientNet-Lite0's below 0.2 million
numbers."""

ALPHA = 16.0
"""Twice the rank: updates count double, the usual choice of the method's own examples."""


@STRATEGIES.register("lora")
def lora(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """The head and a low-rank update of every large linear layer and 1x1 convolution learn; afterwards the updates are
    added to the weights, so that what is saved is the plain network.

    Args:
        request: Its `stage`, `lr` and `norm` are what counts.
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
