"""Only the stages that the evidence points at learn, early ones included."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.strategies.plan import STRATEGIES, Plan, PlanRequest
from transferkit.strategies.rates import CHOSEN, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["surgical"]


@STRATEGIES.register("surgical")
def surgical(request: PlanRequest, stages: Sequence[str]) -> Plan:
    """The head alone, then the head with the stage that the evidence points at and its neighbours.

    That stage is the one that a probe is expected to do best on, of those up to the last that the head reads: up to
    there the features suit the new images, from there on they do so less and less. If nothing was measured, it is the
    one that the head reads, or the middle one if it reads all. A decision that names its stages (`tuned`) has the last
    word.

    Args:
        request: Its `stage`, `alternatives`, `tuned`, `lr` and `norm` are what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Lee et al., Surgical fine-tuning improves adaptation to distribution shifts, ICLR 2023. All chosen stages learn
        at one rate, as there. Deviation: the stages are chosen by the probes of frozen features, not by trying blocks
        or by gradients, and the head learns too, since its classes are new.

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
    place = list(reached).index(_stage_of_evidence(request, reached))
    return tuple(reached[max(place - 1, 0) : place + 2])


def _stage_of_evidence(request: PlanRequest, reached: Sequence[str]) -> str:
    probes = [o for o in request.alternatives if o.strategy == "linear_probe" and o.stage in reached]
    if probes:
        return max(probes, key=lambda option: option.expected_accuracy).stage
    return request.stage if request.stage in reached else reached[len(reached) // 2]
