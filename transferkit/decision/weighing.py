"""The choice by evidence: an expected accuracy, its uncertainty and a cost for every strategy; the best is taken.

Accuracy comes first. Among strategies whose expected accuracies are within `TIE` of the best, the cheapest is taken;
a budget strikes out those that cost more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.decision.gains import Belief, GainModel, Situation, load_gain_model
from transferkit.intervals import TWO_SIDED
from transferkit.types import JOINED, SELECTED, TOP, Alternative, Decision, Evidence, ProbeScore

__all__ = ["best_probe", "weigh"]

TIE = 0.001
"""A tenth of a point is worth no waiting: it is one image in a thousand."""


@dataclass(frozen=True)
class _Option:
    """One strategy: what to expect of it, and what it takes."""

    score: ProbeScore
    expected: Belief
    cost: float

    def alternative(self) -> Alternative:
        margin = TWO_SIDED * self.expected.error
        return Alternative(
            strategy="linear_probe",
            stage=self.score.stage,
            expected_accuracy=_share(self.expected.mean),
            low=_share(self.expected.mean - margin),
            high=_share(self.expected.mean + margin),
            cost_seconds=self.cost,
        )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def weigh(
    evidence: Evidence,
    *,
    advice: Decision | None = None,
    budget: float | None = None,
    knowledge: GainModel | None = None,
) -> Decision:
    """The strategy with the highest expected accuracy.

    Args:
        evidence: What the frozen pass measured.
        advice: What the textbook rule says, to be compared with.
        budget: Seconds that fitting may take; None sets no limit.
        knowledge: What earlier tasks taught; None takes what ships with the package.
    """
    options = _options(evidence, load_gain_model() if knowledge is None else knowledge)
    affordable = [option for option in options if budget is None or option.cost <= budget]
    among = affordable or [min(options, key=lambda option: option.cost)]
    front = among[0].expected.mean
    chosen = min((option for option in among if option.expected.mean >= front - TIE), key=lambda option: option.cost)
    others = [option for option in options if option is not chosen]
    return Decision(
        strategy="linear_probe",
        stage=chosen.score.stage,
        lr=0.0,
        lr_scale=0.0,
        norm="frozen",
        mode="evidence",
        reasons=(
            *_reasons(evidence, chosen, others),
            *_reasons_of_cost(chosen, options, among, budget),
            *_reasons_of_rule(chosen, advice),
        ),
        expected=chosen.alternative(),
        alternatives=tuple(option.alternative() for option in others),
    )


def best_probe(evidence: Evidence, *, knowledge: GainModel | None = None) -> str:
    """The stage, "joined" or "selected" that a linear probe is expected to do best on."""
    return _options(evidence, load_gain_model() if knowledge is None else knowledge)[0].score.stage


def _options(evidence: Evidence, knowledge: GainModel) -> list[_Option]:
    """Every probe that was measured, best first; equals in the order of their squared error."""
    scores = [score for score in evidence.probes if score.method == "ridge"]
    # Any backbone has a joined probe; evidence put together by hand need not.
    joined = next((score for score in scores if score.stage == JOINED), max(scores, key=lambda s: s.accuracy))
    situation = Situation(
        images=max(evidence.data.train_images, 1), classes=evidence.data.num_classes, accuracy=joined.accuracy
    )
    names = [stage.name for stage in evidence.backbone.stages]
    noise = situation.spread / math.sqrt(situation.images)
    costs = _costs(evidence, scores)
    options = []
    for score in scores:
        gain = _gain(score, joined, names, situation, knowledge)
        expected = Belief(mean=joined.accuracy + gain.mean, error=math.hypot(noise, gain.error))
        options.append(_Option(score, expected, costs[score.stage]))
    return sorted(options, key=lambda option: (-option.expected.mean, option.score.squared_error or math.inf))


def _gain(
    score: ProbeScore, joined: ProbeScore, names: list[str], situation: Situation, knowledge: GainModel
) -> Belief:
    """Accuracy beyond the joined probe's: what earlier tasks say, corrected by what these images say."""
    if score is joined:
        return Belief(mean=0.0, error=0.0)
    measured = Belief(
        mean=score.accuracy - joined.accuracy,
        error=situation.spread / math.sqrt(situation.images) if score.gain_error is None else score.gain_error,
    )
    kind = SELECTED if score.stage == SELECTED else "stage"
    depth = names.index(score.stage) / max(len(names) - 1, 1) if score.stage in names else 1.0
    return knowledge.expect(kind, situation, measured, depth=depth)


