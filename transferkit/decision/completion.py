"""Choice -> Decision: the rate and the normalisation that go with a strategy, here and nowhere else.

`complete` says all that can be known before anything is trained; `conclude` adds what only training can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from transferkit.core.errors import OptionError
from transferkit.core.limits import LAYER_DECAY
from transferkit.core.score_text import format_score
from transferkit.decision.effort import ALL_STAGES_FROM, PARTIAL, default_batch_size, trains_all_stages
from transferkit.decision.gains import GainModel, load_gain_model
from transferkit.decision.normalisation import SMALL_BATCH, choose_norm
from transferkit.decision.rates import starting_rate
from transferkit.records import JOINED, SELECTED, Alternative, Choice, Decision, Evidence

__all__ = ["Conditions", "HeldBack", "Normalisation", "complete", "conclude", "independent_share", "settle_norm"]

CLOSED_FORM = "linear_probe"
"""The strategy that is solved for: it has no rate, and its normalisation stays."""

KEPT = ("keep", "frozen")
"""Kinds of normalisation that leave the layers as they are."""

FITTED = {"group": "standardised_group"}
"""Kind of normalisation -> the kind that takes its place where there are images to fit it to."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The requested training conditions, as far as a decision depends on them.

    Args:
        batch_size: Images per optimizer step, of all processes together, >= 1; None fits it to their number.
        optimizer: "adamw" or "sgd".
        lr: Learning rate of the last stage that was asked for, > 0; None takes a share of the backbone's own.
        lr_scale: That share, > 0; None takes the rule's tenth.
        layer_decay: Rate of each stage relative to the one above it, in (0, 1].
        norm: "auto", or what was asked for.
        processes: That train together, >= 1.
        on_gpus: Whether they do so on GPUs.
        needs_several: Whether that kind trains on the statistics of the images at hand, of which one tells too little.
        relative: A published backbone like this one that was trained with group normalisation, to be named where
            batches are small; "" if there is none.
    """

    batch_size: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    lr_scale: float | None = None
    layer_decay: float = LAYER_DECAY
    norm: str = "auto"
    processes: int = 1
    on_gpus: bool = False
    needs_several: bool = False
    relative: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr", "lr_scale", "processes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name} must be > 0, got {value!r}.")

    def step(self, images: int) -> int:
        """Images per optimizer step, of so many training images."""
        return max(1, min(self.batch_size or default_batch_size(images), images))

    def at_once(self, images: int) -> int:
        """Images that one process sees at once."""
        return max(1, self.step(images) // self.processes)


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """How the fitted model did on images that were held back from it.

    Args:
        accuracy: Of what is returned, in [0, 1]; None if no image could be held back.
        images: How many they were.
        is_network: Whether a fine-tuned network was chosen on them, by its epochs, rate and blend; else a head.
        seconds: That fitting took.
        interval: 95 % interval of the score of labels or numbers, which `accuracy` then is; None for an accuracy.
    """

    accuracy: float | None
    images: int
    is_network: bool
    seconds: float = 0.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How a network is normalised while it is fine-tuned.

    Args:
        kind: "keep", "frozen", or a kind that batch normalisation is swapped for.
        reasons: Why.
    """

    kind: str
    reasons: tuple[str, ...]


def settle_norm(evidence: Evidence, conditions: Conditions) -> Normalisation:
    """Batch normalisation kept, frozen or swapped under these conditions.

    Raises:
        OptionError: If what was asked for cannot train under them.
    """
    spec, asked = evidence.backbone, conditions.norm
    at_once = conditions.at_once(evidence.data.train_images)
    normalises_batches = spec.batch_norm is not False
    if asked != "auto":
        if (asked == "keep" or conditions.needs_several) and normalises_batches and at_once == 1:
            raise OptionError(
                f"norm={asked} normalises by the statistics of the images at hand, and a single image has no spread. "
                "Use norm=frozen, norm=group, or a larger train.batch_size."
            )
        if asked == "sync" and conditions.processes > 1 and not conditions.on_gpus:
            raise OptionError(
                "norm=sync shares the statistics of a batch among processes on GPUs only. Use norm=frozen or "
                "norm=group."
            )
        return Normalisation(kind=FITTED.get(asked, asked), reasons=(f"norm={asked} was requested.",))
    if spec.norm:
        return Normalisation(kind=spec.norm, reasons=(f"Batch normalisation was swapped for {spec.norm!r} before.",))
    kind, why = choose_norm(
        pretrained=spec.pretrained,
        normalises_batches=normalises_batches,
        at_once=at_once,
        processes=conditions.processes,
        on_gpus=conditions.on_gpus,
    )
    kind = FITTED.get(kind, kind)
    if conditions.relative and normalises_batches and at_once < SMALL_BATCH:
        why = (
            f"{why} {conditions.relative} is a relative that was trained with group normalisation, which works at any "
            "batch size: transferkit rank measures whether its features suit these images better."
        )
    return Normalisation(kind=kind, reasons=(why,))


def complete(
    choice: Choice, evidence: Evidence, conditions: Conditions | None = None, norm: Normalisation | None = None
) -> Decision:
    """The choice with the learning rate that it starts at and its normalisation.

    Args:
        choice: What was chosen, or asked for.
        evidence: What the frozen pass measured.
        conditions: The requested training conditions; None takes the defaults.
        norm: The normalisation found by trying; None takes that of `settle_norm`.

    Raises:
        OptionError: If the normalisation that was asked for cannot train under these conditions.
    """
    conditions = Conditions() if conditions is None else conditions
    chosen = {field.name: getattr(choice, field.name) for field in fields(Choice)}
    if evidence.views is not None:
        chosen["reasons"] = (*choice.reasons, *evidence.views.reasons)
    if choice.strategy == CLOSED_FORM:
        return Decision(**chosen, lr=0.0, lr_scale=0.0, norm="frozen")
    lr, scale, why_lr = _rate(evidence, conditions)
    norm = norm or settle_norm(evidence, conditions)
    why_all = _why_all_stages(evidence, norm) if choice.strategy == PARTIAL and not choice.tuned else ""
    if why_all:
        chosen["tuned"] = _stages_up_to(choice.stage, evidence)
    chosen["reasons"] = (*chosen["reasons"], *([why_all] if why_all else []), why_lr, *norm.reasons)
    return Decision(**chosen, lr=lr, lr_scale=scale, norm=norm.kind, layer_decay=conditions.layer_decay)


