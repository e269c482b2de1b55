"""A training read before its end: what is a symptom at a checkpoint, and what may just take its time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from transferkit.doctor.curve_reading import FEWEST
from transferkit.doctor.curves import Curves
from transferkit.doctor.monitor_reading import read_training
from transferkit.records import HEALTHY_UPDATES, Epoch, MonitorRecord, Symptom

__all__ = ["read_segment"]

ON_ITS_WAY = 0.5
"""Share of the loss of guessing that a training is to fall below by its end, at its pace, to be left alone until then;
above it a training loss is high."""

TAKES_TIME = ("lr_too_low", "underfitting")
"""Symptoms that a training on its way shows as well."""

SEEN = 3
"""Monitored steps whose median says something."""

LOST = 1.0
"""Standard errors of the accuracy at the start that held-back accuracy must fall below it to count as lost. Whether a
lower rate is better is tried at once, so that a false alarm costs a few epochs."""

NOTHING_SEEN = MonitorRecord(every=1, steps=(), losses=(), gradients=(), stages=())


def read_segment(
    epochs: Sequence[Epoch],
    record: MonitorRecord | None,
    *,
    classes: int,
    held_back: int,
    planned: int,
    start: float | None = None,
) -> tuple[Symptom, ...]:
    """What is wrong with a training up to a checkpoint, alarms first; empty for a healthy one.

    Args:
        epochs: Trained so far, at least one, with what was measured on held-back images.
        record: What a monitor saw; None reads the curves alone.
        classes: K.
        held_back: Number of held-back images.
        planned: Epochs of the whole training. Before its end a loss that still falls is no symptom if it gets down in
            time; and in its first half, while rates are high, small updates are one.
        start: Held-back accuracy before the first step, of a network whose head was fitted; None if it was not.

    Example:
        >>> losses = [2.3, 2.2, 2.0, 1.7, 1.4]
        >>> epochs = [Epoch(number=n, phase="", train_loss=one, lr=1e-3, seconds=1.0) for n, one in enumerate(losses)]
        >>> [one.cause for one in read_segment(epochs, None, classes=10, held_back=50, planned=5)]
        ['lr_too_low']
        >>> read_segment(epochs, None, classes=10, held_back=50, planned=16)
        ()
    """
    curves = Curves(
        train_loss=[one.train_loss for one in epochs],
        held_back_loss=[math.nan if one.val_loss is None else _or_infinite(one.val_loss) for one in epochs],
        held_back_accuracy=[math.nan if one.val_accuracy is None else one.val_accuracy for one in epochs],
        classes=classes,
        held_back_images=held_back,
    )
    symptoms, _ = read_training(curves, NOTHING_SEEN if record is None else record)
    if _is_on_its_way(curves, planned):
        symptoms = tuple(one for one in symptoms if one.cause not in TAKES_TIME)
    known = {one.cause for one in symptoms}
    if start is not None and "lr_too_high" not in known:
        symptoms = (*_lost(epochs[-1], start, held_back), *symptoms)
    if record is not None and "updates_too_small" not in known and 2 * len(epochs) <= planned:
        symptoms = (*symptoms, *_slow(record))
    return symptoms


def _lost(last: Epoch, start: float, held_back: int) -> Iterator[Symptom]:
    """What the head knew at the start; a symptom long before the training loss says so, which falls again."""
    error = math.sqrt(max(start * (1 - start), 0.01) / max(held_back, 1))
    if last.val_accuracy is None or not last.val_accuracy < start - LOST * error:
        return
    yield Symptom(
        cause="lr_too_high",
        severity="alarm",
        evidence=f"Held-back accuracy is {100 * last.val_accuracy:.1f} % after epoch {last.number + 1}, and was "
        f"{100 * start:.1f} % before the first step.",
        remedy="Divide the learning rate by three to ten, and begin anew: large steps have spoilt features.",
    )


def _slow(record: MonitorRecord) -> Iterator[Symptom]:
    """Updates below what is healthy everywhere, while rates are at their highest."""
    known = [[ratio for ratio in one.ratio if ratio is not None] for one in record.stages]
    ratios = [median(values) for values in known if len(values) >= SEEN]
    if ratios and max(ratios) < HEALTHY_UPDATES[0]:
        yield Symptom(
            cause="updates_too_small",
            severity="note",
            evidence=f"No part changes by more than {max(ratios):.1g} of its weights per step (median); healthy are "
            "1e-4 to 1e-2.",
            remedy="Multiply the learning rate by three.",
        )


def _or_infinite(loss: float) -> float:
    """A loss that was measured, but is no number, is infinite: NaN would mean that it was not measured."""
    return loss if math.isfinite(loss) else math.inf


def _is_on_its_way(curves: Curves, planned: int) -> bool:
    done = len(curves.losses)
    if not FEWEST <= done < planned or not curves.still_falls:
        return False
    pace = curves.last_third / (done // 3)
    return curves.end - pace * (planned - done) < ON_ITS_WAY * curves.guessing
