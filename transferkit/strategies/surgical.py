"""Only the stages that the evidence points at learn, early ones included."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.records import Decision
from transferkit.strategies.plan import STRATEGIES, Plan
from transferkit.strategies.rates import CHOSEN, head_first, rate_of
from transferkit.strategies.reach import reached_stages, tuned_stages

__all__ = ["surgical"]


@STRATEGIES.register("surgical")
def surgical(decision: Decision, stages: Sequence[str]) -> Plan:
    """The head alone, then the head with the stage that the evidence points at and its neighbours.

    That stage is the one that a probe is expected to do best on, of those up to the last that the head reads: up to
    there the features suit the new images, from there on they do so less and less. If nothing was measured, it is the
    one that the head reads, or the middle one if it reads all. A decision that names its stages (`tuned`) has the last
    word.

    Args:
        decision: Its `stage`, `alternatives`, `tuned`, `lr` and `norm` are what counts.
        stages: The backbone's stage names, stem -> head.

    Raises:
        OptionError: If the backbone has no such stage, or there is no learning rate.

    References:
        Lee et al., Surgical fine-tuning improves adaptation to distribution shifts, ICLR 2023. All chosen stages learn
        at one rate, as there. Deviation: the stages are chosen by the probes of frozen features, not by trying blocks
        or by gradients, and the head learns too, since its classes are new.

    Example:
        >>> decision = Decision(strategy="surgical", stage="joined", lr=1e-3, lr_scale=0.1, norm="keep", mode="given",
        ...                     reasons=("asked for",), tuned=("stem",))
        >>> [f"{rule} {rule.lr:g}" for rule in surgical(decision, ["stem", "a", "top"]).phases[1].rules]
        ['head 0.0001', 'stem 0.001', '* 0']
    """
    chosen = tuned_stages(decision, stages) or _around_evidence(decision, reached_stages(decision, stages))
    lr = rate_of(decision)
    return head_first("surgical", decision, stages, phase=CHOSEN, rates=dict.fromkeys(chosen, lr))


def _around_evidence(decision: Decision, reached: Sequence[str]) -> tuple[str, ...]:
    place = list(reached).index(_stage_of_evidence(decision, reached))
    return tuple(reached[max(place - 1, 0) : place + 2])


def _stage_of_evidence(decision: Decision, reached: Sequence[str]) -> str:
    probes = [o for o in decision.alternatives if o.strategy == "linear_probe" and o.stage in reached]
    if probes:
        return max(probes, key=lambda option: option.expected_accuracy).stage
    return decision.stage if decision.stage in reached else reached[len(reached) // 2]
