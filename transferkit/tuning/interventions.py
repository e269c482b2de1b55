"""Which setting a symptom of a training asks to change, and by how much: the remedies of the doctor as steps.

Nothing is trained here. Each remedy moves one setting one step, and no value is tried twice, so babysitting ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transferkit.options import AUGMENTS
from transferkit.records import Symptom

__all__ = [
    "FROM_THE_BEGINNING",
    "MOST_INTERVENTIONS",
    "RATE_RANGE",
    "REMEDIES",
    "SURE",
    "Change",
    "Limits",
    "choose_change",
    "is_kept",
]

MOST_INTERVENTIONS = 10
"""Changes that are tried at most: a rate that is 100 times off takes four or five, the rest is for regularisation."""

RATE_STEP = 3.0
"""Factor on a learning rate: the doctor's remedies begin at three."""

RATE_RANGE = 1000.0
"""A rate stays within this factor of the one that babysitting began with."""

DECAY_STEP, DECAYS = 3.0, (1e-4, 1.0)
"""Factor on weight decay, and its bounds, those of the default space. Below the lower one it is set to this first."""

DROPOUTS = (0.0, 0.2, 0.35, 0.5)
SMOOTHINGS = (0.0, 0.1, 0.2)
PRESETS = AUGMENTS[1:]  # without auto

Settings = Mapping[str, Any]
"""Setting, as on the command line -> value; what a remedy may not change is missing."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting, its value, and the one to try instead."""

    setting: str
    before: Any
    after: Any

    @property
    def key(self) -> tuple[str, str]:
        """Equal for equal values of one setting, whatever the rounding."""
        return key_of(self.setting, self.after)


