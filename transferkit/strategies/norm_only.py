"""Strategy that trains only scales and shifts of normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import light_plan

__all__ = ["norm_only"]


@STRATEGIES.register("norm_only")
def norm_only(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head and every stage's normalisation layers; convolutions and linear layers are frozen.

    With `norm="keep"` the statistics of batch normalisation are updated too.

    Args:
        request: Its `stage`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Frankle et al., Training BatchNorm and only BatchNorm, ICLR 2021. Deviation: the other weights are pretrained,
        not random, and all kinds of normalisation layers are trained.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="norm_only", stage="top", lr=1e-3, norm="keep")
        >>> [f"{rule} {rule.lr:g}" for rule in norm_only(request, ["stem", "top"]).phases[0].rules]
        ['head 0.0001', '* (norm) 0.01', '* 0']
    """
    return light_plan("norm_only", request, stages, phase="norms", kind="norm")
