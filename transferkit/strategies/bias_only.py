"""Only biases learn."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.records import Decision
from transferkit.strategies.plan import STRATEGIES, Plan
from transferkit.strategies.rates import light_plan

__all__ = ["bias_only"]


@STRATEGIES.register("bias_only")
def bias_only(decision: Decision, stages: Sequence[str]) -> Plan:
    """The head and all biases learn, those of normalisation layers among them.

    Made for transformers. Most convolutional networks have no other biases than those of their normalisation.

    Args:
        decision: Its `stage`, `lr` and `norm` are what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, there is no learning rate, or stages to train are named.

    References:
        Ben Zaken et al., BitFit, ACL 2022.

    Example:
        >>> decision = Decision(strategy="bias_only", stage="top", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",))
        >>> [f"{rule} {rule.lr:g}" for rule in bias_only(decision, ["stem", "top"]).phases[0].rules]
        ['head 0.0001', '* (bias) 0.01', '* 0']
    """
    return light_plan("bias_only", decision, stages, phase="biases", kind="bias")
