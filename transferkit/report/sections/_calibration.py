"""Whether the model's confidence can be taken at its word."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import HeldOut, Metrics
from transferkit.report._answers import ReliabilityBin, mean_confidence, reliability_bins
from transferkit.report._plots import ReliabilityPlot, draw_reliability
from transferkit.report._words import format_count, format_number, format_percent, format_range

__all__ = ["CalibrationSection", "write_calibration"]


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """Whether the model's confidence can be taken at its word."""

    sentence: str
    facts: tuple[tuple[str, str], ...]
    plot: ReliabilityPlot
    rows: tuple[tuple[str, ...], ...]


def write_calibration(held_out: HeldOut, scores: Metrics | None) -> CalibrationSection:
    """Confidence against accuracy on the held-out images."""
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
        plot=draw_reliability(bins),
        rows=tuple(_write_bin_row(one) for one in bins),
    )


def _describe_calibration(held_out: HeldOut) -> str:
    found = mean_confidence(held_out.labels, held_out.probabilities)
    claim = (
        f"On average it claims {format_percent(found.mean)} and is right {format_percent(found.accuracy)} of the time"
    )
    if abs(found.gap) <= found.chance:
        return f"The model is about as sure as it is right. {claim}; a gap that small can be chance."
    points = f"{100 * abs(found.gap):.1f} points"
    if found.gap > 0:
        return f"The model is over-confident. {claim}: take its confidence as about {points} too high."
    return f"The model is under-confident. {claim}: it is right more often than it says, by about {points}."


def _write_bin_row(one: ReliabilityBin) -> tuple[str, ...]:
    return (
        format_count(one.count),
        format_percent(one.confidence),
        format_percent(one.accuracy),
        format_range(one.low, one.high),
    )
