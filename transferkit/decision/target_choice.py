"""The choice where images have several labels, or numbers: the probe, unless fine-tuning was tried.

What fine-tuning gains over a probe was calibrated on tasks with one class per image. Here nothing is known of it before
it is tried: `mode="search"` tries it, `strategy=` names it, and `mode="rule"` follows the textbook.
"""

from __future__ import annotations

from collections.abc import Mapping

from transferkit.core.score_text import format_gain, format_score
from transferkit.decision.belief import Belief, update
from transferkit.decision.weighing import TUNED_SHARES, WORTH, can_tune, name_representation, probe_costs, tuning_cost
from transferkit.records import JOINED, TOP, Alternative, Choice, Evidence, ProbeScore

__all__ = ["best_target_probe", "choose_for_targets"]

CLEARLY = 1.0
"""Standard errors of the paired difference by which another representation must be better than all stages joined."""

TRIED_GAIN = 0.05
"""Standard deviation of what a fine-tuning strategy gains, before it is tried: as for classes (a few points)."""


def choose_for_targets(
    evidence: Evidence,
    *,
    advice: Choice | None = None,
    budget: float | str | None = None,
    trials: Mapping[str, Belief] | None = None,
    is_search: bool = False,
) -> Choice:
    """The probe with the best held-back score, or a fine-tuning strategy that did better in a trial.

    Args:
        evidence: Measurements of the frozen pass.
        advice: The textbook rule's choice, for comparison.
        budget: Seconds that fitting may take; None or "auto" for no limit.
        trials: Fine-tuning strategy -> measured gain in the held-back score over the best probe.
        is_search: List fine-tuning strategies as options to try.
    """
    probe = best_target_probe(evidence)
    said = _compared_with_rule(advice)
    if probe is None or probe.accuracy is None:
        reason = f"The {evidence.data.measure} is unknown: no training image can be held back. Add images or groups."
        return Choice(strategy="linear_probe", stage=JOINED, mode="evidence", reasons=(reason, *said))
    scores = [one for one in evidence.probes if one.method == "ridge" and one.accuracy is not None]
    costs = probe_costs(evidence, scores)
    options = [_option(one, costs[one.stage]) for one in scores]
    expected = next(option for option in options if option.stage == probe.stage)
    others = sorted((one for one in options if one is not expected), key=lambda one: -one.expected_accuracy)
    limit = budget if isinstance(budget, (int, float)) else None
    tuned = _tuned(evidence, probe, trials or {}, limit) if is_search or trials else []
    best = max(tuned, key=lambda one: one.expected_accuracy, default=None)
    reasons = _reasons(evidence, probe, is_searched=is_search or bool(trials))
    if best is not None and trials and best.expected_accuracy >= probe.accuracy + WORTH:
        gain = format_gain(best.expected_accuracy - probe.accuracy, probe.measure)
        reason = f"Fine-tuning ({best.strategy}): by its trial {gain} over the best probe, in {probe.measure}."
        rest = (expected, *(one for one in tuned if one is not best), *others)
        return Choice(
            strategy=best.strategy,
            stage=best.stage,
            mode="evidence",
            reasons=(reason, *reasons, *said),
            expected=best,
            alternatives=rest,
        )
    return Choice(
        strategy="linear_probe",
        stage=probe.stage,
        mode="evidence",
        reasons=(*reasons, *said),
        expected=expected,
        alternatives=(*tuned, *others),
    )


def best_target_probe(evidence: Evidence) -> ProbeScore | None:
    """The probe on all stages joined, or another if its paired lead is clear (`CLEARLY`); None if none is measured."""
    scores = [one for one in evidence.probes if one.method == "ridge" and one.accuracy is not None]
    joined = next((one for one in scores if one.stage == JOINED), None)
    if joined is None or joined.accuracy is None:
        return max(scores, key=lambda one: one.interval[0], default=None)
    base = joined.accuracy
    clear = [one for one in scores if one.interval[0] - base > CLEARLY * (one.gain_error or 0.0)]
    return max([joined, *clear], key=lambda one: one.interval[0])


def _option(score: ProbeScore, cost: float) -> Alternative:
    value, low, high = score.interval
    return Alternative(
        strategy="linear_probe",
        stage=score.stage,
        expected_accuracy=value,
        low=low,
        high=high,
        cost_seconds=cost,
        measure=score.measure,
    )


def _tuned(
    evidence: Evidence, probe: ProbeScore, trials: Mapping[str, Belief], limit: float | None
) -> list[Alternative]:
    if not can_tune(evidence):
        return []
    found, base = [], probe.interval[0]
    for strategy in TUNED_SHARES:
        cost = tuning_cost(evidence, strategy, tried=strategy in trials)
        if limit is not None and cost > limit:
            continue
        gain = Belief(mean=0.0, error=TRIED_GAIN)
        if strategy in trials:
            gain = update(gain, trials[strategy])
        found.append(
            Alternative(
                strategy=strategy,
                stage=TOP,
                expected_accuracy=min(1.0, base + gain.mean),
                low=base + gain.mean - 2 * gain.error,
                high=min(1.0, base + gain.mean + 2 * gain.error),
                cost_seconds=cost,
                measure=probe.measure,
            )
        )
    return found


def _reasons(evidence: Evidence, probe: ProbeScore, *, is_searched: bool) -> tuple[str, ...]:
    value, low, high = (format_score(one, probe.measure) for one in probe.interval)
    first = (
        f"Linear model on {name_representation(probe.stage)}: held-back {probe.measure} {value} (95 % interval {low} "
        f"to {high}) on the {evidence.data.train_images:,} training images."
    )
    if is_searched:
        return (first,)
    kind = "labels per image" if evidence.data.task == "multi_label" else "numbers"
    return (
        first,
        f"Fine-tuning was not considered: what it gains was calibrated on one class per image, not on {kind}. "
        "mode=search tries it on held-back images; strategy=lp_ft asks for it, and is never worse than this probe.",
    )


def _compared_with_rule(advice: Choice | None) -> tuple[str, ...]:
    if advice is None:
        return ()
    return (f"The textbook rule would choose {advice.strategy} on {name_representation(advice.stage)}.",)
