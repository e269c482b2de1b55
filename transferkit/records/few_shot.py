"""What a few labelled images per class are worth, measured over many small tasks; and a class that was added later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transferkit.records._checks import require, require_share
from transferkit.records.data import DataSummary

__all__ = ["AddedClass", "FewShotRecord", "FewShotScore"]


@dataclass(frozen=True, kw_only=True)
class FewShotScore:
    """Accuracy of one method over all episodes.

    Args:
        method: Its registered name.
        sentence: What it is.
        accuracy: Mean over the episodes, in [0, 1].
        low, high: 95 % interval of the mean: other episodes of the same images.
        gain: Over the last layer's nearest class mean, mean over the same episodes, in [-1, 1].
        gain_low, gain_high: Its 95 % interval.
        seconds: Per episode, wall-clock, features excluded.
        transductive: Whether it sees the queries of an episode together.
    """

    method: str
    sentence: str
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    seconds: float
    transductive: bool = False

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high"):
            require_share("FewShotScore", name, getattr(self, name))
        require(math.isfinite(self.seconds) and self.seconds >= 0, "FewShotScore.seconds must be finite and >= 0.")


@dataclass(frozen=True, kw_only=True)
class FewShotRecord:
    """Few-shot accuracy of a frozen backbone on images, the methods in the order asked for.

    Args:
        backbone: Its name.
        data: The images.
        scores: One per method.
        ways, shots, queries, episodes: As asked for.
        imbalance: Dirichlet parameter of the queries' classes; None: the same number of each.
        prior: Names of the images whose spread the features are whitened by; empty: none.
        images: That episodes are drawn from.
        views: Geometries whose features are averaged.
        seed: Of the episodes.
        seconds: Phase -> wall-clock seconds.
        command: What reproduces it.
    """

    backbone: str
    data: DataSummary
    scores: tuple[FewShotScore, ...]
    ways: int
    shots: int
    queries: int
    episodes: int
    imbalance: float | None = None
    prior: tuple[str, ...] = ()
    images: int
    views: tuple[str, ...] = ()
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        require(bool(self.scores), "FewShotRecord.scores needs at least one method.")

    def score(self, method: str) -> FewShotScore:
        """The score of one method."""
        for one in self.scores:
            if one.method == method:
                return one
        raise KeyError(f"No method {method!r} here. Known: {', '.join(one.method for one in self.scores)}.")

    @property
    def best(self) -> FewShotScore:
        """The most accurate method. Its lead may be luck: see the intervals."""
        return max(self.scores, key=lambda one: one.accuracy)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was measured, and how to read it."""
        each = (
            f"{self.queries} queries of each"
            if self.imbalance is None
            else f"{self.ways * self.queries} queries, class shares from a Dirichlet with parameter {self.imbalance:g}"
        )
        taught = (
            f"Features are whitened by the spread within classes of {', '.join(self.prior)}."
            if self.prior
            else "Features are not whitened: prior= names other labelled images that teach which differences do not "
            "matter."
        )
        return (
            f"{self.episodes:,} episodes of {self.ways} classes with {self.shots} "
            f"shot{'s' if self.shots != 1 else ''} of each and {each}; chance is {100 / self.ways:.1f} %.",
            taught,
            "Intervals cover other episodes of these images, not other images. Methods answer the same episodes.",
        )

    def __str__(self) -> str:
        rows = [
            f"{one.method:<16} {100 * one.accuracy:5.1f} %  {100 * one.low:5.1f} to {100 * one.high:5.1f}  "
            f"{100 * one.gain:+5.1f}  {one.sentence}{', sees the queries together' if one.transductive else ''}"
            for one in self.scores
        ]
        return "\n".join([f"{self.backbone} on {self.data.origin}", *rows, *self.sentences])


@dataclass(frozen=True, kw_only=True)
class AddedClass:
    """A class that a finished run's model learnt later, without training.

    Args:
        name: Of the class.
        images: It was learnt from.
        old_images: Images of the other classes behind it.
        source: "train", the run's own training images; or "given".
        expected_recall: Share of the class's images that are expected to be recognised, as those of other classes were
            that were pretended to be new, in [0, 1].
        held_back: Whether the accuracies are of images that the classifier was not fitted to.
        before, after: Accuracy on the old classes without and with the new one, on the old images, in [0, 1].
        lost: Share of the old classes' images that are taken for the new class, in [0, 1].
    """

    name: str
    images: int
    old_images: int
    source: str
    expected_recall: float
    held_back: bool
    before: float
    after: float
    lost: float

    def __post_init__(self) -> None:
        require(bool(self.name), "AddedClass.name must not be empty.")
        for name in ("expected_recall", "before", "after", "lost"):
            require_share("AddedClass", name, getattr(self, name))

    @property
    def sentence(self) -> str:
        """What it costs, and on what that was measured."""
        learnt = (
            f"Class {self.name!r} was added from {self.images} image{'s' if self.images != 1 else ''} without "
            f"training; {100 * self.expected_recall:.0f} % of its images are expected to be recognised: as many were "
            "of the other classes, added in the same way."
        )
        where = "held-back images" if self.held_back else "images that it was fitted to, which flatters both,"
        return (
            f"{learnt} On {self.old_images:,} {where} of the other classes, accuracy goes from "
            f"{100 * self.before:.1f} % to {100 * self.after:.1f} %; {100 * self.lost:.1f} % are taken for the new "
            "class."
        )
