"""Inside the network while it was trained: updates and gradients, weights before and after, features and dead units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from statistics import median

from transferkit.records import HEALTHY_UPDATES, Histogram, MonitoredStage, MonitorRecord, RunRecord
from transferkit.report._words import format_number, format_percent, plural
from transferkit.report.charts.axes import Axis, class_axis, log_axis, share_axis, value_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Band, Box, Boxes, Dots, Line, Mark, Point, Tone

__all__ = ["median_size"]

ACROSS, DOWN = 236.0, 150.0
"""Size of a small chart, px: two stand side by side, or one fills a phone."""

ROW = 15.0
"""Height of a stage in a chart of bars, px."""

MAX_DOTS = 12
"""With more steps than this only the stages that stand out have dots."""

RARE = 5e-4
"""Share of all values below which a bin at the end of a histogram is not drawn."""

HEAD = "head"

BEFORE, AFTER = "at the start", "at the end"
BAND = "usual range, 0.01 to 1 %"
OTHERS = "other stages"


@CHARTS.register("updates")
def updates(record: RunRecord) -> Figure | None:
    """Update / weight ratio by stage, and the gradient's norm; None if no step was monitored."""
    monitor = _monitor(record)
    if monitor is None:
        return None
    ratios = [one for stage in monitor.stages for one in stage.ratio if one]
    charts, said = [], []
    if ratios:
        axis = log_axis([*ratios, *HEALTHY_UPDATES])
        band = Band(low=HEALTHY_UPDATES[0], high=HEALTHY_UPDATES[1], axis="y", legend=BAND)
        lines = _by_stage(monitor, lambda one: one.ratio, monitor.steps, format_number, positive=True)
        charts.append(_chart("Update / weight, per step", _steps(monitor), axis, [band, *lines]))
        said.append(_describe_ratios(monitor))
    gradients = _points(monitor.steps, monitor.gradients, "gradient norm", format_number, positive=True)
    if gradients:
        marks = [Line(points=gradients, tone="ink"), Dots(points=gradients, tone="ink", radius=2)]
        charts.append(_chart("Norm of the gradient", _steps(monitor), log_axis(p.y for p in gradients), marks))
        said.append(_describe_change("The gradient's norm, before clipping,", [one.y for one in gradients]))
    return Figure(
        section="training",
        heading="Inside the network",
        charts=charts,
        caption=" ".join([*said, f"First fold, every {monitor.every}th step."]),
    ) if charts else None  # fmt: skip


@CHARTS.register("distributions")
def distributions(record: RunRecord) -> Figure | None:
    """Absolute weights and gradients in the first and in the last monitored step; None where they are not known."""
    monitor = _monitor(record)
    stages = [] if monitor is None else [one for one in monitor.stages if len(one.weights) == 2 == len(one.gradients)]
    charts, said = [], []
    for heading, read in (("Weights, absolute", _weights), ("Gradients, absolute", _gradients)):
        start, end = (_sum([read(one)[at] for one in stages]) for at in (0, 1))
        if start is None or end is None:
            continue
        charts.append(_draw_histograms(heading, start, end))
        what = heading.partition(",")[0].lower()
        sizes = dict.fromkeys((_size(start), _size(end)))
        goes = f"goes from {' to '.join(sizes)}" if len(sizes) > 1 else f"stays at {next(iter(sizes))}"
        said.append(f"The median of the {what} {goes}.")
    legend = "Shares of the trained parameters per half power of ten; the leftmost values are zeros where they pile up."
    return Figure(section="training", charts=charts, caption=" ".join([*said, legend])) if charts else None


