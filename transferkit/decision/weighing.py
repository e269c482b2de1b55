"""The choice by evidence: an expected accuracy, its uncertainty and a cost for every strategy; the best is taken.

Accuracy comes first. Among linear probes whose expected accuracies are within `TIE` of the best, the cheapest is taken.
Fine-tuning, which takes minutes where a probe takes seconds, must be expected to gain `WORTH`. A budget strikes out
what costs more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from transferkit.core.intervals import TWO_SIDED
from transferkit.decision.belief import Belief, update
from transferkit.decision.effort import default_epochs, default_passes
from transferkit.decision.gains import GainModel, Situation, load_gain_model
from transferkit.records import JOINED, SELECTED, TOP, Alternative, Choice, Evidence, ProbeScore

__all__ = ["best_probe", "weigh"]

TIE = 0.001
"""A tenth of a point is worth no waiting: it is one image in a thousand."""


WORTH = 0.005
"""Half a point: what fine-tuning must be expected to gain over the best probe to be worth its time."""

STEP_COST = 3.7
"""What an image costs in training, forward and back, in times of what it costs in the frozen pass: 73 seconds of
`lp_ft` on 150 hand signs (Lite0, 96 px, 2 cores), all its folds and epochs, over 1.5 milliseconds an image."""

TUNED_SHARES = {"lp_ft": 1.0, "few_layers": 0.32}
"""Fine-tuning strategies that are weighed -> cost of an epoch, as a share of one of the whole network: with the first
stages frozen and their activations cached, the rest is what is left (scripts/bench_regret.py score; Lite0 at 96 px).
Others are done when asked for."""


@dataclass(frozen=True)
class _Option:
    """One strategy: what to expect of it, and what it takes. `score` is that of a probe; fine-tuning has none."""

    strategy: str
    stage: str
    expected: Belief
    cost: float
    score: ProbeScore | None = None

    @property
    def is_probe(self) -> bool:
        return self.score is not None

    def alternative(self) -> Alternative:
        return self.expected.alternative(self.strategy, self.stage, cost_seconds=self.cost)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def weigh(
    evidence: Evidence,
    *,
    advice: Choice | None = None,
    budget: float | None = None,
    knowledge: GainModel | None = None,
    trials: Mapping[str, Belief] | None = None,
) -> Choice:
    """The strategy with the highest expected accuracy.

    Args:
        evidence: What the frozen pass measured.
        advice: What the textbook rule says, to be compared with.
        budget: Seconds that fitting may take; None sets no limit.
        knowledge: What earlier tasks taught; None takes what ships with the package.
        trials: Way of fine-tuning -> accuracy that it was measured to gain over the best probe, on held-back images.
    """
    known = load_gain_model() if knowledge is None else knowledge
    if _is_unknown(evidence):
        return _choose_unmeasured(advice)
    options = _options(evidence, known, trials or {})
    affordable = [option for option in options if budget is None or option.cost <= budget]
    among = affordable or [min(options, key=lambda option: option.cost)]
    chosen = _choose(among)
    others = [option for option in options if option is not chosen]
    return Choice(
        strategy=chosen.strategy,
        stage=chosen.stage,
        mode="evidence",
        reasons=(
            *_reasons(evidence, chosen, others),
            *_reasons_of_cost(chosen, options, among, budget),
            *_reasons_of_rule(chosen, advice),
        ),
        expected=chosen.alternative(),
        alternatives=tuple(option.alternative() for option in others),
    )


UNKNOWN = (
    "Accuracy is unknown: every class has one training image, or one group of images, so that none can be held back. "
    "Add images of another group to each class."
)


def _is_unknown(evidence: Evidence) -> bool:
    return all(score.accuracy is None for score in evidence.probes)


def _choose_unmeasured(advice: Choice | None) -> Choice:
    """Where no image can be held back: what did best on earlier tasks, with no promise."""
    return Choice(
        strategy="linear_probe",
        stage=JOINED,
        mode="evidence",
        reasons=(
            UNKNOWN,
            "A linear classifier on all stages joined is taken: of what needs no held-back images it did best on "
            "earlier tasks.",
            *(() if advice is None else (f"The textbook rule would have said {_advised(advice)}.",)),
        ),
    )


def _choose(among: list[_Option]) -> _Option:
    """The best, or a cheaper one that is expected to be as good."""
    probes = [option for option in among if option.is_probe]
    tuned = [option for option in among if not option.is_probe]
    probe = _cheapest_of_the_best(probes) if probes else None
    network = _cheapest_of_the_best(tuned) if tuned else None
    if probe is None or network is None:
        chosen = probe or network
        assert chosen is not None
        return chosen
    return network if network.expected.mean >= probe.expected.mean + WORTH else probe


def _cheapest_of_the_best(options: list[_Option]) -> _Option:
    front = max(option.expected.mean for option in options)
    return min((option for option in options if option.expected.mean >= front - TIE), key=lambda option: option.cost)


def best_probe(evidence: Evidence, *, knowledge: GainModel | None = None) -> str:
    """The stage, "joined" or "selected" that a linear probe is expected to do best on."""
    if _is_unknown(evidence):
        return JOINED
    options = _options(evidence, load_gain_model() if knowledge is None else knowledge, {})
    return next(option.stage for option in options if option.is_probe)


def _options(evidence: Evidence, knowledge: GainModel, trials: Mapping[str, Belief]) -> list[_Option]:
    """Every probe that was measured and every way of fine-tuning that is known of, best first.

    Equal probes are in the order of their squared error.
    """
    scores = [score for score in evidence.probes if score.method == "ridge" and score.accuracy is not None]
    # Any backbone has a joined probe; evidence put together by hand need not.
    joined = next((score for score in scores if score.stage == JOINED), max(scores, key=lambda s: s.interval[0]))
    situation = Situation(
        images=max(evidence.data.train_images, 1),
        classes=evidence.data.num_classes,
        accuracy=joined.interval[0],
        similarity=evidence.similarity,
    )
    names = [stage.name for stage in evidence.backbone.stages]
    base = knowledge.base(situation, worth=joined.images or situation.images)

    def expect(gain: Belief) -> Belief:
        return Belief(mean=base.mean + gain.mean, error=math.hypot(base.error, gain.error))

    costs = _costs(evidence, scores)
    gains = [_gain(score, joined, names, situation, knowledge) for score in scores]
    options = [
        _Option("linear_probe", score.stage, expect(gain), costs[score.stage], score)
        for score, gain in zip(scores, gains, strict=True)
    ]
    probe = max((option.expected for option in options), key=lambda belief: belief.mean)
    for strategy, share in TUNED_SHARES.items():
        if strategy not in knowledge.coefficients or not _can_tune(evidence):
            continue
        gain = knowledge.tuned_gain(strategy, situation, probe.mean)
        if strategy in trials:
            gain = update(gain, trials[strategy])
        expected = Belief(mean=probe.mean + gain.mean, error=math.hypot(probe.error, gain.error))
        options.append(_Option(strategy, TOP, expected, _tuning_cost(evidence, share, tried=strategy in trials)))
    return sorted(options, key=_rank)


def _can_tune(evidence: Evidence) -> bool:
    """Whether its cost is known, and an image of every class can be held back."""
    return evidence.image_seconds is not None and evidence.data.fewest_groups >= 2


def _rank(option: _Option) -> tuple[float, float]:
    error = None if option.score is None else option.score.squared_error
    return -option.expected.mean, math.inf if error is None else error


def _tuning_cost(evidence: Evidence, share: float, *, tried: bool) -> float:
    """Seconds: folds, unless they were run as a trial, then all images, epoch by epoch, at the frozen pass's pace."""
    assert evidence.image_seconds is not None
    images = max(evidence.data.train_images, 1)
    passes = 1 + (0 if tried else default_passes(images))
    return STEP_COST * share * passes * default_epochs(images) * images * evidence.image_seconds


