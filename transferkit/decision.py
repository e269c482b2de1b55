"""Evidence -> Decision: arithmetic only, no network, no file.

Two ways. `mode="rule"` is the textbook matrix, a pure function of how much data there is and how near it is to what
the backbone has seen. `mode="evidence"` (the default) lets the measured leave-one-out accuracies speak and says what
the rule would have said.
"""

from __future__ import annotations

import math

from transferkit.errors import OptionError, unknown_name
from transferkit.types import JOINED, TOP, Alternative, Decision, Evidence, ProbeScore

__all__ = ["MODES", "NEEDS_SIMILARITY", "decide", "rule"]

MODES = ("evidence", "rule")

NEEDS_SIMILARITY = (
    "mode='rule' needs to know how near the data is to what the backbone was trained on. "
    "Pass similarity=S in [0, 1]: 0.8 for everyday photographs, 0.2 for scans or medical images."
)

PLENTY_IMAGES = 1000
"""From here on data counts as plenty, if classes are not thin: with fewer images fine-tuning lost to the probe on the
small tasks of our own measurements, and BiT-HyperRule trains for its shortest schedule."""

PLENTY_PER_CLASS = 50
"""Images per class below which data counts as little, however many there are in all."""

NEAR = 0.5
"""Similarity from which the target counts as like the source; the scale is calibrated so that 0.5 is the middle."""

ORIGINAL_LR = 0.1
"""Rate at which convolutional backbones are trained at batch 256 (He et al., CVPR 2016); taken where the zoo knows no
better."""

ORIGINAL_BATCH = 256
"""Batch size that ORIGINAL_LR goes with; rates scale in proportion (Goyal et al., 2017)."""

LR_SCALE = 0.1
"""Fine-tuning starts at a tenth of the original rate: the weights are good already and must not be distorted."""

DEFAULT_BATCH = 32

SMALL_BATCH = 16
"""Below this, batch statistics are too noisy to train with (GroupNorm paper: 24.1 -> 24.8 % error at 8, 34.7 at 2)."""


def rule(
    *, images: int, per_class: float, similarity: float, stages: tuple[str, ...], batch_size: int = DEFAULT_BATCH
) -> Decision:
    """The textbook matrix: what to do from the amount of data and its nearness to the source alone.

    Args:
        images: N training images, >= 1.
        per_class: Mean images per class, > 0.
        similarity: In [0, 1]; 1 is just like what the backbone was trained on.
        stages: Stage names, stem -> head.
        batch_size: Per device, for the rate and the normalisation.

    Returns:
        little + near -> `linear_probe` on the top stage; little + far -> `linear_probe` on an earlier one, the
        earlier the farther, never below the middle; plenty + near -> `few_layers`; plenty + far -> `many_layers`.

    Raises:
        OptionError: If an argument is out of its range.

    Example:
        >>> rule(images=150, per_class=15, similarity=0.9, stages=("stem", "a", "b", "top")).stage
        'top'
        >>> rule(images=150, per_class=15, similarity=0.1, stages=("stem", "a", "b", "top")).stage
        'a'
        >>> rule(images=50_000, per_class=500, similarity=0.1, stages=("stem", "top")).strategy
        'many_layers'
    """
    if images < 1 or not per_class > 0:
        raise OptionError(f"images must be >= 1 and per_class > 0, got {images!r} and {per_class!r}.")
    if not 0 <= similarity <= 1:
        raise OptionError(f"similarity must be in [0, 1], got {similarity!r}.")
    plenty = images >= PLENTY_IMAGES and per_class >= PLENTY_PER_CLASS
    near = similarity >= NEAR
    amount = (
        f"{images:,} training images, {per_class:.0f} per class, count as {'plenty' if plenty else 'little'} "
        f"(plenty is {PLENTY_IMAGES:,} and {PLENTY_PER_CLASS} per class)."
    )
    nearness = f"Similarity {similarity:.2f} counts as {'near' if near else 'far'} (near is {NEAR} or more)."
    if not plenty:
        stage = TOP if near else _earlier_stage(stages, similarity)
        advice = f"Little data: train a linear classifier only, on stage {stage!r} of the frozen backbone."
        return Decision(
            strategy="linear_probe",
            stage=stage,
            lr=0.0,
            lr_scale=0.0,
            norm="frozen",
            mode="rule",
            reasons=(amount, nearness, advice),
        )
    lr = LR_SCALE * ORIGINAL_LR * batch_size / ORIGINAL_BATCH
    advice = (
        f"Plenty of data: fine-tune {'a few layers' if near else 'many layers'} at {LR_SCALE} of the backbone's "
        f"original rate, {lr:.2g} at batch {batch_size}."
    )
    return Decision(
        strategy="few_layers" if near else "many_layers",
        stage=TOP,
        lr=lr,
        lr_scale=LR_SCALE,
        norm="keep" if batch_size >= SMALL_BATCH else "frozen",
        mode="rule",
        reasons=(amount, nearness, advice),
    )


