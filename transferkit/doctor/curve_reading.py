"""What loss curves say: one sentence of evidence and one of remedy for each shape that means something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, OptionError
from transferkit.records import Symptom

__all__ = ["Curves", "read_curves"]

FEWEST = 5
"""Points below which a curve has no shape."""

LEVELLED = 0.02
"""Relative change over half of a curve, or of its start, below which it is flat."""

FLAT_START = 0.2
"""Share of the points that must be flat for a start to be bad."""

LATER_FALL = 0.3
"""A flat start must be followed by a fall of this share, or it is no start but a plateau."""

ROUGH = 1.0
"""Sum of all rises in units of the whole fall from which on a curve is rough, not noisy."""

WORSE = 1.02
"""A last training loss above this share of that of guessing is worse than guessing."""

HIGH = 0.5
"""Share of the loss of guessing above which a training loss is high."""

EASIER = 0.7
"""Held-back loss below this share of the training loss."""

UNMOVED = 0.002
"""Relative fall below which nothing was learnt."""

STILL_FALLING = 0.25
"""Share of the whole fall in the last third of a curve from which on training was stopped too early."""

BLOWN_UP = 1.5
"""A last loss this many times the lowest one has diverged, if most of the fall is lost again."""

COLLAPSED = 0.5
"""Share of the fall."""

OVERFITTED = 1.1
"""A last held-back loss this many times the lowest one has been overfitted."""

RISEN = 0.03
"""Rise of the held-back loss, in units of that of guessing, below which it does not matter: of a classifier that makes
no mistakes the lowest loss is next to nothing, and so is any multiple of it."""

STANDARD_ERRORS = 3.0
"""Fall of the held-back accuracy from its peak, in standard errors, that is more than chance."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of one training run, a value per epoch (or per equal number of steps) each.

    Args:
        train_loss: Mean training loss, the first from the first epoch.
        held_back_loss, held_back_accuracy: On images held back; empty if there are none.
        classes: K of a classifier, for the loss of guessing; None where that is not known: what is read against it is
            left out.
        held_back_images: Number of independent images behind the accuracy, for its standard error.

    Raises:
        DataError: Curves have different lengths.
        OptionError: A number is out of range.
    """

    train_loss: Sequence[float]
    held_back_loss: Sequence[float] = ()
    held_back_accuracy: Sequence[float] = ()
    classes: int | None = None
    held_back_images: float | None = None

    def __post_init__(self) -> None:
        for name in ("held_back_loss", "held_back_accuracy"):
            if (length := len(getattr(self, name))) not in (0, len(self.train_loss)):
                raise DataError(f"{name} has {length} values, train_loss {len(self.train_loss)}.")
        if len(self.held_back_accuracy) and not 0 <= min(self.held_back_accuracy) <= max(self.held_back_accuracy) <= 1:
            raise OptionError("Curves.held_back_accuracy must be in [0, 1].")
        if self.classes is not None and self.classes < 2:
            raise OptionError(f"Curves.classes must be >= 2 or None, got {self.classes!r}.")

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """(E,) training losses."""
        return np.asarray(self.train_loss, dtype=np.float64)

    @property
    def guessing(self) -> float:
        """The loss of guessing, or the first one."""
        return math.log(self.classes) if self.classes is not None else float(self.losses[0])

    @property
    def fall(self) -> float:
        """From the first to the lowest training loss, >= 0."""
        return float(self.losses[0] - self.losses.min())

    @property
    def held_back_is_lower(self) -> bool:
        """Whether training images are much harder than held-back ones: they are mixed, or strongly augmented."""
        return len(self.held_back_loss) > 0 and self.held_back_loss[-1] < EASIER * self.train_loss[-1]

    @property
    def still_falls(self) -> bool:
        """Whether much of the fall, if there is one at all, is at the end."""
        last_third = self.losses[-1 - len(self.losses) // 3] - self.losses[-1]
        return bool(self.fall > UNMOVED * abs(self.losses[0]) and last_third > STILL_FALLING * self.fall)


def _diverged(curves: Curves) -> Iterator[Symptom]:
    losses = curves.losses
    if not np.isfinite(losses).all():
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        yield Symptom(
            cause="not_finite",
            severity="alarm",
            evidence=f"The training loss is {losses[first]} in epoch {first + 1}.",
            remedy="Lower the learning rate or clip gradients; in half precision use bfloat16 or loss scaling; look at "
            "the first batch that gives it.",
        )
    elif losses[-1] > BLOWN_UP * losses.min() and losses[-1] - losses.min() > COLLAPSED * (losses[0] - losses.min()):
        yield Symptom(
            cause="divergence",
            severity="alarm",
            evidence=f"The training loss begins at {losses[0]:.3g} and ends at {losses[-1]:.3g}; the lowest "
            f"was {losses.min():.3g} in epoch {int(losses.argmin()) + 1}.",
            remedy="Divide the learning rate by three to ten, or warm it up.",
        )


def _rough(curves: Curves) -> Iterator[Symptom]:
    losses = curves.losses
    rises = np.maximum(np.diff(losses), 0)
    if curves.classes is not None and losses[-1] > WORSE * curves.guessing:
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"After {len(losses)} epochs the training loss is {losses[-1]:.3g}; guessing among "
            f"{curves.classes} classes gives {curves.guessing:.3g}.",
            remedy="Divide the learning rate by three to ten, and initialise anew: large steps may have killed units.",
        )
    elif (
        curves.classes is not None
        and rises.sum() > ROUGH * max(curves.fall, LEVELLED * losses[0])
        and losses[-1] > HIGH * curves.guessing
    ):
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"The training loss rises in {int((rises > 0).sum())} of {len(losses) - 1} epochs and ends at "
            f"{losses[-1]:.3g}, {100 * losses[-1] / curves.guessing:.0f} % of guessing.",
            remedy="Divide the learning rate by three to ten; smaller batches need smaller rates.",
        )


def _flat_start(curves: Curves) -> Iterator[Symptom]:
    losses = curves.losses
    moved = np.flatnonzero(np.abs(losses - losses[0]) > LEVELLED * abs(losses[0]))
    flat = int(moved[0]) if len(moved) else len(losses)
    if max(2, FLAT_START * len(losses)) <= flat < len(losses) and curves.fall > LATER_FALL * losses[0]:
        yield Symptom(
            cause="bad_start",
            severity="note",
            evidence=f"The training loss stays at {losses[0]:.3g} for {flat} epochs before it falls to "
            f"{losses.min():.3g}.",
            remedy="Initialise by what follows each layer (nn.init.initialise), check that inputs are normalised, or "
            "shorten the warm-up.",
        )


def _stopped_early(curves: Curves) -> Iterator[Symptom]:
    losses = curves.losses
    last_third = losses[-1 - len(losses) // 3] - losses[-1]
    if curves.classes is not None and losses[-1] > HIGH * curves.guessing and curves.still_falls:
        yield Symptom(
            cause="lr_too_low",
            severity="note",
            evidence=f"The training loss still falls when training ends: {100 * last_third / curves.fall:.0f} % of its "
            f"whole fall is in the last third, and it is {100 * losses[-1] / curves.guessing:.0f} % of guessing.",
            remedy="Multiply the learning rate by three, or train longer.",
        )


def _plateau(curves: Curves) -> Iterator[Symptom]:
    losses = curves.losses
    half = losses[len(losses) // 2 :]
    level = float(half.mean())
    if curves.still_falls or level <= HIGH * curves.guessing or half.max() - half.min() > 2 * LEVELLED * level:
        return
    if curves.fall < LEVELLED * losses[0]:
        yield Symptom(
            cause="no_learning",
            severity="alarm",
            evidence=f"The training loss stays at {level:.3g}, {100 * level / curves.guessing:.0f} % of guessing.",
            remedy="Check that labels belong to their images, that parameters get gradients and are in the "
            "optimizer, and the learning rate (transferkit.doctor.examine).",
        )
    elif curves.classes is not None and not curves.held_back_is_lower:
        yield Symptom(
            cause="underfitting",
            severity="note",
            evidence=f"The training loss levels off at {level:.3g}, {100 * level / curves.guessing:.0f} % of guessing.",
            remedy="More capacity: train more stages, with less regularisation or augmentation, or a larger backbone.",
        )


def _overfitted(curves: Curves) -> Iterator[Symptom]:
    if not len(curves.held_back_loss):
        return
    losses, held = curves.losses, np.asarray(curves.held_back_loss, dtype=np.float64)
    best = int(np.nanargmin(held)) if np.isfinite(held).any() else 0
    if (
        best < len(held) - 1
        and held[-1] > OVERFITTED * held[best]
        and held[-1] - held[best] > RISEN * curves.guessing
        and losses[-1] < losses[best] < WORSE * curves.guessing
    ):
        yield Symptom(
            cause="overfitting",
            severity="note",
            evidence=f"The held-back loss is lowest in epoch {best + 1} ({held[best]:.3g}) and ends at "
            f"{held[-1]:.3g}, while the training loss falls from {losses[best]:.3g} to {losses[-1]:.3g}.",
            remedy="Stop at that epoch; then more images, augmentation, weight decay, or fewer trained stages.",
        )


def _memorised_labels(curves: Curves) -> Iterator[Symptom]:
    if not len(curves.held_back_accuracy) or not curves.held_back_images:
        return
    losses, accuracy = curves.losses, np.asarray(curves.held_back_accuracy, dtype=np.float64)
    peak = int(accuracy.argmax())
    # At a peak of 100 % its own variance is zero, and one image would be more than chance.
    variance = max(one * (1 - one) for one in (accuracy[peak], accuracy[-1], 0.01))
    error = math.sqrt(variance / curves.held_back_images)
    fallen = accuracy[peak] - accuracy[-1]
    if fallen > STANDARD_ERRORS * error and losses[-1] < HIGH * losses[peak]:
        yield Symptom(
            cause="label_noise",
            severity="note",
            evidence=f"The held-back accuracy peaks at {100 * accuracy[peak]:.1f} % in epoch {peak + 1} and falls to "
            f"{100 * accuracy[-1]:.1f} %, while the training loss falls from {losses[peak]:.3g} to {losses[-1]:.3g}: "
            "images are learnt by heart that contradict the others.",
            remedy="Look for wrong labels (measure.find_label_errors); until then stop at the peak, or smooth labels.",
        )


READINGS: tuple[Callable[[Curves], Iterator[Symptom]], ...] = (
    _rough,
    _flat_start,
    _stopped_early,
    _plateau,
    _overfitted,
    _memorised_labels,
)


def read_curves(curves: Curves) -> tuple[Symptom, ...]:
    """What the shapes of the curves mean, alarms first; empty for a healthy run, or for fewer than five epochs.

    Example:
        >>> falling = [2.3, 1.5, 1.0, 0.7, 0.5, 0.4, 0.33, 0.3]
        >>> read_curves(Curves(train_loss=falling, classes=10))
        ()
        >>> rising = [1.6, 1.2, 1.0, 0.95, 1.0, 1.1, 1.2, 1.3]
        >>> [one.cause for one in read_curves(Curves(train_loss=falling, held_back_loss=rising, classes=10))]
        ['overfitting']
    """
    if len(curves.train_loss) < FEWEST and np.isfinite(curves.losses).all():
        return ()
    # A run that has diverged has no other shape.
    found = list(_diverged(curves)) or [one for read in READINGS for one in read(curves)]
    return tuple(sorted(found, key=lambda one: one.severity != "alarm"))
