"""The choice by evidence: expected accuracy, its uncertainty and cost of every strategy; the best is chosen.

Accuracy comes first. Among linear probes with expected accuracies within `TIE` of the best, the cheapest is chosen.
Fine-tuning, which takes minutes instead of seconds, must have an expected gain of `WORTH`. A budget in seconds excludes
options that cost more; budget="auto" chooses the knee of expected accuracy against the logarithm of the seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from transferkit.core.intervals import TWO_SIDED
from transferkit.decision.belief import Belief, update
from transferkit.decision.effort import (
    default_epochs,
    default_folds,
    default_passes,
    refits,
    training_seconds,
    trains_all_stages,
)
from transferkit.decision.gains import GainModel, Situation, load_gain_model
from transferkit.records import JOINED, SELECTED, TOP, Alternative, Choice, Evidence, ProbeScore

__all__ = [
    "START_SECONDS",
    "STEP_COST",
    "TUNED_SHARES",
    "WORTH",
    "best_probe",
    "can_tune",
    "name_representation",
    "probe_costs",
    "tuning_cost",
    "weigh",
]

TIE = 0.001
"""Difference in accuracy that is not worth extra time: one image in a thousand."""


WORTH = 0.005
"""Expected gain over the best probe, half a point, from which on fine-tuning is worth its time."""

WORTH_DOUBLING = 0.01
"""Expected gain, one point, that is worth twice the time with budget="auto"."""

START_SECONDS = 5.0
"""Before the first image is read: imports and the network's weights."""

STEP_COST = 3.7
"""Cost of an image in training, forward and backward, relative to the frozen pass: 73 seconds on 150 hand
signs with all stages trained (Lite0, 96 px, 2 cores), all folds and epochs, over 1.5 milliseconds per image."""

TUNED_SHARES = {"lp_ft": 0.5, "few_layers": 0.32}
"""Fine-tuning strategies considered -> cost of an epoch relative to training the full network: with the first stages
frozen and their activations cached, only the rest runs (Lite0 at 96 px: scripts/bench_regret.py score for
`few_layers`, timed steps for `lp_ft`). They count only where no training step could be timed. Other strategies are used
only on request."""