def _earlier_stage(stages: tuple[str, ...], similarity: float) -> str:
    """From the last stage before the top at similarity 0.5 down to the middle one at 0."""
    last = len(stages) - 1
    share = 0.5 + 0.5 * similarity / NEAR
    return stages[min(max(math.ceil(share * last) - 1, last // 2), max(last - 1, 0))]


def decide(evidence: Evidence, *, mode: str = "evidence", batch_size: int | None = None) -> Decision:
    """Which strategy to use, and why.

    Args:
        evidence: What the frozen pass measured.
        mode: "evidence" or "rule". The rule needs `evidence.similarity`.
        batch_size: Per device; None takes 32.

    Raises:
        OptionError: If the mode is unknown, or the rule lacks a similarity.
    """
    if mode not in MODES:
        raise OptionError(unknown_name("mode", mode, MODES))
    advice = _advice_of_rule(evidence, DEFAULT_BATCH if batch_size is None else batch_size)
    if mode == "evidence":
        return _by_evidence(evidence, advice)
    if advice is None:
        raise OptionError(NEEDS_SIMILARITY)
    return advice


def _advice_of_rule(evidence: Evidence, batch_size: int) -> Decision | None:
    if evidence.similarity is None:
        return None
    return rule(
        images=evidence.data.train_images,
        per_class=evidence.data.train_per_class,
        similarity=evidence.similarity,
        stages=tuple(stage.name for stage in evidence.backbone.stages),
        batch_size=batch_size,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _rank(score: ProbeScore) -> tuple[float, float]:
    return (-score.accuracy, score.squared_error if score.squared_error is not None else math.inf)


def _by_evidence(evidence: Evidence, advice: Decision | None) -> Decision:
    """The best probe by exact leave-one-out accuracy; ties go to the lower squared error."""
    ranked = sorted((score for score in evidence.probes if score.method == "ridge"), key=_rank)
    best = ranked[0]
    return Decision(
        strategy="linear_probe",
        stage=best.stage,
        lr=0.0,
        lr_scale=0.0,
        norm="frozen",
        mode="evidence",
        reasons=tuple(_reasons(evidence, ranked, advice)),
        alternatives=tuple(
            Alternative(
                strategy="linear_probe",
                stage=score.stage,
                expected_accuracy=score.accuracy,
                low=score.low,
                high=score.high,
                cost_seconds=evidence.seconds.get("probe", 0.0),
            )
            for score in ranked[1:]
        ),
    )


def _named(stage: str) -> str:
    return "all stages joined" if stage == JOINED else f"stage {stage!r}"


def _reasons(evidence: Evidence, ranked: list[ProbeScore], advice: Decision | None) -> list[str]:
    best, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    images = evidence.data.train_images
    said = [
        f"A linear classifier on {_named(best.stage)} names {_percent(best.accuracy)} of the {images:,} training "
        f"images right when each is left out in turn (95 % interval {_percent(best.low)} to {_percent(best.high)})."
    ]
    if runner_up is not None:
        gap = 100 * (best.accuracy - runner_up.accuracy)
        certainty = "a clear lead" if best.low > runner_up.accuracy else "within what chance can do"
        said.append(
            f"Next best is {_named(runner_up.stage)} with {_percent(runner_up.accuracy)}, {gap:.1f} points lower: "
            f"{certainty} at this number of images."
        )
    top = next((score for score in ranked if score.stage == TOP), None)
    if top is not None and best.stage != TOP:
        said.append(
            f"The backbone's top stage alone, the usual choice, reaches {_percent(top.accuracy)}, "
            f"{100 * (best.accuracy - top.accuracy):.1f} points less."
        )
    said.append(
        "Chosen among the linear probes by leave-one-out evidence alone: this version has no fine-tuning strategy to "
        "compare them with."
    )
    if advice is not None:
        agrees = advice.strategy == "linear_probe" and advice.stage == best.stage
        said.append(
            f"The textbook rule would have said {advice.strategy} on {_named(advice.stage)}; "
            f"the measurements {'agree' if agrees else 'overrule it'}."
        )
    return said