def _costs(evidence: Evidence, scores: list[ProbeScore]) -> dict[str, float]:
    """Stage -> seconds to fit it, from what probing all of them took: cost grows as N D min(N, D)."""
    images = evidence.data.train_images
    work = {score.stage: images * score.dim * min(images, score.dim) for score in scores}
    return {
        stage: evidence.seconds.get("probe", 0.0) * part / max(sum(work.values()), 1) for stage, part in work.items()
    }


def _percent(value: float) -> str:
    return f"{100 * _share(value):.1f} %"


def _named(stage: str) -> str:
    return {JOINED: "all stages joined", SELECTED: "the selected features of all stages"}.get(stage, f"stage {stage!r}")


def _reasons(evidence: Evidence, chosen: _Option, others: list[_Option]) -> list[str]:
    images, plain = evidence.data.train_images, chosen.alternative()
    said = [
        f"A linear classifier on {_named(plain.stage)} is expected to name {_percent(plain.expected_accuracy)} of new "
        f"images like these right (95 % interval {_percent(plain.low)} to {_percent(plain.high)}); held back from the "
        f"fit, {_percent(chosen.score.accuracy)} of the {images:,} training images are."
    ]
    if others:
        second = others[0]
        said.append(
            f"Next is {_named(second.score.stage)}, {_ahead(chosen, second)}: "
            f"expected {_percent(second.expected.mean)}, measured {_percent(second.score.accuracy)}."
        )
    top = next((option for option in others if option.score.stage == TOP), None)
    if top is not None and top is not others[0]:
        said.append(
            f"The backbone's top stage alone, the usual choice, is expected to reach {_percent(top.expected.mean)}, "
            f"{_behind(chosen, top)}."
        )
    said.append("Chosen among linear probes only: this version has no fine-tuning strategy to compare them with.")
    return said


def _points(one: _Option, other: _Option) -> float:
    """How many points one is expected to be ahead, as the percentages are printed."""
    ends = [round(100 * _share(option.expected.mean), 1) for option in (one, other)]
    return ends[0] - ends[1]


def _behind(chosen: _Option, other: _Option) -> str:
    points = _points(chosen, other)
    return f"{abs(points):.1f} points {'less' if points >= 0 else 'more'}"


def _ahead(chosen: _Option, other: _Option) -> str:
    gap = chosen.expected.mean - other.expected.mean
    # What the joined probe is worth moves both alike; left is the doubt about the gains, of which the larger counts.
    doubt = TWO_SIDED * max(chosen.score.gain_error or 0.0, other.score.gain_error or 0.0)
    certainty = "a clear lead" if abs(gap) > doubt else "within what chance can do"
    place = "behind" if gap >= 0 else "ahead but dearer"
    return f"{abs(_points(chosen, other)):.1f} points {place}, {certainty} at this number of images"


def _reasons_of_cost(chosen: _Option, options: list[_Option], among: list[_Option], budget: float | None) -> list[str]:
    said = []
    if budget is not None and chosen.cost > budget:
        said.append(f"No strategy fits the budget of {budget:g} s; this is the cheapest, at about {chosen.cost:.2g} s.")
    elif options[0] not in among:
        said.append(
            f"{_percent(options[0].expected.mean)} would be expected of {_named(options[0].score.stage)}; that takes "
            f"about {options[0].cost:.2g} s, and {budget:g} s are allowed."
        )
    elif chosen is not among[0]:
        said.append(f"It is taken for its cost: the best is no more than {100 * TIE:.1f} points ahead of it.")
    return said


def _reasons_of_rule(chosen: _Option, advice: Decision | None) -> list[str]:
    if advice is None:
        return []
    if advice.strategy != "linear_probe":
        return [
            f"The textbook rule would have said {advice.strategy}, which cannot be run yet; the measurements compare "
            "linear probes only."
        ]
    agrees = advice.stage == chosen.score.stage
    return [
        f"The textbook rule would have said linear_probe on {_named(advice.stage)}; "
        f"the measurements {'agree' if agrees else 'overrule it'}."
    ]
