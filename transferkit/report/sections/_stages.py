"""How far each stage of the frozen backbone gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transferkit.records import JOINED, SELECTED, ProbeScore, RunRecord
from transferkit.report._plots import Axis, CurvePlot, draw_curves, fit_scale
from transferkit.report._words import format_count, format_number, format_percent, format_range
from transferkit.report.sections._kept import is_fine_tuning

__all__ = ["Stages", "write_stages", "chosen_probe"]


UNKNOWN = (
    "Which stage classifies best is unknown: every class has one training image, or one group of images, so that none "
    "can be held back. Add images of another group to each class."
)


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One representation on the plot of accuracies; positions in % of the width."""

    name: str
    kind: str
    chosen: bool
    tag: str
    method: str
    dim: str
    value: str
    interval: str
    at: float
    low: float
    high: float
    squared_error: str
    penalty: str


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Accuracy by stage, and by stage and number of images; `tag` marks the row of the decided stage."""

    sentence: str
    scale: Axis | None
    rows: tuple[StageRow, ...]
    curves: CurvePlot | None = None
    tag: str = ""


def write_stages(record: RunRecord) -> Stages:
    """The probes as rows of a plot: stages from stem to top, then all joined, selected, then the reference."""
    evidence, chosen = record.evidence, record.decision.stage
    probes = [probe for probe in evidence.probes if probe.accuracy is not None]
    if not evidence.probes:
        return Stages(sentence="No stage was probed in this run.", scale=None, rows=())
    if not probes:
        return Stages(sentence=UNKNOWN, scale=None, rows=())
    scale = fit_scale([share for probe in probes for share in probe.interval[1:]])
    # A fine-tuned network reads a stage too, but what was measured of that stage when it was frozen was not chosen.
    tag = "read" if is_fine_tuning(record) else "chosen"
    rows = [_write_stage_row(probe, chosen, scale, tag) for probe in probes]
    rows.sort(key=lambda row: ("stage", JOINED, SELECTED, "knn").index(row.kind))
    curves = draw_curves(evidence.curves) if len({point.images for point in evidence.curves}) > 1 else None
    return Stages(sentence=_describe_stages(probes), scale=scale, rows=tuple(rows), curves=curves, tag=tag)


def _write_stage_row(probe: ProbeScore, chosen: str, scale: Axis, tag: str) -> StageRow:
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
        method="k nearest neighbours" if kind == "knn" else "ridge classifier",
        dim=format_count(probe.dim),
        value=format_percent(accuracy),
        interval=format_range(low, high),
        at=scale.place(accuracy),
        low=scale.place(low),
        high=scale.place(high),
        squared_error="" if probe.squared_error is None else format_number(probe.squared_error),
        penalty="" if probe.penalty is None else format_number(probe.penalty),
    )


def _describe_stages(probes: Sequence[ProbeScore]) -> str:
    single = [probe for probe in probes if probe.method != "knn" and probe.stage not in (JOINED, SELECTED)]
    joined, selected = chosen_probe(probes, JOINED), chosen_probe(probes, SELECTED)
    if not single:
        return ""
    best, last = max(single, key=lambda probe: probe.interval[0]), single[-1]
    text = f"Of the single stages, {best.stage} classifies best: {format_percent(best.interval[0])}"
    if best is not last:
        text += f", against {format_percent(last.interval[0])} at {last.stage}"
    if joined is not None:
        text += f". All stages joined reach {format_percent(joined.interval[0])}"
    if selected is not None:
        text += f", the {format_count(selected.dim)} features selected of them {format_percent(selected.interval[0])}"
    return text + "."


def chosen_probe(probes: Iterable[ProbeScore], stage: str) -> ProbeScore | None:
    """The ridge probe of a stage, if there is one."""
    return next((probe for probe in probes if probe.stage == stage and probe.method == "ridge"), None)