def key_of(setting: str, value: Any) -> tuple[str, str]:
    """What tells values of settings apart."""
    return setting, f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far settings may be moved.

    Args:
        lr: The rate that babysitting began with, > 0.
        stages: Stages that can be trained; 0 where the strategy does not choose.
    """

    lr: float
    stages: int = 0

    @property
    def rates(self) -> tuple[float, float]:
        """Lowest and highest learning rate."""
        return self.lr / RATE_RANGE, self.lr * RATE_RANGE


Remedy = Callable[[Settings, Limits], Change | None]
"""Settings and limits -> the change; None where it cannot be made."""


def _scale_rate(factor: float) -> Remedy:
    def change(settings: Settings, limits: Limits) -> Change | None:
        lr = settings.get("train.lr")
        if lr is None:
            return None
        wanted, (low, high) = float(f"{lr * factor:.3g}"), limits.rates
        return Change(setting="train.lr", before=lr, after=wanted) if low <= wanted <= high else None

    return change


lower_rate, raise_rate = _scale_rate(1 / RATE_STEP), _scale_rate(RATE_STEP)


def _scale_decay(factor: float) -> Remedy:
    def change(settings: Settings, limits: Limits) -> Change | None:
        decay = settings.get("train.weight_decay")
        if decay is None or (factor < 1 and decay <= DECAYS[0]) or (factor > 1 and decay >= DECAYS[1]):
            return None
        wanted = min(DECAYS[1], max(DECAYS[0], float(f"{decay * factor:.3g}")))
        return Change(setting="train.weight_decay", before=decay, after=wanted)

    return change


more_decay, less_decay = _scale_decay(DECAY_STEP), _scale_decay(1 / DECAY_STEP)


def _step(setting: str, levels: tuple[Any, ...], *, up: bool) -> Remedy:
    """To the next level above or below the value; of names, to the neighbour in their order."""

    def change(settings: Settings, limits: Limits) -> Change | None:
        value = settings.get(setting)
        if value is None:
            return None
        place = levels.index if isinstance(value, str) else float
        beyond = [one for one in levels if (place(one) > place(value) if up else place(one) < place(value))]
        if not beyond:
            return None
        return Change(setting=setting, before=value, after=beyond[0] if up else beyond[-1])

    return change


more_dropout, less_dropout = (_step("train.dropout", DROPOUTS, up=up) for up in (True, False))
smooth_labels, sharpen_labels = (_step("train.label_smoothing", SMOOTHINGS, up=up) for up in (True, False))
more_augmentation, less_augmentation = (_step("train.augment", PRESETS, up=up) for up in (True, False))


def _reach(stages: int) -> Remedy:
    def change(settings: Settings, limits: Limits) -> Change | None:
        depth = settings.get("unfreeze")
        if depth is None or not 1 <= depth + stages <= limits.stages:
            return None
        return Change(setting="unfreeze", before=depth, after=depth + stages)

    return change


train_more_stages, train_fewer_stages = _reach(1), _reach(-1)


def let_rate_decay(settings: Settings, limits: Limits) -> Change | None:
    """A schedule that decays, where the rate is constant."""
    if settings.get("train.schedule") != "constant":
        return None
    return Change(setting="train.schedule", before="constant", after="cosine")


REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    "not_finite": (lower_rate,),
    "gradient_not_finite": (lower_rate,),
    "divergence": (lower_rate,),
    "lr_too_high": (lower_rate,),
    "updates_too_large": (lower_rate,),
    "dying_units": (lower_rate,),
    "no_learning": (raise_rate, lower_rate),
    "lr_too_low": (raise_rate,),
    "updates_too_small": (raise_rate,),
    "no_gain": (raise_rate, train_more_stages),
    "label_noise": (smooth_labels,),
    "overfitting": (more_augmentation, more_dropout, more_decay, train_fewer_stages),
    "underfitting": (less_augmentation, less_dropout, sharpen_labels, less_decay, train_more_stages),
    "plateau": (let_rate_decay, lower_rate),
}
"""Symptom -> what its remedy names, in the order in which it is tried. First rates, as regularisation cannot mend a
training whose rate is wrong. Symptoms that are missing here are not mended by a setting."""

FROM_THE_BEGINNING = ("lr_too_high", "dying_units")
"""Symptoms whose remedy is to begin anew: the last checkpoint has been spoilt already."""

SURE = ("not_finite", "gradient_not_finite", "divergence", "lr_too_high", "dying_units", "updates_too_small")
"""Symptoms of a rate that is far off: one step may not be enough to see a difference, so that a change is kept unless
it is far worse. A rate that is 100 times too high spoils a network as thoroughly as one that is 30 times too high."""


SURELY, FAR = 0.99, 0.9
"""A loss below this share of another one is lower, and is far lower: less is the luck of a batch, or of how a network
was spoilt."""


def is_kept(cause: str, before: float, after: float, *, guessing: float = math.inf) -> bool:
    """Whether a change is kept.

    Args:
        cause: The symptom's.
        before, after: Held-back losses after as many epochs, without and with the change; infinite if not finite.
        guessing: Loss of guessing: networks above it are alike, however far.

    Example:
        >>> is_kept("overfitting", 0.50, 0.499), is_kept("lr_too_high", 0.50, 0.51), is_kept("lr_too_high", 0.5, 0.6)
        (False, True, False)
    """
    before, after = min(before, guessing), min(after, guessing)
    if after < SURELY * before:
        return True
    return cause in SURE and not before < FAR * after


def choose_change(
    symptoms: Iterable[Symptom], settings: Settings, limits: Limits, *, tried: Collection[tuple[str, str]] = ()
) -> tuple[Symptom, Change] | None:
    """The next change to try, and the symptom that asks for it; None if there is none.

    Args:
        symptoms: What was read.
        settings: As they are.
        limits: How far they may be moved.
        tried: Keys of values that were tried before, or were the first ones: none is tried twice.

    Example:
        >>> high = Symptom(cause="lr_too_high", severity="alarm", evidence="", remedy="")
        >>> choose_change([high], {"train.lr": 0.3}, Limits(lr=0.3))[1].after
        0.1
    """
    order = {cause: place for place, cause in enumerate(REMEDIES)}
    known = sorted((one for one in symptoms if one.cause in order), key=lambda one: order[one.cause])
    for symptom in known:
        for remedy in REMEDIES[symptom.cause]:
            change = remedy(settings, limits)
            if change is not None and change.key not in tried:
                return symptom, change
    return None