@dataclass(frozen=True)
class _Option:
    """One strategy with expected accuracy and cost. `score` is a probe's; fine-tuning has none."""

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
    budget: float | str | None = None,
    knowledge: GainModel | None = None,
    trials: Mapping[str, Belief] | None = None,
) -> Choice:
    """The strategy with the highest expected accuracy.

    Args:
        evidence: Measurements of the frozen pass.
        advice: The textbook rule's choice, for comparison.
        budget: Seconds that fitting may take; "auto" for the knee; None for no limit.
        knowledge: The gain model; None uses the one that ships with the package.
        trials: Fine-tuning strategy -> measured gain in held-back accuracy over the best probe.
    """
    known = load_gain_model() if knowledge is None else knowledge
    if _is_unknown(evidence):
        return _choose_unmeasured(advice)
    options = _options(evidence, known, trials or {})
    limit = math.inf if budget is None or isinstance(budget, str) else budget
    affordable = [option for option in options if option.cost <= limit]
    among = affordable or [min(options, key=lambda option: option.cost)]
    chosen = _choose_knee(among, evidence) if budget == "auto" else _choose(among)
    others = [option for option in options if option is not chosen]
    return Choice(
        strategy=chosen.strategy,
        stage=chosen.stage,
        mode="evidence",
        reasons=(
            *_reasons(evidence, chosen, others),
            *(
                _reasons_of_knee(chosen, others, evidence)
                if budget == "auto"
                else _reasons_of_cost(chosen, options, among, limit)
            ),
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
    """The choice if no image can be held back: the best on earlier tasks, without an expected accuracy."""
    return Choice(
        strategy="linear_probe",
        stage=JOINED,
        mode="evidence",
        reasons=(
            UNKNOWN,
            "A linear classifier on all stages joined is used: of the strategies that need no held-back images, it was "
            "best on earlier tasks.",
            *(() if advice is None else (f"The textbook rule would choose {_advised(advice)}.",)),
        ),
    )


def _choose(among: list[_Option]) -> _Option:
    """The best option, or a cheaper one with about the same expected accuracy."""
    probes = [option for option in among if option.is_probe]
    tuned = [option for option in among if not option.is_probe]
    probe = _cheapest_of_the_best(probes) if probes else None
    network = _cheapest_of_the_best(tuned) if tuned else None
    if probe is None or network is None:
        chosen = probe or network
        assert chosen is not None
        return chosen
    return network if network.expected.mean >= probe.expected.mean + WORTH else probe


def _choose_knee(among: list[_Option], evidence: Evidence) -> _Option:
    """The option with the highest expected accuracy, less `WORTH_DOUBLING` for each doubling of the whole time."""
    return max(among, key=lambda option: option.expected.mean - WORTH_DOUBLING * _doublings(option, evidence))


def _doublings(option: _Option, evidence: Evidence) -> float:
    """Of the time before it is fitted, until it is."""
    before = _seconds_before(evidence)
    return math.log2((before + option.cost) / before)


def _seconds_before(evidence: Evidence) -> float:
    """Seconds until fitting begins, if no features are in the bank: what is in it must not change the choice."""
    views = 1 if evidence.views is None else max(1, len(evidence.views.views))
    return START_SECONDS + (evidence.image_seconds or 0.0) * evidence.data.train_images * views


def _cheapest_of_the_best(options: list[_Option]) -> _Option:
    front = max(option.expected.mean for option in options)
    return min((option for option in options if option.expected.mean >= front - TIE), key=lambda option: option.cost)


def best_probe(evidence: Evidence, *, knowledge: GainModel | None = None) -> str:
    """The stage, "joined" or "selected" with the highest expected accuracy of a linear probe."""
    if _is_unknown(evidence):
        return JOINED
    options = _options(evidence, load_gain_model() if knowledge is None else knowledge, {})
    return next(option.stage for option in options if option.is_probe)


def _options(evidence: Evidence, knowledge: GainModel, trials: Mapping[str, Belief]) -> list[_Option]:
    """All measured probes and all fine-tuning strategies in the gain model, best first.

    Ties are sorted by squared error.
    """
    scores = [score for score in evidence.probes if score.method == "ridge" and score.accuracy is not None]
    # Every backbone has a joined probe; hand-made evidence may not.
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

    costs = probe_costs(evidence, scores)
    gains = [_gain(score, joined, names, situation, knowledge) for score in scores]
    options = [
        _Option("linear_probe", score.stage, expect(gain), costs[score.stage], score)
        for score, gain in zip(scores, gains, strict=True)
    ]
    probe = max((option.expected for option in options), key=lambda belief: belief.mean)
    for strategy in TUNED_SHARES:
        if strategy not in knowledge.coefficients or not can_tune(evidence):
            continue
        gain = knowledge.tuned_gain(strategy, situation, probe.mean)
        if strategy in trials:
            gain = update(gain, trials[strategy])
        expected = Belief(mean=probe.mean + gain.mean, error=math.hypot(probe.error, gain.error))
        options.append(_Option(strategy, TOP, expected, tuning_cost(evidence, strategy, tried=strategy in trials)))
    return sorted(options, key=_rank)


def can_tune(evidence: Evidence) -> bool:
    """Whether fine-tuning's cost is known, and an image of every class can be held back."""
    return evidence.image_seconds is not None and evidence.data.fewest_groups >= 2


def _rank(option: _Option) -> tuple[float, float]:
    error = None if option.score is None else option.score.squared_error
    return -option.expected.mean, math.inf if error is None else error


def tuning_cost(evidence: Evidence, strategy: str, *, tried: bool) -> float:
    """Seconds for the folds, unless run as a trial, and a refit to all images."""
    images = max(evidence.data.train_images, 1)
    passes = refits(default_folds(images)) + (0 if tried else default_passes(images))
    epochs = default_epochs(images)
    if strategy in evidence.step_seconds:
        return training_seconds(evidence.step_seconds[strategy], images=images, epochs=epochs, passes=passes)
    assert evidence.image_seconds is not None
    whole = trains_all_stages(strategy, evidence.data.train_images)
    return STEP_COST * (1.0 if whole else TUNED_SHARES[strategy]) * evidence.image_seconds * passes * epochs * images


def _gain(
    score: ProbeScore, joined: ProbeScore, names: list[str], situation: Situation, knowledge: GainModel
) -> Belief:
    """Expected gain over the joined probe: prior from earlier tasks, updated with the measurement."""
    if score is joined:
        return Belief(mean=0.0, error=0.0)
    measured = Belief(
        mean=score.interval[0] - joined.interval[0],
        error=situation.spread / math.sqrt(situation.images) if score.gain_error is None else score.gain_error,
    )
    kind = SELECTED if score.stage == SELECTED else "stage"
    depth = names.index(score.stage) / max(len(names) - 1, 1) if score.stage in names else 1.0
    return knowledge.expect(kind, situation, measured, depth=depth)


def probe_costs(evidence: Evidence, scores: list[ProbeScore]) -> dict[str, float]:
    """Stage -> seconds to fit it: the time of probing all, divided in proportion to N D min(N, D)."""
    images = evidence.data.train_images
    work = {score.stage: images * score.dim * min(images, score.dim) for score in scores}
    return {
        stage: evidence.seconds.get("probe", 0.0) * part / max(sum(work.values()), 1) for stage, part in work.items()
    }


def _percent(value: float) -> str:
    return f"{100 * _share(value):.1f} %"


def name_representation(stage: str) -> str:
    """What a head reads, in words."""
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
    reasons = [
        f"Linear classifier on {name_representation(chosen.stage)}: {_expectation(chosen, 'before it is fitted')}; "
        f"held-back accuracy {_percent(chosen.score.interval[0])} on the {evidence.data.train_images:,} training "
        "images."
    ]
    probes = [option for option in others if option.score is not None]
    if probes:
        second = probes[0]
        assert second.score is not None
        reasons.append(
            f"Second best is {name_representation(second.stage)}, {_ahead(chosen, second)}: "
            f"expected {_percent(second.expected.mean)}, measured {_percent(second.score.interval[0])}."
        )
    top = next((option for option in probes if option.stage == TOP), None)
    if top is not None and top is not probes[0]:
        reasons.append(
            f"The backbone's top stage alone, the default in most tools, has expected accuracy "
            f"{_percent(top.expected.mean)}, {_behind(chosen, top)}."
        )
    return reasons


def _reasons_of_tuning(chosen: _Option, others: list[_Option]) -> list[str]:
    reasons = [
        f"Fine-tuning ({chosen.strategy}): {_expectation(chosen, 'before training')}, by what it gained on earlier "
        f"tasks; it takes about {_duration(chosen.cost)}."
    ]
    probe = next((option for option in others if option.score is not None), None)
    if probe is not None and probe.score is not None:
        reasons.append(
            f"The best linear classifier, on {name_representation(probe.stage)}, has expected accuracy "
            f"{_percent(probe.expected.mean)} (measured {_percent(probe.score.interval[0])}), "
            f"{_behind(chosen, probe)}, in about {_duration(probe.cost)}."
        )
    return reasons


def _reasons_of_the_other_kind(evidence: Evidence, chosen: _Option, others: list[_Option]) -> list[str]:
    if chosen.score is None:
        return []
    tuned = [option for option in others if option.score is None]
    if not tuned:
        return [
            "Fine-tuning was not considered: its cost or gain is not known here."
            if evidence.data.fewest_groups >= 2
            else "Fine-tuning was not considered: it needs held-back images, and a class has fewer than 2."
        ]
    best = tuned[0]
    return [
        f"Fine-tuning ({best.strategy}) has expected accuracy {_percent(best.expected.mean)}, in about "
        f"{_duration(best.cost)}: a gain below {100 * WORTH:.1f} points, not worth the time."
        if best.expected.mean < chosen.expected.mean + WORTH
        else f"Fine-tuning ({best.strategy}) has expected accuracy {_percent(best.expected.mean)}, in about "
        f"{_duration(best.cost)}."
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _points(one: _Option, other: _Option) -> float:
    """Difference in expected accuracy in points, consistent with the rounded percentages."""
    ends = [round(100 * _share(option.expected.mean), 1) for option in (one, other)]
    return ends[0] - ends[1]


def _behind(chosen: _Option, other: _Option) -> str:
    points = _points(chosen, other)
    return f"{abs(points):.1f} points {'less' if points >= 0 else 'more'}"


def _ahead(chosen: _Option, other: _Option) -> str:
    gap = chosen.expected.mean - other.expected.mean
    # The joined probe's error affects both equally; what remains is the error of the gains, of which the larger counts.
    errors = [option.score.gain_error or 0.0 for option in (chosen, other) if option.score is not None]
    certainty = "a clear lead" if abs(gap) > TWO_SIDED * max(errors) else "within chance"
    position = "behind" if gap >= 0 else "ahead but more expensive"
    return f"{abs(_points(chosen, other)):.1f} points {position}, {certainty} at this number of images"


def _reasons_of_knee(chosen: _Option, others: list[_Option], evidence: Evidence) -> list[str]:
    better = [option for option in others if option.expected.mean > chosen.expected.mean + TIE]
    rule = (
        f"budget=auto: {100 * WORTH_DOUBLING:g} point of expected accuracy is worth twice the time, loading and the "
        "frozen pass included."
    )
    if not better:
        return [f"{rule} Nothing else has a higher expected accuracy."]
    best = max(better, key=lambda option: option.expected.mean)
    ratio = (_seconds_before(evidence) + best.cost) / (_seconds_before(evidence) + chosen.cost)
    return [
        f"{rule} {best.strategy} would gain {100 * (best.expected.mean - chosen.expected.mean):.1f} points for "
        f"{ratio:.2g} times the time."
    ]


def _reasons_of_cost(chosen: _Option, options: list[_Option], among: list[_Option], budget: float) -> list[str]:
    if chosen.cost > budget:
        return [f"No strategy fits the budget of {budget:g} s; this is the cheapest, at about {chosen.cost:.2g} s."]
    if options[0] not in among:
        best = options[0]
        what = name_representation(best.stage) if best.is_probe else f"fine-tuning ({best.strategy})"
        return [
            f"The best would be {what}, with expected accuracy {_percent(best.expected.mean)}, but it takes about "
            f"{_duration(best.cost)}, over the budget of {budget:g} s."
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
    return [f"The textbook rule would choose {_advised(advice)}; the measurements {verdict}."]


def _advised(advice: Choice) -> str:
    return (
        f"linear_probe on {name_representation(advice.stage)}" if advice.strategy == "linear_probe" else advice.strategy
    )
