"""A run and new images -> a `ShiftRecord`, and the run with a remedy where one is likely to help."""

from __future__ import annotations

import time
from typing import Any

from transferkit.records import ShiftRecord
from transferkit.result import Result
from transferkit.shift.diagnosis import compare_images
from transferkit.shift.new_images import read_new_images
from transferkit.shift.reference import open_reference
from transferkit.shift.shift_options import ShiftOptions

__all__ = ["measure_shift"]


def measure_shift(
    result: Result, images: Any, options: ShiftOptions, *, data: Any = None, command: str = ""
) -> tuple[ShiftRecord, Result]:
    """What differs between a run's training images and new ones; and the run, with a remedy if one was used.

    Args:
        result: The run; it is not changed.
        images: As for `Result.predict`.
        options: How.
        data: The run's images, where it does not name them by a path.
        command: What to quote as the way to do this again.

    Raises:
        DataError: The images cannot be used, or the run keeps nothing to compare them with.
    """
    began = time.perf_counter()
    reference = open_reference(result, options, data=data)
    new = read_new_images(result, images, reference.witness, options)
    found = compare_images(reference, new, names=result.classes, alpha=options.alpha, seed=options.seed)
    record = ShiftRecord(
        model=result.evidence.backbone.name,
        reference=len(reference),
        images=len(new),
        kind=found.kind,
        alpha=options.alpha,
        stages=found.stages,
        classes=found.classes,
        estimate=found.estimate,
        unfamiliar=found.unfamiliar(new.items, result.classes, options.reject),
        rejected_at=options.reject,
        notes=(*reference.notes, *found.notes),
        failures=new.failures,
        seconds=time.perf_counter() - began,
        command=command,
    )
    return record, result
