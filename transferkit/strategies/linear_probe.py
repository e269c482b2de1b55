"""A linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import NEW_HEAD_FACTOR, head_only
from transferkit.strategies.reach import check_unfreeze, is_selected, read_stages

__all__ = ["linear_probe"]


@STRATEGIES.register("linear_probe")
def linear_probe(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Read the decided stage, or all of them for "joined" and "selected"; nothing of the backbone is trained.

    The classifier is solved for in closed form. A decision with a learning rate has it trained by gradient instead,
    from zero: for images that are augmented, or come as a stream, there are no fixed features to solve for.

    Args:
        request: Its `stage` is what counts, and whether its `lr` is 0.
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
