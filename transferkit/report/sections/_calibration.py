"""Whether the model's confidence can be trusted: confidence against accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import HeldOut, Metrics
from transferkit.report._predictions import ReliabilityBin, mean_confidence, reliability_bins
from transferkit.report._words import format_count, format_number, format_percent, format_range

__all__ = ["CalibrationSection", "write_calibration"]


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """Whether the model's confidence can be trusted: confidence against accuracy."""

    sentence: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]


def write_calibration(held_out: HeldOut, scores: Metrics | None) -> CalibrationSection:
    """Calibration on the held-out images."""
    bins = reliability_bins(held_out.labels, held_out.probabilities)
    facts = [("Images", format_count(len(held_out.labels))), ("Bins of equal size", format_count(len(bins)))]
    if scores is not None:
        facts = [
            ("Expected calibration error", format_percent(scores.calibration_error)),
            ("Log loss", f"{format_number(scores.log_loss)} nats"),
            *facts,
        ]
    return CalibrationSection(
        sentence=_describe_calibration(held_out),
        facts=tuple(facts),
        rows=tuple(_write_bin_row(one) for one in bins),
    )


def _describe_calibration(held_out: HeldOut) -> str:
    found = mean_confidence(held_out.labels, held_out.probabilities)
    both = f"Its mean confidence is {format_percent(found.mean)}, its accuracy {format_percent(found.accuracy)}"
    if abs(found.gap) <= found.chance:
        return f"The model is well calibrated on average. {both}; a difference this small can be chance."
    points = f"{100 * abs(found.gap):.1f} points"
    if found.gap > 0:
        return f"The model is over-confident. {both}: its confidence is about {points} too high."
    return f"The model is under-confident. {both}: its confidence is about {points} too low."


def _write_bin_row(one: ReliabilityBin) -> tuple[str, ...]:
    return (
        format_count(one.count),
        format_percent(one.confidence),
        format_percent(one.accuracy),
        format_range(one.low, one.high),
    )
