"""Accuracy of each stage of the frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transferkit.records import JOINED, SELECTED, ProbeScore, RunRecord
from transferkit.report._fine_tuning import is_fine_tuning
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import format_count, format_measure, format_measure_range, format_number
from transferkit.report.charts.axes import Axis, measure_axis

__all__ = ["Stages", "chosen_probe", "write_stages"]


UNKNOWN = (
    "Which stage classifies best is unknown: every class has one training image, or one group of images, so that none "
    "can be held back. Add images of another group to each class."
)


_METHODS = {
    "accuracy": "ridge classifier",
    "mean average precision": "ridge regression of the labels",
    "R2": "ridge regression",
}


@dataclass(frozen=True, kw_only=True)
class StageRow(IntervalRow):
    """One representation in the plot and the table of accuracies; `kind` is "stage", "joined", "selected" or "knn"."""

    kind: str
    method: str
    dim: str
    squared_error: str
    penalty: str


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Accuracy by stage; `tag` marks the row of the chosen stage."""

    sentence: str
    axis: Axis | None
    rows: tuple[StageRow, ...]
    tag: str = ""


def write_stages(record: RunRecord) -> Stages:
    """The probes as rows: stages from stem to top, then all joined, the selected features, and k-NN for reference."""
    evidence, chosen = record.evidence, record.decision.stage
    probes = [probe for probe in evidence.probes if probe.accuracy is not None]
    if not evidence.probes:
        return Stages(sentence="No stage was probed in this run.", axis=None, rows=())
    if not probes:
        return Stages(sentence=UNKNOWN, axis=None, rows=())
    axis = measure_axis([share for probe in probes for share in probe.interval[1:]], probes[0].measure)
    # A fine-tuned network reads a stage too, but that stage was not chosen for its accuracy when frozen.
    tag = "read" if is_fine_tuning(record) else "chosen"
    rows = [_write_stage_row(probe, chosen, axis, tag) for probe in probes]
    rows.sort(key=lambda row: ("stage", JOINED, SELECTED, "knn").index(row.kind))
    return Stages(sentence=_describe_stages(probes), axis=axis, rows=tuple(rows), tag=tag)


def _write_stage_row(probe: ProbeScore, chosen: str, axis: Axis, tag: str) -> StageRow:
    kind = "knn" if probe.method == "knn" else probe.stage if probe.stage in (JOINED, SELECTED) else "stage"
    is_chosen = kind != "knn" and probe.stage == chosen
    names = {
        "knn": f"k-NN on {probe.stage}, for reference",
        JOINED: "all stages joined",
        SELECTED: "selected features of all",
        "stage": probe.stage,
    }
    accuracy, low, high = probe.interval
    return StageRow(
        name=names[kind],
        kind=kind,
        chosen=is_chosen,
        tag=tag if is_chosen else "",
        method="k nearest neighbours" if kind == "knn" else _METHODS[probe.measure],
        dim=format_count(probe.dim),
        value=format_measure(accuracy, probe.measure),
        interval=format_measure_range(low, high, probe.measure),
        at=axis.place(accuracy),
        low=axis.place(low),
        high=axis.place(high),
        apart=kind != "stage",
        diamond=kind == "knn",
        squared_error="" if probe.squared_error is None else format_number(probe.squared_error),
        penalty="" if probe.penalty is None else format_number(probe.penalty),
    )


def _describe_stages(probes: Sequence[ProbeScore]) -> str:
    single = [probe for probe in probes if probe.method != "knn" and probe.stage not in (JOINED, SELECTED)]
    joined, selected = chosen_probe(probes, JOINED), chosen_probe(probes, SELECTED)
    if not single:
        return ""
    best, last = max(single, key=lambda probe: probe.interval[0]), single[-1]
    measure = best.measure
    does = "classifies best" if measure == "accuracy" else f"has the best {measure}"
    text = f"Of the single stages, {best.stage} {does}: {format_measure(best.interval[0], measure)}"
    if best is not last:
        text += f", against {format_measure(last.interval[0], measure)} at {last.stage}"
    if joined is not None:
        text += f". All stages joined reach {format_measure(joined.interval[0], measure)}"
    if selected is not None:
        reached = format_measure(selected.interval[0], measure)
        text += f", the {format_count(selected.dim)} features selected from them {reached}"
    return text + "."


def chosen_probe(probes: Iterable[ProbeScore], stage: str) -> ProbeScore | None:
    """The ridge probe of a stage, if there is one."""
    return next((probe for probe in probes if probe.stage == stage and probe.method == "ridge"), None)
