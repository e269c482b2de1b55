"""What the page of a hyperparameter search says: a `TuningRecord` in; figures, sentences and rows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transferkit.records import Intervention, RetestedSettings, TuningRecord, TuningTrial
from transferkit.report._words import MISSING, as_typed, format_count, format_number, format_percent, format_seconds
from transferkit.report.charts.axes import Axis, count_axis, log_axis, share_axis, value_axis
from transferkit.report.charts.figure import Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Dots, Line, Mark, Point, ReferenceLine, Tone

__all__ = ["TuningPage", "write_tuning"]

LISTED = 100
"""Trials in the table."""

DRAWN = 4
"""Hyperparameters with a chart of their own, the most important ones."""

AS_ADVISED = "as advised"

_BEST_TRIAL = "held-back accuracy of the best trial"

TONES: tuple[Tone, ...] = ("quiet", "warm", "accent")
"""Of the stages of a search, the last one in the page's accent."""


@dataclass(frozen=True, kw_only=True)
class TuningPage:
    """Everything the page says."""

    title: str
    figure: str
    what: str
    sentences: tuple[str, ...]
    history: Mapping[str, Figure]
    values: Mapping[str, Figure]
    importance: tuple[tuple[str, str, float], ...]
    space: tuple[tuple[str, str, str], ...]
    interventions: tuple[tuple[str, ...], ...]
    retest: tuple[tuple[str, ...], ...]
    retest_said: tuple[str, ...]
    names: tuple[str, ...]
    trials: tuple[tuple[str, ...], ...]
    left_out: int
    facts: tuple[tuple[str, str], ...]
    command: str


def write_tuning(record: TuningRecord) -> TuningPage:
    """The page of a search."""
    best, names = record.best, tuple(record.space)
    complete = [one for one in record.trials if one.accuracy is not None]
    ordered = [*sorted(complete, key=lambda one: (not one.is_full, *one.rank))]
    ordered += [one for one in record.trials if one.accuracy is None]
    done = {one.sentence for one in record.interventions}  # they have a table
    return TuningPage(
        title=f"{record.strategy} of {record.backbone} on {record.data.origin}",
        figure=MISSING if best is None else format_percent(best.accuracy or 0.0),
        what="held-back accuracy of the best training" if record.style == "panda" else _BEST_TRIAL,
        sentences=tuple(one for one in record.sentences if one not in done),
        history={"history": _history(record, complete)} if complete else {},
        values={"values": _values(record, complete)} if complete and _numeric(record, complete) else {},
        importance=tuple((name, format_percent(share), share) for name, share in record.importance.items()),
        space=tuple(
            (name, words, MISSING if best is None else _typed(best.values.get(name, AS_ADVISED)))
            for name, words in record.space.items()
        ),
        interventions=tuple(map(_intervention, record.interventions)),
        retest=() if record.retest is None else tuple(map(_retested, record.retest.tested)),
        retest_said=() if record.retest is None else record.retest.sentences,
        names=tuple(name.removeprefix("train.") for name in names),
        trials=tuple(_row(one, names) for one in ordered[:LISTED]),
        left_out=max(0, len(ordered) - LISTED),
        facts=(
            ("Style", record.style),
            ("Trials", format_count(len(record.trials))),
            ("Sampler", record.sampler),
            ("Pruner", record.pruner),
            ("Held-back images", format_count(record.images)),
            ("Training of all trials", format_seconds(sum(one.seconds for one in record.trials))),
            ("Study", f"{record.study} in {record.storage or 'memory'}"),
        ),
        command=as_typed(record.command),
    )


def _stages(trials: Sequence[TuningTrial]) -> dict[str, Tone]:
    """Stage -> its colour, in the order of the search."""
    names = list(dict.fromkeys(one.stage for one in trials))
    tones = TONES[-len(names) :] if len(names) < len(TONES) else TONES
    return {name: tones[min(place, len(tones) - 1)] for place, name in enumerate(names)}


def _dots(trials: Sequence[TuningTrial], place: Mapping[int, float]) -> Iterator[Mark]:
    stages = _stages(trials)
    for stage, tone in stages.items():
        own = [one for one in trials if one.stage == stage]
        epochs = max(one.epochs for one in own)
        points = [Point(x=place[one.number], y=one.accuracy or 0.0, title=_title(one)) for one in own]
        legend = f"{stage}, {epochs} epoch{'s' if epochs != 1 else ''}"
        yield Dots(points=points, tone=tone, radius=4, legend=legend if len(stages) > 1 else "")


