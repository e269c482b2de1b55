"""Strategy that trains only the stages around the best probe, possibly early ones (surgical fine-tuning)."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import CHOSEN, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["surgical"]


@STRATEGIES.register("surgical")
def surgical(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """Train the head alone, then the head with the stage of the best probe and its neighbours.

    That is the stage with the highest expected probe accuracy among those up to the head's input: after it, the
    features suit the new images less and less. Without measurements, it is the head's input, or the middle stage if the
    input is all stages. Stages named in the request (`tuned`) take precedence.

    Args:
        request: Its `stage`, `alternatives`, `tuned`, `lr` and `norm` are used.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Lee et al., Surgical fine-tuning improves adaptation to distribution shifts, ICLR 2023. All chosen stages have
        the same rate, as there. Deviation: the stages are chosen by probes on frozen features, not by trial of blocks
        or by gradients, and the head is trained too, since its classes are new.

    Example:
        >>> from transferkit.strategies import PlanSettings
        >>> request = PlanSettings(strategy="surgical", stage="joined", lr=1e-3, norm="keep", tuned=("stem",))
        >>> [f"{rule} {rule.lr:g}" for rule in surgical(request, ["stem", "a", "top"]).phases[1].rules]
        ['head 0.0001', 'stem 0.001', '* 0']
    """
    chosen = tuned_stages(request, stages) or _around_evidence(request, reached_stages(request, stages))
    lr = rate_of(request)
    return head_first("surgical", request, stages, phase=CHOSEN, rates=dict.fromkeys(chosen, lr))


def _around_evidence(request: PlanRequest, reached: Sequence[str]) -> tuple[str, ...]:
    position = list(reached).index(_stage_of_evidence(request, reached))
    return tuple(reached[max(position - 1, 0) : position + 2])


def _stage_of_evidence(request: PlanRequest, reached: Sequence[str]) -> str:
    probes = [o for o in request.alternatives if o.strategy == "linear_probe" and o.stage in reached]
    if probes:
        return max(probes, key=lambda option: option.expected_accuracy).stage
    return request.stage if request.stage in reached else reached[len(reached) // 2]
