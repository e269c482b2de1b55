"""Strategy that trains only a linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import NEW_HEAD_FACTOR, head_only
from transferkit.strategies.reach import check_unfreeze, is_selected, read_stages

__all__ = ["linear_probe"]


@STRATEGIES.register("linear_probe")
def linear_probe(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """A linear classifier on the decided stage, or on all for "joined" and "selected"; the backbone is frozen.

    The classifier is fitted in closed form. With a learning rate it is trained by gradient from zero instead, for
    augmented or streamed images, which have no fixed features.

    Args:
        request: Its `stage` and whether its `lr` is 0 are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or stages to train are named.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="linear_probe", stage="top", lr=0, norm="frozen")
        >>> linear_probe(request, ["stem", "top"]).stages
        ('top',)
    """
    check_unfreeze("linear_probe", request.tuned or None)
    by_gradient = request.lr > 0
    return Plan(
        strategy="linear_probe",
        stages=read_stages(request, stages),
        closed_form=not by_gradient,
        selected=is_selected(request),
        phases=(head_only(request, factor=NEW_HEAD_FACTOR),) if by_gradient else (),
        start="zero" if by_gradient else "closed_form",
    )
