"""Results of predicted labels or numbers: every split, and each label or number on the held-out one."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import (
    AnyMetrics,
    HeldOut,
    LabelMetrics,
    LabelScore,
    NumberMetrics,
    NumberScore,
    RunRecord,
)
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import (
    MISSING,
    capitalise,
    format_count,
    format_measure,
    format_measure_range,
    format_number,
    format_percent,
    format_range,
    name_split,
    order_splits,
    plural,
    quote,
)
from transferkit.report.charts.axes import Axis, measure_axis
from transferkit.report.sections._quality import describe_untested

__all__ = ["TargetQuality", "write_target_quality"]

MAX_DRAWN = 40
"""Labels or numbers that are drawn; the table has all of them."""

OPEN_ROWS = 15

Rows = tuple[tuple[str, ...], ...]

LABEL_HEADER = (
    "Images",
    "Mean average precision",
    "95 % interval",
    "F1 of all decisions",
    "All labels right",
    "Log loss",
    "Calibration error",
)
NUMBER_HEADER = ("Images", "R2", "95 % interval", "Mean absolute error", "Root mean squared error")


@dataclass(frozen=True, kw_only=True)
class TargetQuality:
    """Metrics of each split, and of each label or number.

    Args:
        sentence: The outcome.
        untested: How to score the test images, if that was not done; else empty.
        header, metrics: Table of splits.
        heading, columns, rows: Table of labels or numbers, worst first.
        axis, drawn: The same as a plot.
        caption: Below it.
        folded: Whether the table is too long to show at once.
    """

    sentence: str
    untested: str
    header: tuple[str, ...]
    metrics: Rows
    heading: str
    columns: tuple[str, ...]
    rows: Rows
    axis: Axis | None
    drawn: tuple[IntervalRow, ...]
    caption: str
    folded: bool


def write_target_quality(record: RunRecord, held_out: HeldOut | None) -> TargetQuality | None:
    """None for a run with one class per image."""
    task = record.evidence.data.task
    if task == "single_label":
        return None
    splits = order_splits(record.metrics)
    found = None if held_out is None else record.metrics.get(held_out.split)
    shown = _Labels(found) if isinstance(found, LabelMetrics) else _Numbers(found)
    drawn, axis = shown.drawn()
    return TargetQuality(
        sentence="" if held_out is None else shown.sentence(name_split(held_out.split)),
        untested=describe_untested(record),
        header=LABEL_HEADER if task == "multi_label" else NUMBER_HEADER,
        metrics=tuple(_metrics_row(split, record.metrics[split]) for split in splits),
        heading="" if held_out is None else f"Each {shown.noun}, {name_split(held_out.split)} images, worst first",
        columns=shown.columns,
        rows=shown.rows(),
        axis=axis,
        drawn=drawn,
        caption=shown.caption,
        folded=len(shown.rows()) > OPEN_ROWS,
    )


def _metrics_row(split: str, found: AnyMetrics) -> tuple[str, ...]:
    cells = [capitalise(name_split(split)), format_count(found.images), format_measure(found.score, found.measure)]
    cells.append(format_measure_range(found.low, found.high, found.measure))
    if isinstance(found, LabelMetrics):
        cells += [format_percent(found.f1), format_percent(found.exact), format_number(found.log_loss)]
        cells.append(format_percent(found.calibration_error))
    if isinstance(found, NumberMetrics):
        cells += [format_number(found.mae), format_number(found.rmse)]
    return tuple(cells)


class _Labels:
    noun = "label"
    columns = (
        "Label",
        "Images with it",
        "Average precision",
        "95 % interval",
        "Threshold",
        "Precision",
        "Recall",
        "F1",
    )
    caption = (
        "Average precision on the held-out images, with its 95 % interval; a label that is given at random has the "
        "share of images with it. Precision, recall and F1 are those of the decisions at the label's threshold."
    )

    def __init__(self, found: LabelMetrics) -> None:
        worst = sorted(found.labels, key=lambda one: 2.0 if one.average_precision is None else one.average_precision)
        self.found, self.labels = found, worst

    def sentence(self, split: str) -> str:
        """The worst and the best label."""
        known = [one for one in self.labels if one.average_precision is not None]
        exact = f"All labels are right on {format_percent(self.found.exact)} of the {split} images."
        if len(known) < 2:
            return exact
        worst, best = known[0], known[-1]
        return (
            f"{exact} Ranked best is {quote(best.name)} (average precision {_percent(best.average_precision)}), worst "
            f"{quote(worst.name)} ({_percent(worst.average_precision)}, on {plural(worst.positives, 'image')})."
        )

    def rows(self) -> Rows:
        """A row per label."""
        return tuple(_label_row(one) for one in self.labels)

    def drawn(self) -> tuple[tuple[IntervalRow, ...], Axis | None]:
        """The same as interval rows."""
        known = [one for one in self.labels if one.average_precision is not None][:MAX_DRAWN]
        if not known:
            return (), None
        ends = [end for one in known for end in (one.low or 0.0, one.high or 0.0)]
        axis = measure_axis([0.0, 1.0, *ends], self.found.measure)
        return tuple(
            IntervalRow(
                name=one.name,
                value=_percent(one.average_precision),
                interval=format_range(one.low or 0.0, one.high or 0.0),
                at=axis.place(one.average_precision or 0.0),
                low=axis.place(one.low or 0.0),
                high=axis.place(one.high or 0.0),
                note=f"on {plural(one.positives, 'image')}",
            )
            for one in known
        ), axis


class _Numbers:
    noun = "number"
    columns = ("Number", "R2", "95 % interval", "Mean absolute error", "Root mean squared error", "Bias")
    caption = "R2 on the held-out images, with its 95 % interval: 1 is exact, 0 is what predicting the mean reaches."

    def __init__(self, found: AnyMetrics | None) -> None:
        numbers = found.numbers if isinstance(found, NumberMetrics) else ()
        self.numbers = sorted(numbers, key=lambda one: 2.0 if one.r2 is None else one.r2)

    def sentence(self, split: str) -> str:
        """The errors in the numbers' units."""
        shown = "; ".join(
            f"{quote(one.name)} is off by {format_number(one.mae)} on average" for one in self.numbers[:3]
        )
        return f"On the {split} images {shown}." if shown else ""

    def rows(self) -> Rows:
        """A row per number."""
        return tuple(_number_row(one) for one in self.numbers)

    def drawn(self) -> tuple[tuple[IntervalRow, ...], Axis | None]:
        """The same as interval rows, where there are several."""
        known = [one for one in self.numbers if one.r2 is not None][:MAX_DRAWN]
        if len(known) < 2:
            return (), None
        ends = [end for one in known for end in (one.low or 0.0, one.high or 0.0)]
        axis = measure_axis([0.0, 1.0, *ends], "R2")
        return tuple(
            IntervalRow(
                name=one.name,
                value=format_measure(one.r2 or 0.0, "R2"),
                interval=format_measure_range(one.low or 0.0, one.high or 0.0, "R2"),
                at=axis.place(one.r2 or 0.0),
                low=axis.place(one.low or 0.0),
                high=axis.place(one.high or 0.0),
                note=f"off by {format_number(one.mae)}",
            )
            for one in known
        ), axis


def _percent(value: float | None) -> str:
    return MISSING if value is None else format_percent(value)


def _label_row(one: LabelScore) -> tuple[str, ...]:
    known = one.low is not None and one.high is not None
    return (
        one.name,
        format_count(one.positives),
        _percent(one.average_precision),
        format_range(one.low or 0.0, one.high or 0.0) if known else MISSING,
        format_number(one.threshold),
        _percent(one.precision),
        _percent(one.recall),
        _percent(one.f1),
    )


def _number_row(one: NumberScore) -> tuple[str, ...]:
    known = one.low is not None and one.high is not None
    return (
        one.name,
        MISSING if one.r2 is None else format_measure(one.r2, "R2"),
        format_measure_range(one.low or 0.0, one.high or 0.0, "R2") if known else MISSING,
        format_number(one.mae),
        format_number(one.rmse),
        f"{'+' if one.bias > 0 else ''}{format_number(one.bias)}",
    )
