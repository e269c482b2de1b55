"""Stored hyperparameters measured again: do they still hold on images and backbone as they are now?

The best points of an earlier search and what is advised now are trained in full on the same folds, and compared image
by image. Four trainings instead of thirty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, TransferkitError
from transferkit.core.progress import announce
from transferkit.finetune import Judged
from transferkit.records import DataSummary, Retest, RetestedSettings, TuningRecord
from transferkit.tuning.objective import HeldBackAccuracy, score_run
from transferkit.tuning.points import PROBE
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.search_record import read_search
from transferkit.tuning.space import Point
from transferkit.tuning.stages import FINALISTS, SearchStage
from transferkit.workflow.decide import decide_session
from transferkit.workflow.session import Session

__all__ = ["compare_paired", "describe_changes", "retest_settings"]

FULL = SearchStage(name="retest", trials=1, share=1.0, source="best")

COVERED = 0.95
"""What the intervals of all comparisons cover together."""

CLASSES_NAMED = 6
"""Classes named at most."""


@dataclass(frozen=True)
class Tested:
    """Settings that were trained, and which held-back images they get right.

    Args:
        record: What people see.
        right: Row of a held-back image -> whether its class was found; empty if they failed.
        probe: The same of the linear probe.
    """

    record: RetestedSettings
    right: Mapping[int, bool]
    probe: Mapping[int, bool]
    probe_accuracy: float = 0.0
    probe_loss: float = 0.0


def retest_settings(session: Session, options: TuneOptions, *, command: str, begun: float) -> TuningRecord:
    """The earlier search with a retest.

    Args:
        session: Opened and measured, as images and backbone are now.
        options: As given; `out` is the folder of the search.
        command: What makes the retest again.
        begun: Reading of the clock when the whole began.

    Raises:
        OptionError: There is nothing to retest.
    """
    earlier = read_search(options)
    if earlier.strategy == PROBE:
        raise OptionError("A search of linear probes takes seconds: make it again, without retest.")
    changes = describe_changes(earlier, session)
    announce(" ".join(changes) or "nothing has changed since the search", enabled=options.progress)
    tested = [
        _train(session, options, name=name, strategy=earlier.strategy, values=trial.values, then=trial.accuracy)
        for name, trial in _stored(earlier)
    ]
    tested.append(_train_advised(session, options, tested))
    stored = tested[0]
    compared = [stored.record, *(_compared(stored, one, len(tested) - 1) for one in tested[1:])]
    images = len(stored.right) or max(len(one.right) for one in tested)
    found = Retest(
        data=session.data.summary,
        backbone=session.backbone.spec.name,
        shape=session.backbone.spec.preprocessing.height_width,
        changes=tuple(changes),
        tested=tuple(compared),
        images=images,
        base=options.recipe.changed,
        command=command,
        seconds=time.perf_counter() - begun,
    )
    return replace(earlier, retest=found)


def _stored(earlier: TuningRecord) -> list[tuple[str, Any]]:
    """The best trials, different ones."""
    different = [
        one
        for place, one in enumerate(earlier.ranked)
        if all(dict(one.values) != dict(other.values) for other in earlier.ranked[:place])
    ]
    return [
        ("stored best" if place == 0 else f"stored {place + 1}", one) for place, one in enumerate(different[:FINALISTS])
    ]


def _train(
    session: Session, options: TuneOptions, *, name: str, strategy: str, values: Point, then: float | None
) -> Tested:
    """Settings, trained in full on the folds; what they cannot do is their outcome."""
    began = time.perf_counter()
    known = RetestedSettings(name=name, strategy=strategy, values=dict(values), accuracy_then=then)
    # All are compared on the same folds, whatever a point said of them.
    point = {setting: value for setting, value in values.items() if setting != "train.folds"}
    try:
        run = HeldBackAccuracy(session, replace(options, strategy=strategy)).train(point, FULL, lambda *_: None)
    except TransferkitError as error:
        announce(f"{name}: failed, {error}", enabled=options.progress)
        return Tested(replace(known, error=str(error), seconds=time.perf_counter() - began), {}, {})
    details = score_run(run).details
    announce(f"{name}: held-back accuracy {100 * details['accuracy']:.1f} %", enabled=options.progress)
    known = replace(
        known,
        accuracy=details["accuracy"],
        log_loss=details["log_loss"],
        epochs=details["epochs"],
        seconds=time.perf_counter() - began,
    )
    probe = run.judged.verdict.candidates[0]
    tuned, solved = _right(run.judged)
    return Tested(known, tuned, solved, probe.accuracy, probe.log_loss)


def _train_advised(session: Session, options: TuneOptions, others: Sequence[Tested]) -> Tested:
    """What is advised now: of the strategy that was named, or that fits; a linear probe is measured beside networks."""
    decision = decide_session(session, options).decision
    values: dict[str, Any] = {}
    measured = next((one for one in others if one.probe), None)
    if decision.strategy != "linear_probe":
        for one in others:
            if one.right and one.record.strategy == decision.strategy and not one.record.values and not decision.tuned:
                return replace(one, record=replace(one.record, name="advised", accuracy_then=None))
        named = replace(options, unfreeze=list(decision.tuned) or None)
        return _train(session, named, name="advised", strategy=decision.strategy, values=values, then=None)
    record = RetestedSettings(name="advised", strategy="linear_probe", values=values)
    if measured is None:
        return Tested(replace(record, error="No network could be trained beside the probe."), {}, {})
    known = replace(record, accuracy=measured.probe_accuracy, log_loss=measured.probe_loss)
    return Tested(known, measured.probe, measured.probe)


def _right(judged: Judged) -> tuple[dict[int, bool], dict[int, bool]]:
    """Position of a held-back image -> whether the network, and the probe, find its class."""
    labels, tuned, probe = judged.task.labels, dict[int, bool](), dict[int, bool]()
    for run in judged.runs:
        epoch = judged.best if judged.task.refit else run.checkpoint.best_epoch
        outputs, rows = run.checkpoint.outputs[epoch].numpy(), run.fold.held_back
        tuned |= _by_row(rows, outputs.argmax(axis=1) == labels[rows])
        probe |= _by_row(rows, run.probe.argmax(axis=1) == labels[rows])
    return tuned, probe


def _by_row(rows: npt.NDArray[np.int64], right: npt.NDArray[np.bool_]) -> dict[int, bool]:
    return {int(row): bool(one) for row, one in zip(rows, right, strict=True)}


def _compared(stored: Tested, other: Tested, comparisons: int) -> RetestedSettings:
    """The other's record with its gain over the stored best."""
    rows = sorted(stored.right.keys() & other.right.keys())
    if not rows:
        return other.record
    one, two = (np.array([kept.right[row] for row in rows]) for kept in (stored, other))
    gain, low, high = compare_paired(one, two, comparisons=comparisons)
    return replace(other.record, gain=gain, low=low, high=high)


