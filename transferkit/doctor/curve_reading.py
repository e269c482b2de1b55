"""What loss curves say: one sentence of evidence and one of remedy for each shape that means something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from transferkit.doctor.curves import Curves
from transferkit.records import Symptom

__all__ = ["FEWEST", "read_curves"]

FEWEST, SHORTEST = 5, 3
"""Values below which a curve has no shape, and below which nothing is read but what is not finite or diverges."""

LEVELLED = 0.02
"""Relative change over half of a curve, or of its start, below which it is flat."""

SLOW = 0.1
"""The same at a high level."""

FLAT_START = 0.2
"""Share of the values that must be flat for a start to be bad."""

SET_IN = 0.05
"""Share of the whole fall from which on a fall has begun: a straight line is beyond it at once."""

LATER_FALL = 0.1
"""A flat start must be followed by a fall of this share of the loss of guessing, or it is no start but a plateau."""

BLOWN_START = 2.0
"""Mean loss of an epoch, in units of that of guessing, from which on outputs are far too large."""

USELESS = 0.8
"""Share of the loss of guessing above which hardly anything is learnt."""

ROUGH = 0.05
"""Deviation of single values from their neighbours, in units of the loss of guessing, that is more than noise."""

WORSE = 1.02
"""A last training loss above this share of that of guessing is worse than guessing."""

HIGH, MIDDLE = 0.5, 0.3
"""Share of the loss of guessing above which a training loss is high, or a plateau matters: smoothed labels alone make
it level off at 0.1 to 0.29."""

BARELY = 0.1
"""A fall, in units of the loss of guessing, that is next to none."""

SOLVED = 0.05
"""The same below which there is nothing to gain."""

STANDSTILL = 0.4
"""Share of the values that must be flat for a plateau in the middle."""

TIMID = 1.1
"""Held-back loss, in units of the highest one of calibrated predictions of the same accuracy, from which on the network
is right more often than it dares to say."""

BLOWN_UP = 1.5
"""A last loss this many times the lowest one has diverged, if most of the fall is lost again."""

COLLAPSED = 0.5
"""Share of the fall; in a short curve all of it."""

OVERFITTED = 1.1
"""A last held-back loss this many times the lowest one has been overfitted."""

RISEN = 0.03
"""Rise of a loss, in units of that of guessing, below which it does not matter: of a classifier that makes no mistakes
the lowest loss is next to nothing, and so is any multiple of it."""

NOTHING_NEW = 0.97
"""Share of the loss of guessing that a held-back loss must fall below, or what is learnt says nothing of new images."""

LEARNT_BY_HEART = 0.7
"""A training loss below this share of that at the peak of accuracy."""

STANDARD_ERRORS = 3.0
"""Fall of the held-back accuracy from its peak, in standard errors, that is more than chance."""


def _diverged(curves: Curves) -> Iterator[Symptom]:
    if len(curves.losses) < 2:
        return
    losses, low = curves.losses, float(curves.smooth.min())
    has_shape = len(losses) >= FEWEST
    lost, risen = (COLLAPSED, RISEN) if has_shape else (1.0, BARELY)
    useless = curves.classes is not None and curves.end > USELESS * curves.guessing
    if (
        (curves.end > BLOWN_UP * low or (useless and curves.end - low > BARELY * curves.guessing))
        and curves.end - low > lost * (losses[0] - low)
        and curves.end - low > risen * curves.guessing
    ):
        yield Symptom(
            cause="divergence",
            severity="alarm",
            evidence=f"The training loss begins at {losses[0]:.3g} and ends at {losses[-1]:.3g}; the lowest "
            f"was {losses.min():.3g} in {curves.when(int(losses.argmin()))}.",
            remedy="Divide the learning rate by three to ten, or warm it up.",
        )


def _not_finite(curves: Curves) -> Iterator[Symptom]:
    bad = np.flatnonzero(~np.isfinite(curves.losses))
    if len(bad):
        yield Symptom(
            cause="not_finite",
            severity="alarm",
            evidence=f"The training loss is {curves.losses[bad[0]]} in {curves.when(int(bad[0]))}.",
            remedy="Lower the learning rate or clip gradients; in half precision use bfloat16 or loss scaling; look at "
            "the first batch that gives it.",
        )
    elif len(bad := np.flatnonzero(np.isinf(curves.held_back))):
        yield Symptom(
            cause="not_finite",
            severity="alarm",
            evidence=f"The held-back loss is not finite in {curves.when(int(bad[0]))}, though the training loss is "
            f"({curves.losses[bad[0]]:.3g}).",
            remedy="Look for held-back images or targets that are not finite, and at running statistics, which only "
            "evaluation uses; compute the loss in single precision.",
        )


def _flat(curves: Curves) -> Iterator[Symptom]:
    """From beginning to end."""
    losses, smooth = curves.losses, curves.smooth
    level = float(np.median(losses))
    bound = max(LEVELLED * abs(level), 2 * curves.noise / math.sqrt(max(1, len(losses) // 3)))
    if curves.still_falls and curves.fall > 5 * curves.noise and len(losses) >= FEWEST:
        return
    moved = max(smooth.max() - smooth.min(), abs(losses[0] - level))
    if abs(_trend(smooth)) > bound or moved > 2 * bound or curves.noise > ROUGH * curves.guessing:
        return
    if curves.classes is None or level > HIGH * curves.guessing:
        sure = curves.classes is not None and len(losses) >= FEWEST
        yield _nothing_learnt(curves, f"stays at {level:.3g} from the first to the last of", sure=sure)
    elif level > SOLVED * curves.guessing:
        yield Symptom(
            cause="no_gain",
            severity="note",
            evidence=f"The training loss stays at {level:.3g} from the first to the last of {curves.long(len(losses))}"
            f"{curves.share}: what was learnt before was neither improved nor lost.",
            remedy="Multiply the learning rate by three to ten, train more layers, or leave this training out.",
        )


def _nothing_learnt(curves: Curves, what: str, *, sure: bool) -> Symptom:
    return Symptom(
        cause="no_learning",
        severity="alarm" if sure else "note",
        evidence=f"The training loss {what} {curves.long(len(curves.losses))}{curves.share}.",
        remedy="Check that labels belong to their images, that parameters get gradients and are in the "
        "optimizer, and the learning rate (transferkit.doctor.examine).",
    )


def _trend(values: npt.NDArray[np.float64]) -> float:
    """What a straight line through the values changes by."""
    places = np.arange(len(values)) - (len(values) - 1) / 2
    return float(places @ values) / max(float(places @ places), 1.0) * (len(values) - 1)


def _rate_too_high(curves: Curves) -> Iterator[Symptom]:
    if curves.classes is None:
        return
    losses, guessing = curves.losses, curves.guessing
    rises = np.maximum(np.diff(losses), 0)
    known = curves.held_back[np.isfinite(curves.held_back)]
    # Of strong dropout or mixed images the training loss alone is above that of guessing.
    learnt = len(known) > 0 and known[-1] < NOTHING_NEW * guessing
    is_rough = curves.noise > ROUGH * guessing and rises.sum() > max(curves.fall, LEVELLED * losses[0])
    blown = losses.max() > BLOWN_START * guessing
    again = losses[1:].max() > BLOWN_START * guessing and rises.max() > guessing
    worse = curves.end > WORSE * guessing and curves.end - guessing > 2 * curves.noise
    if not learnt and worse and not _falls_throughout(curves):
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"After {curves.long(len(losses))} the training loss is {curves.end:.3g}; guessing among "
            f"{curves.classes} classes gives {guessing:.3g}.",
            remedy="Divide the learning rate by three to ten, and initialise anew: large steps may have killed units.",
        )
    elif again or (blown and curves.end > USELESS * guessing and not _falls_throughout(curves)):
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"The training loss is {losses.max():.3g} in {curves.when(int(losses.argmax()))}, "
            f"{losses.max() / guessing:.1f} times that of guessing, and ends at {curves.end:.3g}{curves.share}.",
            remedy="Divide the learning rate by three to ten, warm it up, and initialise anew.",
        )
    elif is_rough and curves.end > HIGH * guessing:
        yield Symptom(
            cause="lr_too_high",
            severity="alarm",
            evidence=f"The training loss rises {int((rises > 0).sum())} times in {curves.long(len(losses))} and ends "
            f"at {curves.end:.3g}{curves.share}.",
            remedy="Divide the learning rate by three to ten; smaller batches need smaller rates.",
        )


def _falls_throughout(curves: Curves) -> bool:
    """Whether it falls markedly up to the end, without a rise."""
    last = curves.losses[-max(2, len(curves.losses) // 3) :]
    return bool(last[0] - last[-1] > 2 * LEVELLED * last[0] and np.diff(curves.losses).max() < LEVELLED * last[0])


def _bad_start(curves: Curves) -> Iterator[Symptom]:
    losses, guessing = curves.losses, curves.guessing
    remedy = (
        "Initialise by what follows each layer (nn.init.initialise), check that inputs are normalised, or "
        "shorten the warm-up."
    )
    begun = np.flatnonzero(losses[0] - curves.smooth > SET_IN * curves.fall)
    flat = int(begun[0]) if len(begun) else len(losses)
    is_flat = flat < len(losses) and losses[:flat].max() <= (1 + LEVELLED) * losses[0]
    if is_flat and flat >= max(2, FLAT_START * len(losses)) and curves.fall > LATER_FALL * guessing:
        yield Symptom(
            cause="bad_start",
            severity="note",
            evidence=f"The training loss stays at {losses[0]:.3g} for {curves.long(flat)} before it falls to "
            f"{losses.min():.3g}.",
            remedy=remedy,
        )
    elif curves.classes is not None and losses[0] > BLOWN_START * guessing:
        yield Symptom(
            cause="bad_start",
            severity="note",
            evidence=f"The training loss is {losses[0]:.3g} in {curves.when(0)}, {losses[0] / guessing:.1f} times that "
            f"of guessing, and falls to {losses.min():.3g}: the first outputs are far too large.",
            remedy="Initialise the last layer small (nn.init.initialise), normalise the inputs; if the very first loss "
            "is near that of guessing, the first steps are too large: lower the learning rate or warm it up.",
        )


def _stopped_early(curves: Curves) -> Iterator[Symptom]:
    if curves.classes is None:
        return
    remedy = "Multiply the learning rate by three, or train longer."
    if curves.still_falls and curves.end > HIGH * curves.guessing:
        yield Symptom(
            cause="lr_too_low",
            severity="note",
            evidence="The training loss still falls when training ends: "
            f"{100 * curves.last_third / curves.fall:.0f} % of its whole fall is in the last third, and it is "
            f"{100 * curves.end / curves.guessing:.0f} % of guessing.",
            remedy=remedy,
        )
    elif curves.end > MIDDLE * curves.guessing and _is_timid(curves):
        accuracy = curves.held_back_accuracy[-1]
        yield Symptom(
            cause="lr_too_low",
            severity="note",
            evidence=f"The training loss ends at {curves.end:.3g}{curves.share}, and the held-back loss "
            f"({curves.held_back[-1]:.3g}) is far above what {100 * accuracy:.0f} % of accuracy would allow: the "
            "outputs have not grown yet.",
            remedy=remedy,
        )


def _is_timid(curves: Curves) -> bool:
    """Whether the network is right more often than it says, as early in training."""
    if not len(curves.held_back_accuracy) or not len(curves.held_back) or curves.classes is None:
        return False
    if curves.held_back_is_lower:
        return False
    right, loss = curves.held_back_accuracy[-1], curves.held_back[-1]
    if not (1 / curves.classes < right < 1) or not loss < curves.guessing:
        return False
    wrong = 1 - right
    calibrated = -right * math.log(right) - wrong * math.log(wrong / (curves.classes - 1))
    return bool(loss > TIMID * calibrated)


def _plateau(curves: Curves) -> Iterator[Symptom]:
    if curves.classes is None or curves.held_back_is_lower:
        return
    if curves.still_falls:
        yield from _standstill(curves)
        return
    half = curves.smooth[len(curves.losses) // 2 :]
    level = float(np.median(half))
    bound = SLOW if level > HIGH * curves.guessing else 2 * LEVELLED
    if abs(_trend(half)) > bound * level or level < MIDDLE * curves.guessing:
        yield from _standstill(curves)
    elif level > USELESS * curves.guessing and curves.losses[0] - level < BARELY * curves.guessing:
        if not _is_timid(curves):
            yield _nothing_learnt(curves, f"only falls from {curves.losses[0]:.3g} to {level:.3g} in", sure=True)
    elif level > HIGH * curves.guessing:
        if not _is_timid(curves):
            yield Symptom(
                cause="underfitting",
                severity="note",
                evidence=f"The training loss levels off at {curves.end:.3g}{curves.share}.",
                remedy="More capacity: train more stages, with less regularisation or augmentation, or a larger "
                "backbone.",
            )
    elif not _is_timid(curves):
        first = int(np.flatnonzero(np.abs(curves.smooth - level) < 2 * LEVELLED * level)[0])
        yield Symptom(
            cause="plateau",
            severity="note",
            evidence=f"The training loss stays near {level:.3g}{curves.share}, from {curves.when(first)} on.",
            remedy="Divide the learning rate by three to ten there (a schedule that decays), or stop there; if that "
            "brings nothing, more capacity or less regularisation.",
        )


def _standstill(curves: Curves) -> Iterator[Symptom]:
    """A plateau in the middle, left again."""
    smooth, count = curves.smooth, max(4, math.ceil(STANDSTILL * len(curves.losses)))
    for start in range(1, len(smooth) - count):
        part = smooth[start : start + count]
        level = float(np.median(part))
        if abs(_trend(part)) > LEVELLED * level or np.ptp(part) > 4 * LEVELLED * level:
            continue
        if level > MIDDLE * curves.guessing and curves.end < USELESS * level and smooth[0] > level * (1 + LATER_FALL):
            yield Symptom(
                cause="plateau",
                severity="note",
                evidence=f"The training loss stays near {level:.3g} from {curves.when(start)} to "
                f"{curves.when(start + count - 1)}, before it falls to {curves.end:.3g}.",
                remedy="Lower the learning rate earlier: it is what ends a plateau.",
            )
            return


def _nothing_new(curves: Curves) -> Iterator[Symptom]:
    held = curves.held_back[np.isfinite(curves.held_back)]
    if curves.classes is None or not len(held) or curves.end > USELESS * curves.guessing:
        return
    accuracy = [one for one in curves.held_back_accuracy if not math.isnan(one)]
    chance = 1 / curves.classes
    images = curves.held_back_images or 1
    bound = chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / images)
    if held.min() > NOTHING_NEW * curves.guessing and (not accuracy or accuracy[-1] <= bound):
        yield Symptom(
            cause="labels_unrelated",
            severity="alarm",
            evidence=f"The training loss falls to {curves.end:.3g}, but the held-back loss is never better than "
            f"guessing ({held.min():.3g}; {curves.guessing:.3g}): nothing that is learnt holds for new images.",
            remedy="Look at a few images with their labels: were labels and images shuffled apart, or numbered "
            "otherwise in the two splits (transferkit.doctor.examine_training)?",
        )


def _overfitted(curves: Curves) -> Iterator[Symptom]:
    losses, held = curves.losses, curves.held_back
    measured = np.flatnonzero(np.isfinite(held))
    if not len(measured):
        return
    best, last = int(np.nanargmin(held)), int(measured[-1])
    if (
        best < last
        and held[last] > OVERFITTED * held[best]
        and held[last] - held[best] > RISEN * curves.guessing
        and losses[last] < losses[best] < WORSE * curves.guessing
    ):
        yield Symptom(
            cause="overfitting",
            severity="note",
            evidence=f"The held-back loss is lowest in {curves.when(best)} ({held[best]:.3g}) and ends at "
            f"{held[last]:.3g}, while the training loss falls from {losses[best]:.3g} to {losses[last]:.3g}.",
            remedy="Stop at that epoch; then more images, augmentation, weight decay, or fewer trained stages.",
        )


def _memorised_labels(curves: Curves) -> Iterator[Symptom]:
    accuracy = np.asarray(curves.held_back_accuracy, dtype=np.float64)
    measured = np.flatnonzero(~np.isnan(accuracy))
    if len(measured) < FEWEST or not curves.held_back_images:
        return
    # One good or bad epoch is no peak and no fall.
    pairs = (accuracy[measured][1:] + accuracy[measured][:-1]) / 2
    peak, highest, last = int(pairs.argmax()), float(pairs.max()), float(pairs[-max(1, len(pairs) // 5) :].mean())
    # At a peak of 100 % its own variance is zero, and one image would be more than chance.
    variance = max(one * (1 - one) for one in (highest, last, 0.01))
    place = int(measured[peak])
    if (
        highest - last > STANDARD_ERRORS * math.sqrt(variance / curves.held_back_images)
        and curves.end < LEARNT_BY_HEART * curves.losses[place]
        and curves.losses[place] < WORSE * curves.guessing
    ):
        yield Symptom(
            cause="label_noise",
            severity="note",
            evidence=f"The held-back accuracy peaks at {100 * highest:.1f} % in {curves.when(place)} and falls to "
            f"{100 * last:.1f} %, while the training loss falls from {curves.losses[place]:.3g} to {curves.end:.3g}: "
            "images are learnt by heart that contradict the others.",
            remedy="Look for wrong labels (measure.find_label_errors); until then stop at the peak, or smooth labels.",
        )


ALONE: tuple[Callable[[Curves], Iterator[Symptom]], ...] = (_not_finite, _diverged, _flat, _rate_too_high)
"""A run with one of these has no other shape."""

TOGETHER: tuple[Callable[[Curves], Iterator[Symptom]], ...] = (
    _bad_start,
    _stopped_early,
    _plateau,
    _nothing_new,
    _overfitted,
    _memorised_labels,
)


def read_curves(curves: Curves) -> tuple[Symptom, ...]:
    """What the shapes of the curves mean, alarms first; empty for a healthy run. Of fewer than five values only what is
    plain is read: NaN, a loss that rises, from three on one that stays as it is, or begins or ends far above guessing.

    Example:
        >>> falling = [2.3, 1.5, 1.0, 0.7, 0.5, 0.4, 0.33, 0.3]
        >>> read_curves(Curves(train_loss=falling, classes=10))
        ()
        >>> rising = [1.6, 1.2, 1.0, 0.95, 1.0, 1.1, 1.2, 1.3]
        >>> [one.cause for one in read_curves(Curves(train_loss=falling, held_back_loss=rising, classes=10))]
        ['overfitting']
    """
    for number, read in enumerate(ALONE):
        if number > 1 and len(curves.losses) < SHORTEST:
            return ()
        if found := list(read(curves)):
            return tuple(found)
    if len(curves.losses) < FEWEST:
        return tuple(_bad_start(curves))
    symptoms = [one for read in TOGETHER for one in read(curves)]
    if any(one.cause == "labels_unrelated" for one in symptoms):
        symptoms = [one for one in symptoms if one.cause not in ("overfitting", "label_noise")]
    return tuple(sorted(symptoms, key=lambda one: one.severity != "alarm"))
