"""Whether training beat the probe on held-back images, and what was kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transferkit.core.intervals import wilson_interval
from transferkit.records import Candidate, RunRecord, TrainingRecord
from transferkit.report._plots import Axis, fit_scale
from transferkit.report._words import format_count, format_number, format_percent, format_range, plural

__all__ = ["Kept", "find_probe", "held_back_interval", "is_fine_tuning", "name_held_back", "name_kept", "write_kept"]


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate on the plot of accuracies; positions in % of the width."""

    name: str
    chosen: bool
    value: str
    log_loss: str
    interval: str
    at: float
    low: float
    high: float
    kind: str = "stage"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The candidates and the one that is returned."""

    sentence: str
    how: str
    caveat: str
    scale: Axis
    rows: tuple[CandidateRow, ...]


def write_kept(record: RunRecord) -> Kept | None:
    """The candidates from probe to fine-tuned network; None where nothing but a head was fitted."""
    training = record.training
    if training is None:
        return None
    candidates = sorted(dict.fromkeys((*training.candidates, training.kept)), key=lambda one: one.weight)
    intervals = {one: held_back_interval(one, training.held_back) for one in candidates}
    scale = fit_scale([share for one in candidates for share in (one.accuracy, *intervals[one])])
    return Kept(
        sentence=_describe(training),
        how=training.how,
        caveat=_warn(record),
        scale=scale,
        rows=tuple(
            CandidateRow(
                name=_name(one),
                chosen=one == training.kept,
                value=format_percent(one.accuracy),
                log_loss=format_number(one.log_loss),
                interval=format_range(*intervals[one]),
                at=scale.place(one.accuracy),
                low=scale.place(intervals[one][0]),
                high=scale.place(intervals[one][1]),
            )
            for one in candidates
        ),
    )


def is_fine_tuning(record: RunRecord) -> bool:
    """Whether the decision was to train by gradients, whatever was kept in the end."""
    return record.training is not None or record.decision.lr > 0


def held_back_interval(one: Candidate, images: int) -> tuple[float, float]:
    """95 % Wilson interval of a candidate's accuracy; of no width where the number of images is not known."""
    if not images:
        return one.accuracy, one.accuracy
    return wilson_interval(round(one.accuracy * images), images)


def find_probe(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate that owes nothing to training."""
    return next((one for one in candidates if one.weight == 0), None)


def name_held_back(images: int) -> str:
    """The images that training did not see.

    Example:
        >>> name_held_back(1), name_held_back(280), name_held_back(0)
        ('1 held-back image', '280 held-back images', 'held-back images')
    """
    noun = "held-back image" if images == 1 else "held-back images"
    return f"{format_count(images)} {noun}" if images else noun


def name_kept(kept: Candidate) -> str:
    """What is returned: "probe", "fine-tuned" or "average"."""
    return "probe" if kept.weight == 0 else "fine-tuned" if kept.weight == 1 else "average"


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
        "probe": "Kept is the probe: nothing that training changed is in the model",
        "fine-tuned": "Kept is the fine-tuned network",
        "average": (
            f"Kept is the average of the fine-tuned network and the probe, {format_percent(kept.weight, digits=0)} to "
            f"{format_percent(1 - kept.weight, digits=0)}"
        ),
    }[name_kept(kept)]
    rival = next((one for one in training.candidates if one.weight == 1), None) if kept == probe else probe
    if rival is None:
        return f"{what}. There was nothing to compare it with."
    name = "the probe" if rival is probe else "the fine-tuned network"
    return (
        f"{what}. On the {name_held_back(training.held_back)} its accuracy is {_figures(kept)}, that of {name} "
        f"{_figures(rival)}{_count_difference(kept, rival, training.held_back)}."
    )


def _figures(one: Candidate) -> str:
    return f"{format_percent(one.accuracy)} (log loss {format_number(one.log_loss)})"


def _count_difference(kept: Candidate, rival: Candidate, images: int) -> str:
    more = round((kept.accuracy - rival.accuracy) * images)
    if not images:
        return ""
    if not more:
        return ": as many"
    return f": {plural(abs(more), 'image')} {'more' if more > 0 else 'fewer'}"


def _warn(record: RunRecord) -> str:
    caveat = "What to keep was decided on these images: expect a little less of new ones."
    return f"{caveat} The test images took no part in it." if "test" in record.metrics else caveat
