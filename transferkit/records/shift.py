"""What a comparison of new images with a run's training images found: the shift, and what it does to accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferkit.core.serialization import to_json
from transferkit.records._checks import require, require_share

__all__ = [
    "AccuracyEstimate",
    "ClassShare",
    "RemedyTrial",
    "ShiftRecord",
    "StageShift",
    "UnfamiliarImage",
]

KINDS = ("none", "classes", "images")
"""No shift was found; only the class proportions differ; the images themselves look different."""


@dataclass(frozen=True, kw_only=True)
class StageShift:
    """Whether one stage of the source backbone tells training images from new ones.

    Args:
        stage: Its name; "predicted classes" for the classes that the model predicts.
        depth: Where it is, in [0, 1]: 0 the first stage, 1 the last and the predicted classes.
        effect: Energy distance as a share of its largest value, in [0, 1].
        expected: The same by chance, with as many images.
        p_value: Of this stage alone, in [0, 1].
        adjusted: Corrected for testing all stages, in [0, 1].
        matched: The corrected p-value once training images are drawn in the class proportions estimated for the new
            ones; None where that was not tested.
    """

    stage: str
    depth: float
    effect: float
    expected: float
    p_value: float
    adjusted: float
    matched: float | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "effect", "p_value", "adjusted"):
            require_share("StageShift", name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """Share of a class among training images, and its estimated share among the new ones.

    Args:
        name: Of the class.
        training, predicted, estimated: Shares in [0, 1]: of the training labels; of the predictions for new images;
            corrected for the model's mistakes.
    """

    name: str
    training: float
    predicted: float
    estimated: float

    def __post_init__(self) -> None:
        for name in ("training", "predicted", "estimated"):
            require_share("ClassShare", name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AccuracyEstimate:
    """Accuracy on the new images, estimated without their labels.

    Args:
        held_back: Accuracy on held-back training images, in [0, 1].
        accuracy: Estimated on the new ones, in [0, 1].
        low, high: 90 % interval, in [0, 1].
        how: The method, as a phrase.
        methods: Method -> its own estimate, in [0, 1], for comparison.
    """

    held_back: float
    accuracy: float
    low: float
    high: float
    how: str
    methods: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("held_back", "accuracy", "low", "high"):
            require_share("AccuracyEstimate", name, getattr(self, name))
        require(
            self.low <= self.accuracy <= self.high,
            f"AccuracyEstimate needs low <= accuracy <= high, got {self.low!r}, {self.accuracy!r}, {self.high!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class UnfamiliarImage:
    """A new image that is farther from all training images than these are from each other.

    Args:
        item: Its name.
        p_value: Chance that an image like those of training is as far, in [0, 1].
        label: The class that the model predicts.
        confidence: Its probability, in [0, 1].
    """

    item: str
    p_value: float
    label: str
    confidence: float

    def __post_init__(self) -> None:
        require_share("UnfamiliarImage", "p_value", self.p_value)


@dataclass(frozen=True, kw_only=True)
class RemedyTrial:
    """A remedy that was tried, and whether it was used.

    Args:
        name: Of the remedy.
        used: Whether its model is the one returned.
        reason: Why, or why not, in a sentence.
        accuracy: Estimated on the new images with it, in [0, 1]; None where it did not come to that.
        rehearsed: Gain of accuracy on held-back training images that were altered as the new ones seem to be, in
            [-1, 1]; None where it was not rehearsed.
        agreement: Share of the new images whose prediction it leaves as it was, in [0, 1].
    """

    name: str
    used: bool
    reason: str
    accuracy: float | None = None
    rehearsed: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class ShiftRecord:
    """How new images differ from a run's training images, and what that means.

    Args:
        model: Name of the backbone.
        reference, images: Number of training images compared, and of new ones.
        kind: "none", "classes" or "images".
        alpha: Largest adjusted p-value that counts as a difference, in (0, 1).
        stages: Tests, stem -> head, then of the predicted classes; empty where they could not be made.
        classes: Shares of the classes.
        estimate: Accuracy on the new images; None where no training image was held back.
        unfamiliar: Images unlike any training image, the strangest first.
        rejected_at: Share of images like those of training that is called unfamiliar by chance, in (0, 1).
        remedies: What was tried.
        notes: What could not be measured, and why.
        failures: Images that could not be read, with the reason.
        seconds: Wall-clock time.
        command: How to do this again.
    """

    model: str
    reference: int
    images: int
    kind: str
    alpha: float
    stages: tuple[StageShift, ...]
    classes: tuple[ClassShare, ...]
    estimate: AccuracyEstimate | None
    unfamiliar: tuple[UnfamiliarImage, ...]
    rejected_at: float
    remedies: tuple[RemedyTrial, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    seconds: float = 0.0
    command: str = ""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"ShiftRecord.kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        for name in ("alpha", "rejected_at"):
            require_share("ShiftRecord", name, getattr(self, name))

    @property
    def seen_by(self) -> StageShift | None:
        """The stage that sees the shift most clearly; None if none does."""
        tested = [one for one in self.stages if one.adjusted <= self.alpha]
        return max(tested, key=lambda one: one.effect - one.expected, default=None)

    @property
    def remedy(self) -> RemedyTrial | None:
        """The remedy that was used; None if none was."""
        return next((trial for trial in self.remedies if trial.used), None)

    @property
    def sentences(self) -> list[str]:
        """The outcome, most important first."""
        said = [self._about_shift(), *self._about_classes()]
        if (found := self.estimate) is not None:
            said.append(
                f"Estimated accuracy on these images {_percent(found.accuracy)} ({_percent(found.low)} to "
                f"{_percent(found.high)}, 90 % interval; {found.how}), against {_percent(found.held_back)} on "
                "held-back training images."
            )
        chance = self.rejected_at * self.images
        said.append(
            f"{len(self.unfamiliar):,} of {self.images:,} images are unlike any training image; about {chance:.0f} "
            f"would be by chance (false rejection rate {_percent(self.rejected_at)})."
        )
        said += [f"Remedy {trial.name}: {trial.reason}" for trial in self.remedies]
        return [*said, *self.notes]

    def _about_shift(self) -> str:
        compared = f"{self.images:,} new images against {self.reference:,} training images"
        if not self.stages:
            return f"{compared}: not tested."
        least = min(one.adjusted for one in self.stages)
        if self.kind == "none":
            return f"{compared}: no shift found (smallest adjusted p-value {least:.3f})."
        seen = self.seen_by
        assert seen is not None
        where = f"{seen.stage!r} (effect {seen.effect:.2f}, {seen.expected:.2f} by chance; p {seen.adjusted:.3f})"
        if self.kind == "classes":
            return (
                f"{compared}: the class proportions differ; within classes no difference was found. Most visible in "
                f"{where}."
            )
        return f"{compared}: the images look different, most at {where}: {_WHERE[min(int(3 * seen.depth), 2)]}."

    def _about_classes(self) -> list[str]:
        if self.kind != "classes":
            return []
        moved = sorted(self.classes, key=lambda one: -abs(one.estimated - one.training))[:3]
        changes = ", ".join(f"{one.name} {_percent(one.training)} -> {_percent(one.estimated)}" for one in moved)
        return [f"Largest estimated changes of class shares: {changes}."]

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(to_json(self), indent=1, ensure_ascii=False)

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        plain: dict[str, Any] = to_json(self)
        return plain


_WHERE = (
    "early stages see noise, blur, contrast and colour",
    "middle stages see textures and parts",
    "late stages see content, and which classes there are",
)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
