"""Whether the model's confidence can be trusted: confidence against accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import HeldOut, Metrics, SetSummary
from transferkit.report._predictions import ReliabilityBin, mean_confidence, reliability_bins
from transferkit.report._words import format_count, format_number, format_percent, format_range

__all__ = ["CalibrationSection", "write_calibration"]


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """Whether the model's confidence can be trusted: confidence against accuracy."""

    sentence: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    set_sentence: str = ""
    set_rows: tuple[tuple[str, ...], ...] = ()


def write_calibration(
    held_out: HeldOut, scores: Metrics | None, sets: tuple[SetSummary, ...] = ()
) -> CalibrationSection:
    """Calibration on the held-out images, and prediction sets."""
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
        set_sentence=_describe_sets(sets[0].images, held_out.split) if sets else "",
        set_rows=tuple(_write_set_row(one) for one in sets),
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


def _describe_sets(images: int, split: str) -> str:
    return (
        f"Prediction sets (predict with coverage=0.9) are calibrated on {format_count(images)} training images, each "
        "scored while it was held back, and checked on the "
        f"{split} images. They hold the stated coverage on average over images like the training images: neither for "
        "each class nor after a shift."
    )


def _write_set_row(one: SetSummary) -> tuple[str, ...]:
    tested = ("", "") if one.tested_coverage is None or one.tested_size is None else (
        format_percent(one.tested_coverage), f"{one.tested_size:.2f}"
    )  # fmt: skip
    return (
        format_percent(one.coverage),
        format_percent(one.held_back_coverage),
        f"{one.held_back_size:.2f}",
        *tested,
    )


def _write_bin_row(one: ReliabilityBin) -> tuple[str, ...]:
    return (
        format_count(one.count),
        format_percent(one.confidence),
        format_percent(one.accuracy),
        format_range(one.low, one.high),
    )