def _why_all_stages(evidence: Evidence, norm: Normalisation) -> str:
    """Why the strategy that leaves the first stages frozen trains them too; "" if it does not."""
    if evidence.backbone.norm or norm.kind not in KEPT:
        return "All stages are trained, because batch normalisation was swapped in the first ones too."
    if trains_all_stages(PARTIAL, evidence.data.train_images):
        return f"All stages are trained: from {ALL_STAGES_FROM} images on, that is more accurate."
    return ""


def _stages_up_to(stage: str, evidence: Evidence) -> tuple[str, ...]:
    """Stem -> the head's last input."""
    names = tuple(known.name for known in evidence.backbone.stages)
    return names[: names.index(stage) + 1] if stage in names else names


def _rate(evidence: Evidence, conditions: Conditions) -> tuple[float, float, str]:
    """The learning rate of the last stage, the same as a share of the original one, and why."""
    start = starting_rate(
        evidence.backbone,
        optimizer=conditions.optimizer,
        batch_size=conditions.step(evidence.data.train_images),
        scale=conditions.lr_scale,
    )
    if conditions.lr is None:
        return start.lr, start.scale, start.why
    why = f"The learning rate of the last stage, {conditions.lr:.2g}, was requested."
    return float(conditions.lr), start.scale * conditions.lr / start.lr, why


def conclude(
    decision: Decision,
    evidence: Evidence,
    held_back: HeldBack,
    *,
    lr_factor: float = 1.0,
    reasons: Sequence[str] = (),
    knowledge: GainModel | None = None,
) -> Decision:
    """The decision once it was carried out: at the rates it ended with, promising what held-back images say.

    Args:
        decision: As `complete` made it.
        evidence: What the frozen pass measured.
        held_back: How the fitted model did.
        lr_factor: What the rates were multiplied by, as trials or a range test advised, > 0.
        reasons: Sentences with the held-back numbers.
        knowledge: What earlier tasks taught; None takes what ships with the package.
    """
    raised = (
        [f"By what was tried first, training went on at {lr_factor:.3g} times that rate."] if lr_factor != 1 else []
    )
    known = load_gain_model() if knowledge is None else knowledge
    promised = _promise(decision, evidence, held_back, known)
    return replace(
        decision,
        lr=lr_factor * decision.lr,
        lr_scale=lr_factor * decision.lr_scale,
        reasons=(*decision.reasons, *raised, *reasons, _promise_in_words(decision, promised, held_back)),
        expected=promised,
        expected_before=decision.expected,
        held_back=held_back.images if promised is not None else 0,
    )


def _promise(decision: Decision, evidence: Evidence, held_back: HeldBack, knowledge: GainModel) -> Alternative | None:
    if held_back.accuracy is None or not held_back.images:
        return None
    if evidence.data.task != "single_label":
        return _promise_target(decision, evidence, held_back, held_back.accuracy)
    read = decision.stage if decision.stage in (JOINED, SELECTED) else "stage"
    independent = independent_share(evidence)
    belief = knowledge.calibrated(
        "network" if held_back.is_network else read,
        accuracy=held_back.accuracy,
        images=max(independent * held_back.images, 1.0),
        per_class=independent * evidence.data.train_per_class,
    )
    return belief.alternative(decision.strategy, decision.stage, cost_seconds=held_back.seconds)


def _promise_target(decision: Decision, evidence: Evidence, held_back: HeldBack, score: float) -> Alternative:
    """What was measured: no earlier task tells how much choices flatter it."""
    low, high = held_back.interval or (score, score)
    return Alternative(
        strategy=decision.strategy,
        stage=decision.stage,
        expected_accuracy=score,
        low=low,
        high=high,
        cost_seconds=held_back.seconds,
        measure=evidence.data.measure,
    )


def independent_share(evidence: Evidence) -> float:
    """Independent images that the training images are worth, as a share of them, in (0, 1]: groups may be alike."""
    worth = next((score.images for score in evidence.probes if score.stage == JOINED), 0.0)
    return min(1.0, worth / max(evidence.data.train_images, 1)) if worth > 0 else 1.0


def _promise_in_words(decision: Decision, promised: Alternative | None, held_back: HeldBack) -> str:
    if promised is None:
        return "Expected accuracy on new images: unknown, because no image could be held back to measure it."
    before = decision.expected
    if promised.measure != "accuracy":
        low, high = (format_score(one, promised.measure) for one in (promised.low, promised.high))
        return (
            f"Expected {promised.measure} on new images like these: "
            f"{format_score(promised.expected_accuracy, promised.measure)} (95 % interval {low} to {high}), from "
            f"{held_back.images:,} held-back images."
        )
    revised = "" if before is None else f"; before fitting it was {100 * before.expected_accuracy:.1f} %"
    return (
        f"Expected accuracy on new images like these: {100 * promised.expected_accuracy:.1f} % (95 % interval "
        f"{100 * promised.low:.1f} to {100 * promised.high:.1f} %), from {held_back.images:,} held-back images, "
        f"corrected for choices made on them{revised}."
    )
