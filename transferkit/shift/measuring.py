"""A run and new images -> a `ShiftRecord`, and the run with a remedy where one is likely to help."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from transferkit.core.errors import OptionError, unknown_name
from transferkit.nn import Classifier
from transferkit.records import ShiftRecord
from transferkit.result import Result
from transferkit.shift.diagnosis import compare_images
from transferkit.shift.guard import choose_remedy
from transferkit.shift.new_images import read_new_images
from transferkit.shift.reference import open_reference
from transferkit.shift.remedies import REMEDIES, ShiftCase
from transferkit.shift.shift_options import ShiftOptions

__all__ = ["Shifted", "compare_with_run", "remedies_of"]


@dataclass(frozen=True)
class Shifted:
    """What a comparison found, and the run to go on with.

    Args:
        record: How the images differ.
        result: The run with the remedy that was used; the run itself if none was.
    """

    record: ShiftRecord
    result: Result


def compare_with_run(
    result: Result, images: Any, options: ShiftOptions, *, data: Any = None, command: str = ""
) -> Shifted:
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
    remedies_of(options.remedy)
    began = time.perf_counter()
    reference = open_reference(result, options, data=data)
    new = read_new_images(result, images, reference.witness, options)
    found = compare_images(reference, new, names=result.classes, alpha=options.alpha, seed=options.seed)
    situation = ShiftCase(result=result, reference=reference, new=new, found=found, seed=options.seed)
    guarded = choose_remedy(situation, remedies_of(options.remedy), device=str(options.device))
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
        remedies=guarded.trials,
        notes=(*reference.notes, *found.notes),
        failures=new.failures,
        seconds=time.perf_counter() - began,
        command=command,
    )
    return Shifted(record, result if guarded.model is None else _cured(result, guarded.model, record))


def remedies_of(asked: str) -> tuple[str, ...]:
    """Names of the remedies that `remedy=` asks for.

    Raises:
        OptionError: There is none of that name.

    Example:
        >>> remedies_of("none"), remedies_of("entropy")
        ((), ('entropy',))
    """
    if asked == "none":
        return ()
    if asked == "auto":
        return tuple(REMEDIES)
    if asked not in REMEDIES:
        raise OptionError(unknown_name("remedy", asked, ("auto", "none", *REMEDIES)))
    return (asked,)


def _cured(result: Result, model: Classifier, record: ShiftRecord) -> Result:
    """A result with another model: what was measured of the run's own does not hold for it."""
    assert record.remedy is not None
    before = result.record
    reason = f"Remedy {record.remedy.name} for other images: {record.remedy.reason}"
    decision = replace(before.decision, reasons=(*before.decision.reasons, reason))
    own = replace(
        before,
        decision=decision,
        metrics={},
        held_out=None,
        mistakes=(),
        held_back_accuracy=None,
        command=record.command or before.command,
    )
    return Result(model, own)
