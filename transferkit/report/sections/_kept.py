"""Whether fine-tuning beat the probe on held-back images, and which of them was kept."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import Candidate, RunRecord, TrainingRecord
from transferkit.report._fine_tuning import find_probe, held_back_interval, name_held_back, name_kept
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import format_measure, format_measure_range, format_number, format_percent, plural
from transferkit.report.charts.axes import Axis, measure_axis

__all__ = ["Kept", "write_kept"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The candidates and the one that is returned."""

    sentence: str
    how: str
    caveat: str
    axis: Axis
    rows: tuple[IntervalRow, ...]


def write_kept(record: RunRecord) -> Kept | None:
    """The candidates from probe to fine-tuned network; None if only a head was fitted."""
    training = record.training
    if training is None:
        return None
    candidates = sorted(dict.fromkeys((*training.candidates, training.kept)), key=lambda one: one.weight)
    intervals = {one: held_back_interval(one, training.held_back) for one in candidates}
    shares = [share for one in candidates for share in (one.accuracy, *intervals[one])]
    axis = measure_axis(shares, training.kept.measure)
    return Kept(
        sentence=_describe(training),
        how=training.how,
        caveat=_warn(record),
        axis=axis,
        rows=tuple(_write_row(one, axis, intervals[one], chosen=one == training.kept) for one in candidates),
    )


def _write_row(one: Candidate, axis: Axis, interval: tuple[float, float], *, chosen: bool) -> IntervalRow:
    return IntervalRow(
        name=_name(one),
        value=format_measure(one.accuracy, one.measure),
        interval=format_measure_range(*interval, one.measure),
        at=axis.place(one.accuracy),
        low=axis.place(interval[0]),
        high=axis.place(interval[1]),
        note=f"{_loss(one)} {format_number(one.log_loss)}",
        chosen=chosen,
        tag="kept" if chosen else "",
    )


def _name(one: Candidate) -> str:
    share = format_percent(one.weight, digits=0)
    return {
        "probe": "probe, frozen features",
        "fine-tuned": "fine-tuned network",
        "average": f"average, {share} fine-tuned",
    }[name_kept(one)]


def _describe(training: TrainingRecord) -> str:
    kept, probe = training.kept, find_probe(training.candidates)
    what = {
        "probe": "The probe was kept: the returned model contains nothing from fine-tuning",
        "fine-tuned": "The fine-tuned network was kept",
        "average": (
            "The average of the fine-tuned network and the probe was kept, weighted "
            f"{format_percent(kept.weight, digits=0)} to {format_percent(1 - kept.weight, digits=0)}"
        ),
    }[name_kept(kept)]
    rival = next((one for one in training.candidates if one.weight == 1), None) if kept == probe else probe
    if rival is None:
        return f"{what}. There was nothing to compare it with."
    name = "the probe's" if rival is probe else "the fine-tuned network's"
    return (
        f"{what}. On the {name_held_back(training.held_back)} its {kept.measure} is {_figures(kept)}, {name} is "
        f"{_figures(rival)}{_count_difference(kept, rival, training.held_back)}."
    )


def _figures(one: Candidate) -> str:
    return f"{format_measure(one.accuracy, one.measure)} ({_loss(one)} {format_number(one.log_loss)})"


def _loss(one: Candidate) -> str:
    return "squared error" if one.measure == "R2" else "log loss"


def _count_difference(kept: Candidate, rival: Candidate, images: int) -> str:
    more = round((kept.accuracy - rival.accuracy) * images)
    if not images or kept.measure != "accuracy":
        return ""
    if not more:
        return ": as many images classified correctly"
    return f": {plural(abs(more), 'image')} {'more' if more > 0 else 'fewer'} classified correctly"


def _warn(record: RunRecord) -> str:
    measure = record.evidence.data.measure
    caveat = f"The choice was made on these images; expect slightly lower {measure} on new ones."
    return f"{caveat} The test images played no part in it." if "test" in record.metrics else caveat
