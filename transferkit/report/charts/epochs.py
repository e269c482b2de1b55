"""Loss, held-back accuracy and learning rate by epoch, side by side over the same axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from transferkit.records import Epoch, RunRecord
from transferkit.report._fine_tuning import find_best_epoch, find_phases, find_probe
from transferkit.report._words import format_measure, format_number
from transferkit.report.charts.axes import Axis, count_axis, measure_axis, value_axis
from transferkit.report.charts.figure import CHARTS, Figure
from transferkit.report.charts.frame import Chart
from transferkit.report.charts.marks import Band, Dots, Line, Mark, Point, ReferenceLine

__all__ = ["MAX_DOTS", "draw_epochs"]

MAX_DOTS = 30
"""With more epochs than this only the best one has a dot: more would hide the line."""

TRAIN, HELD_BACK = "training, with everything added to the loss", "held-back images"
PROBE = "the probe on the same images"


@CHARTS.register("epochs")
def epochs(record: RunRecord) -> Figure | None:
    """Training history of a fine-tuned network; None without epochs."""
    if record.training is None:
        return None
    best, probe = find_best_epoch(record.training), find_probe(record.training.candidates)
    charts = draw_epochs(
        record.training.epochs,
        best=None if best is None else best.number,
        probe=None if probe is None else probe.accuracy,
        measure=record.training.kept.measure,
    )
    caption = [] if best is None else ["Vertical line: the epoch with the best result on the held-back images."]
    phases = find_phases(record.training.epochs)
    if len(phases) > 1:
        caption.append(
            f"Phases: {', '.join(f'{n}: {phase.name} ({phase.span})' for n, phase in enumerate(phases, 1))}."
        )
    return Figure(section="training", charts=charts, caption=" ".join(caption)) if charts else None


def draw_epochs(
    epochs: Sequence[Epoch], *, best: int | None, probe: float | None = None, measure: str = "accuracy"
) -> tuple[Chart, ...]:
    """Loss, held-back accuracy and learning rate by epoch; a quantity that was never measured has no chart.

    Args:
        epochs: In order. Values that are not finite are left out.
        best: Number of the epoch to mark, from 0 as in `Epoch`; None marks none.
        probe: Accuracy of the closed-form probe on the same held-back images, in [0, 1].
        measure: What the held-back accuracy is.
    """
    draw = _Drawer(epochs, best)
    train = draw.points("training loss ", lambda epoch: epoch.train_loss, format_number)
    held_back = draw.points("held back ", lambda epoch: epoch.val_loss, format_number)
    accuracy = draw.points("held back ", lambda epoch: epoch.val_accuracy, partial(format_measure, measure=measure))
    rates = draw.points("", lambda epoch: epoch.lr, format_number)
    charts = []
    if train or held_back:
        axis = value_axis(point.y for point in (*train, *held_back))
        lines = (
            Line(points=train, tone="quiet", weight=1.5, dashes="5 3", legend=TRAIN if train else ""),
            Line(points=held_back, legend=HELD_BACK if held_back else ""),
        )
        charts.append(draw.chart("Loss" if measure == "R2" else "Loss, nats", axis, *lines))
    if accuracy:
        rules = [] if probe is None else [ReferenceLine(at=probe, dashes="2 3", legend=PROBE)]
        axis = measure_axis([point.y for point in accuracy] + [rule.at for rule in rules], measure, slack=0.02)
        charts.append(draw.chart(f"Held-back {measure}", axis, *rules, Line(points=accuracy, legend=HELD_BACK)))
    if rates:
        axis = value_axis([0.0, *(point.y for point in rates)])
        charts.append(draw.chart("Highest learning rate", axis, Line(points=rates, tone="ink")))
    return tuple(charts)


class _Drawer:
    """Draws charts that share an axis of epochs, its phases and its best epoch."""

    def __init__(self, epochs: Sequence[Epoch], best: int | None) -> None:
        self.epochs = epochs
        self.best = best if best in [epoch.number for epoch in epochs] else None

    def points(
        self, name: str, read: Callable[[Epoch], float | None], write: Callable[[float], str]
    ) -> tuple[Point, ...]:
        """The finite values of one quantity, over epochs counted from 1."""
        values = [(epoch, read(epoch)) for epoch in self.epochs]
        return tuple(
            Point(
                x=epoch.number + 1,
                y=value,
                title=f"Epoch {epoch.number + 1}, {epoch.phase}: {name}{write(value)}",
                radius=5 if epoch.number == self.best else None,
            )
            for epoch, value in values
            if value is not None and math.isfinite(value)
        )

    def chart(self, heading: str, y: Axis, *marks: ReferenceLine | Line) -> Chart:
        """One quantity, or two in the same unit."""
        return Chart(
            title=f"{heading} by epoch; the table has the same numbers",
            heading=heading,
            x=count_axis(self.epochs[0].number + 1, self.epochs[-1].number + 1, name="Epoch"),
            y=y,
            marks=(*self._frame(), *(part for mark in marks for part in self._dotted(mark))),
            across=236.0,
            down=150.0,
            indent=46.0,
        )

    def _frame(self) -> Iterator[Mark]:
        if self.best is not None:
            yield ReferenceLine(at=self.best + 1, axis="x", label=f"epoch {self.best + 1}", tone="accent", weight=1)
        phases = find_phases(self.epochs)
        for n, phase in enumerate(phases if len(phases) > 1 else (), start=1):
            yield Band(
                low=phase.first - 0.5,
                high=phase.last + 0.5,
                labels=(f"phase {n}", f"{n}"),
                title=f"Phase {n}: {phase.name}",
                shaded=n % 2 == 1,
            )

    def _dotted(self, mark: ReferenceLine | Line) -> Iterator[Mark]:
        yield mark
        if isinstance(mark, Line):
            points = mark.points if len(mark.points) <= MAX_DOTS else [one for one in mark.points if one.radius]
            yield Dots(points=points, tone=mark.tone, radius=3)
