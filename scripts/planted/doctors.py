"""The doctors that are consulted: each sees a script as a person has it, and names causes, the likeliest first."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from planted.script import Script
from transferkit.core.errors import TransferkitError
from transferkit.doctor import LoopWatch, check_class_order, check_serving, examine_training
from transferkit.doctor.causes import ranked
from transferkit.records import Symptom

__all__ = ["STEPS", "consult"]

STEPS = 50

COMPARED = 24
"""Pictures prepared in two ways."""


def consult(script: Script) -> dict[str, Any]:
    """Alarms and notes of our own doctor: before the run, and after its first 50 steps."""
    found = [*_before(script), *_in_use(script), *_while(script)]
    told = ranked(found)
    return {
        "alarms": [one.cause for one in told if one.severity == "alarm"],
        "notes": [one.cause for one in told if one.severity == "note"],
        "sentences": [one.sentence for one in told],
    }


def _before(script: Script) -> list[Symptom]:
    pictures = list(script.task.held_back[0][:COMPARED])
    return list(
        examine_training(
            script.model,
            script.train,
            held_back=script.held_back,
            loss=script.loss,
            optimizer=script.optimizer,
            classes=len(script.task.classes),
            preprocessing=script.expected,
            pictures=pictures,
            seed=script.seed,
        ).symptoms
    )


def _in_use(script: Script) -> list[Symptom]:
    def prepare(pipeline: Any) -> torch.Tensor:
        return torch.stack([pipeline(one, lambda: 0.5) for one in script.task.held_back[0][:COMPARED]])

    trained = prepare(script.train_pipeline.without_augmentation())
    found = list(check_class_order(script.task.classes, script.served_names))
    with suppress(TransferkitError):  # NaN: told by others
        found += check_serving(trained, prepare(script.serving_pipeline))
    return found


def _while(script: Script) -> list[Symptom]:
    with LoopWatch(script.model, script.optimizer) as watch:
        try:
            script.run(STEPS, watch.observe)
        except RuntimeError as error:  # a loss without a gradient, for example: PyTorch tells it itself
            return [Symptom(cause="crashed", severity="note", evidence=str(error), remedy="")]
    return list(watch.diagnose().symptoms)
