"""Classes known by their attributes alone: what a classifier for them was chosen by, and how good it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.records._checks import require, require_share

__all__ = ["ZeroShotRecord", "ZeroShotScore"]


@dataclass(frozen=True, kw_only=True)
class ZeroShotScore:
    """Mean accuracies per class, the choice being among all classes.

    Args:
        seen: On held-back images of classes with training images, in [0, 1].
        unseen: On images of classes that were fitted without any, in [0, 1].
    """

    seen: float
    unseen: float

    def __post_init__(self) -> None:
        for name in ("seen", "unseen"):
            require_share("ZeroShotScore", name, getattr(self, name))

    @property
    def harmonic(self) -> float:
        """Harmonic mean of the two, in [0, 1]."""
        total = self.seen + self.unseen
        return 2 * self.seen * self.unseen / total if total else 0.0


@dataclass(frozen=True, kw_only=True)
class ZeroShotRecord:
    """A classifier over classes with and without training images.

    All figures are from training images: classes with images were turned unseen in folds, fitted without, and all
    choices were made without the fold that a figure is from.

    Args:
        seen, unseen: Class names, with and without training images.
        attributes: Names of the attributes that differ between classes.
        method: "eszsl" or "dap".
        penalty, table_penalty: Ridge penalties of the features and of the attributes, > 0.
        seen_penalty: Taken off the logits of seen classes; 0 if that did not help.
        calibrated, plain: Accuracy with and without it.
        low, high: 95 % interval of the calibrated harmonic mean, over other draws of classes.
        among_unseen: Accuracy on unseen classes if only these can be chosen, in [0, 1].
        folds: Times that classes were turned unseen.
        images: Held-back images.
        fitted: Training images that the attributes were fitted to.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    attributes: tuple[str, ...]
    method: str
    penalty: float
    table_penalty: float
    seen_penalty: float
    calibrated: ZeroShotScore
    plain: ZeroShotScore
    low: float
    high: float
    among_unseen: float
    folds: int
    images: int
    fitted: int

    def __post_init__(self) -> None:
        for name in ("low", "high", "among_unseen"):
            require_share("ZeroShotRecord", name, getattr(self, name))
        require(
            math.isfinite(self.seen_penalty),
            f"ZeroShotRecord.seen_penalty must be finite, got {self.seen_penalty!r}.",
        )
        require(bool(self.unseen), "ZeroShotRecord.unseen must name at least one class.")

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is expected of the classifier, with the numbers."""
        one = "class" if len(self.unseen) == 1 else "classes"
        said = [
            f"{len(self.seen)} classes with images and {len(self.unseen)} {one} without, by {len(self.attributes)} "
            f"attributes ({METHODS.get(self.method, self.method)}). Without images: {', '.join(self.unseen[:SHOWN])}"
            f"{f' and {len(self.unseen) - SHOWN} more' if len(self.unseen) > SHOWN else ''}.",
            f"Held back, with classes turned unseen in {self.folds} folds ({self.images:,} images): seen classes "
            f"{_percent(self.calibrated.seen)}, unseen classes {_percent(self.calibrated.unseen)}, harmonic mean "
            f"{_percent(self.calibrated.harmonic)} ({100 * self.low:.1f} to {100 * self.high:.1f}).",
        ]
        if self.seen_penalty:
            said.append(
                f"Without the penalty on seen classes ({self.seen_penalty:.2f} in logits): seen "
                f"{_percent(self.plain.seen)}, unseen {_percent(self.plain.unseen)}, harmonic mean "
                f"{_percent(self.plain.harmonic)}."
            )
        else:
            said.append("A penalty on seen classes did not raise the harmonic mean, so there is none.")
        said.append(f"Among unseen classes alone: {_percent(self.among_unseen)}.")
        return tuple(said)


SHOWN = 8
"""Classes that a sentence names."""

METHODS = {"eszsl": "ESZSL", "dap": "direct attribute prediction"}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
