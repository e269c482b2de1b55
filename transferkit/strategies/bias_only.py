"""Strategy that trains only biases (BitFit)."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import light_plan

__all__ = ["bias_only"]


@STRATEGIES.register("bias_only")
def bias_only(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head and all biases, including those of normalisation layers.

    Designed for transformers. Most convolutional networks have biases only in their normalisation.

    Args:
        request: Its `stage`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Ben Zaken et al., BitFit, ACL 2022.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="bias_only", stage="top", lr=1e-3, norm="keep")
        >>> [f"{rule} {rule.lr:g}" for rule in bias_only(request, ["stem", "top"]).phases[0].rules]
        ['head 0.0001', '* (bias) 0.01', '* 0']
    """
    return light_plan("bias_only", request, stages, phase="biases", kind="bias")