def _gain(
    score: ProbeScore, joined: ProbeScore, names: list[str], situation: Situation, knowledge: GainModel
) -> Belief:
    """Accuracy beyond the joined probe's: what earlier tasks say, corrected by what these images say."""
    if score is joined:
        return Belief(mean=0.0, error=0.0)
    measured = Belief(
        mean=score.interval[0] - joined.interval[0],
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
    return [
        *(_reasons_of_probe(evidence, chosen, others) if chosen.score else _reasons_of_tuning(chosen, others)),
        *_reasons_of_the_other_kind(evidence, chosen, others),
    ]


def _expectation(option: _Option, when: str) -> str:
    plain = option.alternative()
    return (
        f"expected accuracy {_percent(plain.expected_accuracy)} on new images like these, {when} (95 % interval "
        f"{_percent(plain.low)} to {_percent(plain.high)})"
    )


def _reasons_of_probe(evidence: Evidence, chosen: _Option, others: list[_Option]) -> list[str]:
    assert chosen.score is not None
    said = [
        f"Linear classifier on {_named(chosen.stage)}: {_expectation(chosen, 'before it is fitted')}; held-back "
        f"accuracy {_percent(chosen.score.interval[0])} on the {evidence.data.train_images:,} training images."
    ]
    probes = [option for option in others if option.score is not None]
    if probes:
        second = probes[0]
        assert second.score is not None
        said.append(
            f"Next is {_named(second.stage)}, {_ahead(chosen, second)}: "
            f"expected {_percent(second.expected.mean)}, measured {_percent(second.score.interval[0])}."
        )
    top = next((option for option in probes if option.stage == TOP), None)
    if top is not None and top is not probes[0]:
        said.append(
            f"The backbone's top stage alone, the usual choice, is expected to reach {_percent(top.expected.mean)}, "
            f"{_behind(chosen, top)}."
        )
    return said


def _reasons_of_tuning(chosen: _Option, others: list[_Option]) -> list[str]:
    said = [
        f"Fine-tuning ({chosen.strategy}): {_expectation(chosen, 'before training')}, by what it gained on earlier "
        f"tasks; it takes about {_duration(chosen.cost)}."
    ]
    probe = next((option for option in others if option.score is not None), None)
    if probe is not None and probe.score is not None:
        said.append(
            f"The best linear classifier, on {_named(probe.stage)}, is expected to reach "
            f"{_percent(probe.expected.mean)} (measured {_percent(probe.score.interval[0])}), "
            f"{_behind(chosen, probe)}, in about {_duration(probe.cost)}."
        )
    return said


def _reasons_of_the_other_kind(evidence: Evidence, chosen: _Option, others: list[_Option]) -> list[str]:
    if chosen.score is None:
        return []
    tuned = [option for option in others if option.score is None]
    if not tuned:
        return [
            "Fine-tuning was not weighed: what it costs here, or gains, is not known."
            if evidence.data.fewest_groups >= 2
            else "Fine-tuning was not weighed: it holds images back, and a class has fewer than 2."
        ]
    best = tuned[0]
    return [
        f"Fine-tuning ({best.strategy}) is expected to reach {_percent(best.expected.mean)} in about "
        f"{_duration(best.cost)}, not {100 * WORTH:.1f} points more, and so not worth it."
        if best.expected.mean < chosen.expected.mean + WORTH
        else f"Fine-tuning ({best.strategy}) is expected to reach {_percent(best.expected.mean)}, in about "
        f"{_duration(best.cost)}."
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


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
    errors = [option.score.gain_error or 0.0 for option in (chosen, other) if option.score is not None]
    certainty = "a clear lead" if abs(gap) > TWO_SIDED * max(errors) else "within what chance can do"
    place = "behind" if gap >= 0 else "ahead but dearer"
    return f"{abs(_points(chosen, other)):.1f} points {place}, {certainty} at this number of images"


def _reasons_of_cost(chosen: _Option, options: list[_Option], among: list[_Option], budget: float | None) -> list[str]:
    if budget is not None and chosen.cost > budget:
        return [f"No strategy fits the budget of {budget:g} s; this is the cheapest, at about {chosen.cost:.2g} s."]
    if options[0] not in among:
        best = options[0]
        what = _named(best.stage) if best.is_probe else f"fine-tuning ({best.strategy})"
        return [
            f"{_percent(best.expected.mean)} would be expected of {what}; that takes about {_duration(best.cost)}, and "
            f"{budget:g} s are allowed."
        ]
    same = [option for option in among if option.is_probe == chosen.is_probe]
    if chosen.expected.mean < max(option.expected.mean for option in same):
        return [f"Chosen because it is the cheapest: the best is no more than {100 * TIE:.1f} points ahead of it."]
    return []


def _reasons_of_rule(chosen: _Option, advice: Choice | None) -> list[str]:
    if advice is None:
        return []
    agrees = (advice.strategy, advice.stage) == (chosen.strategy, chosen.stage)
    verdict = "agree" if agrees else "overrule it"
    return [f"The textbook rule would have said {_advised(advice)}; the measurements {verdict}."]


def _advised(advice: Choice) -> str:
    return f"linear_probe on {_named(advice.stage)}" if advice.strategy == "linear_probe" else advice.strategy
