"""Strategy that fine-tunes on labelled and unlabelled images: confident predictions become labels (FixMatch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transferkit.strategies.lp_ft import lp_ft
from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest

__all__ = ["fixmatch"]


@STRATEGIES.register("fixmatch")
def fixmatch(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train what `lp_ft` trains, with a further loss: where the network is sure of an unlabelled image, its answer is
    the label of a strongly augmented version.

    The layers are those of `lp_ft` because pseudo-labels need a good classifier in the first step, which a head that is
    fitted in closed form is.

    Args:
        request: Its `stage` (one, "joined" or "selected"), `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Sohn et al., FixMatch, NeurIPS 2020. Deviations: see `transferkit.finetune.unlabelled.FixMatch`.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> plan = fixmatch(PlanSettings(strategy="fixmatch", stage="joined", lr=1e-3), ["stem", "a", "top"])
        >>> plan.further_loss, [f"{rule} {rule.lr:g}" for rule in plan.phases[0].rules]
        ('fixmatch', ['head 0.0001', 'top 0.001', 'a 0.00075', '* 0'])
    """
    return replace(lp_ft(request, stages), strategy="fixmatch", further_loss="fixmatch")