def compare_paired(
    one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_], *, comparisons: int = 1
) -> tuple[float, float, float]:
    """Gain in accuracy of two over one on the same images, and its interval.

    Args:
        one, two: (N,) bool, whether each image was right.
        comparisons: Number of such intervals that are to hold together, with 95 % (Bonferroni).

    Example:
        >>> one, two = np.array([True] * 50 + [False] * 50), np.array([True] * 70 + [False] * 30)
        >>> [round(value, 2) for value in compare_paired(one, two)]
        [0.2, 0.11, 0.29]
    """
    differences = two.astype(int) - one.astype(int)
    # One extra difference, as in `verify`: agreement on all images does not make a gain certain.
    error = math.sqrt(np.abs(differences).sum() + 1) / len(differences)
    half = NormalDist().inv_cdf(1 - (1 - COVERED) / 2 / max(1, comparisons)) * error
    gain = float(differences.mean())
    return gain, max(-1.0, gain - half), min(1.0, gain + half)


# ---- What is different ----------------------------------------------------------------------------------------------


def describe_changes(earlier: TuningRecord, session: Session) -> list[str]:
    """What is different from when the settings were stored, a sentence each; empty if nothing is."""
    said = _data_changes(earlier.data, session.data.summary)
    name, shape = session.backbone.spec.name, session.backbone.spec.preprocessing.height_width
    if name != earlier.backbone:
        said.append(f"The backbone is {name}, it was {earlier.backbone}.")
    if earlier.shape is not None and tuple(shape) != tuple(earlier.shape):
        said.append(f"Images are {_by(shape)} pixels, they were {_by(earlier.shape)}.")
    return said


def _data_changes(then: DataSummary, now: DataSummary) -> list[str]:
    said = []
    if added := [one for one in now.classes if one not in then.classes]:
        said.append(f"Classes are new: {_names(added)}.")
    if gone := [one for one in then.classes if one not in now.classes]:
        said.append(f"Classes are gone: {_names(gone)}.")
    if now.train_images != then.train_images:
        said.append(f"There are {now.train_images:,} training images, there were {then.train_images:,}.")
    elif not said and now.counts.get("train") != then.counts.get("train"):
        said.append("Classes have other numbers of training images.")
    if not said and then.content_id and now.content_id != then.content_id:
        said.append("Images, labels or splits are others, as many as before.")
    return said


def _names(classes: Sequence[str]) -> str:
    rest = len(classes) - CLASSES_NAMED
    return ", ".join(classes[:CLASSES_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
