"""The `RunRecord` of a finished run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transferkit.core.provenance import WORKING_FOLDER
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.measure import assess, summarise_sets
from transferkit.records import (
    Decision,
    Evidence,
    HeldBackScores,
    HeldOut,
    ReviewedLabel,
    RunRecord,
    TrainingRecord,
    ZeroShotRecord,
)
from transferkit.result.evaluation import pick_mistakes, pick_samples, sketch

__all__ = ["record_run"]


def record_run(
    data: Data,
    evidence: Evidence,
    decision: Decision,
    *,
    answers: Mapping[str, HeldOut],
    training: TrainingRecord | None,
    label_errors: tuple[ReviewedLabel, ...] = (),
    held_back_accuracy: float | None,
    held_back_scores: HeldBackScores | None = None,
    seconds: Mapping[str, float],
    environment: Mapping[str, str | int],
    command: str,
    settings: Mapping[str, Any],
    zero_shot: ZeroShotRecord | None = None,
) -> RunRecord:
    """The record of a run, with metrics and with pictures for the report.

    Args:
        data, evidence, decision, training: Of the run; `training` is None for a closed form.
        label_errors: Images whose labels are probably wrong, with pictures.
        answers: Split name -> the model's probabilities there.
        held_back_accuracy: Of what is returned, in [0, 1]; None where no image could be held back.
        held_back_scores: Of images that were held back, if there are any.
        seconds: Phase -> wall-clock seconds so far.
        environment: Versions, machine and seed.
        command: How to run this again.
        settings: The arguments of the run.
        zero_shot: Of the classes without images, which come after those of the data.
    """
    classes = (*data.summary.classes, *(() if zero_shot is None else zero_shot.unseen))
    spent, shown = dict(seconds), answers.get("test") or answers.get("val")
    with timed(spent, "verify"):
        metrics = {split: assess(found, data.folds.take(data.indices(split))) for split, found in answers.items()}
    with timed(spent, "report pictures"):
        samples = pick_samples(data, int(environment["seed"]))
        mistakes = pick_mistakes(data, shown, classes)
    return RunRecord(
        evidence=evidence,
        decision=decision,
        metrics=metrics,
        seconds={**spent, "total": sum(spent.values())},
        environment={**environment, WORKING_FOLDER: os.getcwd()},
        command=command,
        training=training,
        held_out=shown,
        samples=samples,
        mistakes=mistakes,
        label_errors=label_errors,
        settings=dict(settings),
        held_back_accuracy=held_back_accuracy,
        trained_on=sketch(data),
        zero_shot=zero_shot,
        prediction_sets=summarise_sets(held_back_scores, shown),
    )
