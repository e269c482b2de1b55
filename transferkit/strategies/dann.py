"""Strategy that fine-tunes to features that do not tell labelled from unlabelled images, those of the target (DANN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transferkit.strategies.lp_ft import lp_ft
from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest

__all__ = ["dann"]


@STRATEGIES.register("dann")
def dann(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train what `lp_ft` trains, with a further loss: a small classifier tells the domains apart, and its gradient is
    reversed.

    Early stages stay frozen, as in `lp_ft`: the loss reads the deepest stage, and reaches those that are trained.

    Args:
        request: Its `stage` (one, "joined" or "selected"), `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Ganin et al., Domain-adversarial training of neural networks, JMLR 2016. Deviations: see
        `transferkit.finetune.unlabelled.DomainAdversarial`.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> plan = dann(PlanSettings(strategy="dann", stage="top", lr=1e-3), ["stem", "a", "top"])
        >>> plan.further_loss, plan.start
        ('dann', 'closed_form')
    """
    return replace(lp_ft(request, stages), strategy="dann", further_loss="dann")