@CHARTS.register("features")
def features(record: RunRecord) -> Figure | None:
    """Similarity of features to those at the start, and dead units, by stage; None where neither was measured."""
    monitor = _monitor(record)
    if monitor is None:
        return None
    charts, said = [], []
    known = {one.stage: one.similarity[-1] for one in monitor.stages if one.similarity}
    ends = {name: value for name, value in known.items() if value is not None}
    if ends:
        steps = (0, *monitor.compared)
        lines = list(_by_stage(monitor, lambda one: (1.0, *one.similarity) if one.similarity else (), steps, _plain))
        values = [point.y for line in lines if isinstance(line, Line) for point in line.points]
        axis = value_axis([*values, 1.0])
        charts.append(_chart("Similarity of features to the start", value_axis(steps, name="Step"), axis, lines))
        least = min(ends, key=ends.__getitem__)
        said.append(
            f"Features of {plural(monitor.images, 'fixed image')} moved most in {least}: linear CKA "
            f"{_plain(ends[least])} to the start; 1 is unchanged up to rotation and scale."
        )
    if any(one.dead for one in monitor.stages):
        charts.append(_draw_dead([one for one in monitor.stages if one.dead]))
        worst = max((one for one in monitor.stages if one.dead), key=lambda one: one.dead[-1])
        said.append(
            f"Dead are at most {format_percent(worst.dead[-1], digits=0)} of a stage's rectified units ({worst.stage}; "
            f"{format_percent(worst.dead[0], digits=0)} at the start): they give one output for all of 8 images."
        )
    return Figure(section="training", charts=charts, caption=" ".join(said)) if charts else None


def _monitor(record: RunRecord) -> MonitorRecord | None:
    monitor = None if record.training is None else record.training.monitor
    return None if monitor is None or len(monitor.steps) < 2 else monitor  # a single step has no start and end


def _steps(monitor: MonitorRecord) -> Axis:
    return value_axis(monitor.steps, name="Step")


def _chart(heading: str, x: Axis, y: Axis, marks: Sequence[Mark], *, down: float = DOWN) -> Chart:
    return Chart(title=f"{heading}; the caption says it in words", heading=heading, x=x, y=y, marks=marks,
                 across=ACROSS, down=down, indent=46.0)  # fmt: skip


def _by_stage(
    monitor: MonitorRecord,
    read: Callable[[MonitoredStage], Sequence[float | None]],
    steps: Sequence[int],
    write: Callable[[float], str],
    *,
    positive: bool = False,
) -> Iterator[Mark]:
    """A line per stage: the head, the last stage and the first one stand out."""
    stages = [one for one in monitor.stages if any(value is not None for value in read(one))]
    trunk = [one for one in stages if one.stage != HEAD]
    tones: dict[str, Tone] = {}
    if trunk:
        tones = {trunk[0].stage: "warm", trunk[-1].stage: "accent"}
    tones[HEAD] = "ink"
    legends = {name: name for name in tones}
    for one in sorted(stages, key=lambda stage: stage.stage in tones):
        tone = tones.get(one.stage, "quiet")
        points = _points(steps, read(one), one.stage, write, positive=positive)
        legend = legends.get(one.stage, OTHERS)
        strong = one.stage in tones
        dashes = {"ink": "2 3", "warm": "6 3"}.get(tone, "")
        yield Line(points=points, tone=tone, weight=2 if strong else 1, dashes=dashes, legend=legend)
        if strong or len(points) <= MAX_DOTS:
            yield Dots(points=points, tone=tone, radius=2.5 if strong else 1.5)


def _points(
    steps: Sequence[int],
    values: Sequence[float | None],
    name: str,
    write: Callable[[float], str],
    *,
    positive: bool = False,
) -> tuple[Point, ...]:
    pairs = zip(steps, values, strict=True) if values else ()
    return tuple(
        Point(x=step, y=value, title=f"Step {step}, {name}: {write(value)}")
        for step, value in pairs
        if value is not None and (value > 0 or not positive)
    )


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _weights(one: MonitoredStage) -> tuple[Histogram, ...]:
    return one.weights


def _gradients(one: MonitoredStage) -> tuple[Histogram, ...]:
    return one.gradients


