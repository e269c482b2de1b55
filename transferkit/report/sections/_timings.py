"""Where the time went."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from transferkit.records import Evidence, RunRecord
from transferkit.report._words import format_percent, format_seconds, plural

__all__ = ["Timings", "total_seconds", "write_timings"]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Time by phase; rows are (phase, seconds, share, bar width in %)."""

    sentence: str
    rows: tuple[tuple[str, str, str, float], ...]


def write_timings(record: RunRecord) -> Timings:
    """Seconds per phase, and their shares of the whole."""
    if not record.seconds:
        return Timings(sentence="No times were recorded.", rows=())
    phases = {name: seconds for name, seconds in record.seconds.items() if name != "total" and math.isfinite(seconds)}
    total = total_seconds(record)
    longest, whole = max(phases.values(), default=0.0), max(total, math.fsum(phases.values()))
    rows = tuple(
        (
            name.replace("_", " "),
            format_seconds(seconds),
            format_percent(seconds / whole, digits=0) if whole > 0 else "–",
            round(100 * max(0.0, seconds) / longest, 2) if longest > 0 else 0.0,
        )
        for name, seconds in phases.items()
    )
    sentence = f"{format_seconds(total)} from start to end. {_describe_pass(record)}"
    return Timings(sentence=sentence, rows=rows)


def _describe_pass(record: RunRecord) -> str:
    computed, views = record.evidence.images_computed, record.evidence.views
    further = 0 if views is None else sum(score.computed for score in views.scores[1:])
    if computed or further:
        more = f", and {plural(further, 'time')} more for further views" if further else ""
        said = f"The backbone ran over {plural(computed, 'image')}{more}; other features came from the cache."
    else:
        said = "The backbone was not run: all features came from the cache."
    said = " ".join([said, *_describe_engine(record.evidence)])
    if record.training is None or not record.training.epochs:
        return said
    epochs = record.training.epochs
    each = math.fsum(epoch.seconds for epoch in epochs) / len(epochs)
    trained = f"Then {plural(len(epochs), 'epoch')} of about {format_seconds(each)} each, validation included."
    return f"Before training: {said[:1].lower()}{said[1:]} {trained}"


def _describe_engine(evidence: Evidence) -> Iterator[str]:
    """What computed the features, how it was checked, and whether reading or computing took longer."""
    engine, spent = evidence.engine, evidence.worker_seconds
    if engine is not None:
        yield (
            f"Features were computed by {engine.name}; on {plural(engine.images, 'image')} they differed from the "
            f"network's own by at most {engine.difference:.0e} of the largest, with "
            f"{format_percent(engine.same_class, digits=0)} the same class."
        )
        yield from engine.reasons
    whole = math.fsum(spent.values())
    if whole > 0:
        reading = spent.get("reading", 0.0) / whole
        slower = "Reading images" if reading > 0.5 else "The network"
        yield (
            f"{slower} was the bottleneck: the pass spent {format_percent(reading, digits=0)} of its threads' time on "
            "reading images."
        )


def total_seconds(record: RunRecord) -> float:
    """Wall-clock seconds; the sum of the phases if no total was recorded; NaN if nothing was."""
    if "total" in record.seconds:
        return record.seconds["total"]
    return math.fsum(record.seconds.values()) if record.seconds else math.nan