def _title(one: TuningTrial) -> str:
    values = ", ".join(f"{name}={_typed(value)}" for name, value in one.values.items())
    return f"trial {one.number}: {format_percent(one.accuracy or 0.0)}; {values}"


def _accuracies(record: TuningRecord, trials: Sequence[TuningTrial]) -> Axis:
    known = [one.accuracy or 0.0 for one in trials]
    return share_axis([*known, *([] if record.probe is None else [record.probe])], slack=0.02, name="Accuracy")


def _probe(record: TuningRecord) -> Iterator[Mark]:
    if record.probe is not None:
        yield ReferenceLine(at=record.probe, tone="ink", weight=1.25, dashes="5 4", legend="linear probe")


def _history(record: TuningRecord, trials: Sequence[TuningTrial]) -> Figure:
    place = {one.number: float(one.number + 1) for one in trials}
    highest = accumulate((one.accuracy or 0.0 for one in trials), max)
    line = [Point(x=place[one.number], y=y) for one, y in zip(trials, highest, strict=True)]
    chart = Chart(
        title="Held-back accuracy of each trial in the order of the search; the table has the same numbers",
        x=count_axis(1, max(one.number for one in record.trials) + 1, name="Trial"),
        y=_accuracies(record, trials),
        marks=(Line(points=line, tone="quiet", weight=1.5), *_probe(record), *_dots(trials, place)),
        down=240.0,
    )
    return Figure(
        section="training",
        caption="Held-back accuracy of each trial's network. Line: the highest so far. Trials of a later stage train "
        "longer, so stages are not comparable with one another.",
        charts=(chart,),
    )


def _numeric(record: TuningRecord, trials: Sequence[TuningTrial]) -> list[str]:
    """Hyperparameters whose values are different numbers, most important first."""
    order = [*record.importance, *(name for name in record.space if name not in record.importance)]
    found = []
    for name in order:
        values = {one.values[name] for one in trials if name in one.values}
        if len(values) > 1 and all(_is_number(value) for value in values):
            found.append(name)
    return found[:DRAWN]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _values(record: TuningRecord, trials: Sequence[TuningTrial]) -> Figure:
    charts = []
    for name in _numeric(record, trials):
        known = [one for one in trials if name in one.values]
        place = {one.number: float(one.values[name]) for one in known}
        values = list(place.values())
        is_log = name in record.log_scaled and min(values) > 0
        short = name.removeprefix("train.")
        charts.append(
            Chart(
                title=f"Held-back accuracy of each trial by its {short}",
                x=log_axis(values, name=f"{short} (log scale)") if is_log else value_axis(values, name=short),
                y=_accuracies(record, known),
                marks=(*_probe(record), *_dots(known, place)),
                across=300.0,
                down=200.0,
                heading=short,
            )
        )
    return Figure(
        section="training",
        caption="The same accuracies by the value of each hyperparameter, whatever the others were. The narrow "
        "stage lies where the wide one did best.",
        charts=tuple(charts),
    )


def _intervention(one: Intervention) -> tuple[str, ...]:
    losses = (MISSING if loss is None else format_number(loss) for loss in (one.loss_before, one.loss_after))
    return (
        str(one.epoch),
        one.symptom,
        one.evidence,
        one.setting,
        f"{_typed(one.before)} → {_typed(one.after)}",
        f"from epoch {one.back_to}" if one.back_to else "from the start",
        " → ".join(losses),
        "kept" if one.is_kept else "undone",
        one.error,
    )


def _retested(one: RetestedSettings) -> tuple[str, ...]:
    values = ", ".join(f"{name}={_typed(value)}" for name, value in one.values.items())
    gain = MISSING if one.gain is None else f"{_points(one.gain)} ({_points(one.low)} to {_points(one.high)})"
    return (
        one.name,
        MISSING if one.accuracy_then is None else format_percent(one.accuracy_then),
        "failed" if one.accuracy is None else format_percent(one.accuracy),
        gain,
        one.error or f"{one.strategy}: {values or AS_ADVISED}",
    )


def _points(share: float | None) -> str:
    return f"{100 * (share or 0.0):+.1f}"


def _row(one: TuningTrial, names: Sequence[str]) -> tuple[str, ...]:
    return (
        str(one.number),
        one.stage,
        one.state if one.accuracy is None else format_percent(one.accuracy),
        MISSING if one.log_loss is None else format_number(one.log_loss),
        MISSING if one.kept is None else format_percent(one.kept),
        str(one.epochs or MISSING),
        format_seconds(one.seconds),
        *(_typed(one.values[name]) if name in one.values else MISSING for name in names),
    )


def _typed(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