def _sum(found: Sequence[Histogram]) -> Histogram | None:
    """All of them in one; None without any value."""
    counts = tuple(map(sum, zip(*(one.counts for one in found), strict=True)))
    return Histogram(counts=counts) if sum(counts) else None


def median_size(histogram: Histogram) -> float:
    """The middle of the bin that holds the median of the absolute values.

    Example:
        >>> round(median_size(Histogram(counts=(0,) * 22 + (1, 5, 1) + (0,) * 3)), 2)
        0.56
    """
    half, edges = sum(histogram.counts) / 2, histogram.edges
    at = next(n for n, count in enumerate(accumulate(histogram.counts)) if count >= half)
    return math.sqrt(edges[at] * edges[at + 1])


def _size(histogram: Histogram) -> str:
    return format_number(float(f"{median_size(histogram):.1g}")).replace("-", "\u2011")  # no line break


def _draw_histograms(heading: str, start: Histogram, end: Histogram) -> Chart:
    parts = [(one, RARE * sum(one.counts)) for one in (start, end)]
    used = [n for n in range(len(start.counts)) if any(one.counts[n] > few for one, few in parts)]
    low, high = max(0, used[0] - 1), min(len(start.counts) - 1, used[-1] + 1)
    shown: list[tuple[Histogram, Tone, str, str]] = [(start, "quiet", "5 3", BEFORE), (end, "accent", "", AFTER)]
    lines = []
    for one, tone, dashes, name in shown:
        total = sum(one.counts)
        points = [
            Point(x=math.sqrt(one.edges[n] * one.edges[n + 1]), y=one.counts[n] / total) for n in range(low, high + 1)
        ]
        lines.append(Line(points=points, tone=tone, dashes=dashes, legend=name))
    shares = [point.y for line in lines for point in line.points]
    axis = log_axis([start.edges[low], start.edges[high + 1]], name="Absolute value (log scale)")
    return _chart(heading, axis, share_axis([0.0, *shares]), lines)


def _draw_dead(stages: Sequence[MonitoredStage]) -> Chart:
    halves: tuple[tuple[int, float, Tone, str], ...] = ((0, -0.36, "quiet", BEFORE), (-1, 0.04, "accent", AFTER))
    marks = [
        Boxes(
            boxes=[
                Box(
                    x=(0.0, one.dead[at]),
                    y=(n + shift, n + shift + 0.32),
                    title=f"{one.stage}, dead {name}: {format_percent(one.dead[at])}",
                )
                for n, one in enumerate(stages)
            ],
            tone=tone,
            gap=0.0,
            legend=name,
        )
        for at, shift, tone, name in halves
    ]
    axis = share_axis([0.0, *(share for one in stages for share in one.dead)])
    rows = class_axis([one.stage for one in stages], downwards=True)
    return _chart("Dead units", axis, rows, marks, down=max(DOWN / 2, 2 * ROW * len(stages)))


def _describe_ratios(monitor: MonitorRecord) -> str:
    typical = {
        one.stage: median(known)
        for one in monitor.stages
        if (known := [value for value in one.ratio if value is not None])
    }
    least, most = min(typical, key=typical.__getitem__), max(typical, key=typical.__getitem__)
    if least == most:
        return f"A step changes {least} by {_percent(typical[least])} of its weights (median)."
    below = [name for name, value in typical.items() if value < HEALTHY_UPDATES[0]]
    low = " Stages below the usual range learn slowly, as their rates ask for." if below else ""
    return (
        f"A step changes the weights by {_percent(typical[least])} ({least}) to {_percent(typical[most])} ({most}), "
        f"median over the steps.{low}"
    )


def _percent(share: float) -> str:
    return f"{format_number(float(f'{100 * share:.2g}'))}\u202f%"


def _describe_change(what: str, values: Sequence[float]) -> str:
    return f"{what} goes from {format_number(values[0])} to {format_number(values[-1])}."
