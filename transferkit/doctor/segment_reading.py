"""A training read before its end: what is a symptom at a checkpoint, and what may just take its time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transferkit.doctor.curve_reading import FEWEST
from transferkit.doctor.curves import Curves
from transferkit.doctor.monitor_reading import read_training
from transferkit.records import Epoch, MonitorRecord, Symptom

__all__ = ["read_segment"]

ON_ITS_WAY = 0.5
"""Share of the loss of guessing that a training is to fall below by its end, at its pace, to be left alone until then;
above it a training loss is high."""

TAKES_TIME = ("lr_too_low", "underfitting")
"""Symptoms that a training on its way shows as well."""

NOTHING_SEEN = MonitorRecord(every=1, steps=(), losses=(), gradients=(), stages=())


def read_segment(
    epochs: Sequence[Epoch], record: MonitorRecord | None, *, classes: int, held_back: int, planned: int
) -> tuple[Symptom, ...]:
    """What is wrong with a training up to a checkpoint, alarms first; empty for a healthy one.

    Args:
        epochs: Trained so far, at least one, with what was measured on held-back images.
        record: What a monitor saw; None reads the curves alone.
        classes: K.
        held_back: Number of held-back images.
        planned: Epochs of the whole training. Before its end a loss that still falls is no symptom if it gets down in
            time.

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
    if not _is_on_its_way(curves, planned):
        return symptoms
    return tuple(one for one in symptoms if one.cause not in TAKES_TIME)


def _or_infinite(loss: float) -> float:
    """A loss that was measured, but is no number, is infinite: NaN would mean that it was not measured."""
    return loss if math.isfinite(loss) else math.inf


def _is_on_its_way(curves: Curves, planned: int) -> bool:
    done = len(curves.losses)
    if not FEWEST <= done < planned or not curves.still_falls:
        return False
    pace = curves.last_third / (done // 3)
    return curves.end - pace * (planned - done) < ON_ITS_WAY * curves.guessing
