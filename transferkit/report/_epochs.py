"""Where epochs lie in a plot: loss, accuracy and learning rate as small multiples over one axis. Numbers in, positions
out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transferkit.records import Epoch
from transferkit.report._plots import LETTER, MAX_TICKS, Axis, Label, fit_scale
from transferkit.report._words import format_number, format_percent

__all__ = ["Band", "EpochPanel", "EpochPhase", "draw_epochs", "find_phases"]

ROUND = (1, 2, 5, 10)
"""Distances between ticks that people read at ease, in units of a power of ten."""

DOTTED = 30
"""With more epochs than this only the best one has a dot: more would hide the line."""

TINY = 1e-12
"""Values that differ by less, of whatever they are, are drawn as equal."""

BAND_LABELS = ("phase {}", "{}")
"""What is written over the band of a phase: the first of these that fits."""


@dataclass(frozen=True, kw_only=True)
class EpochPhase:
    """Epochs that follow one another under one set of rules.

    Args:
        name: As the phase is called.
        first, last: Its epochs, from 1.
    """

    name: str
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Band:
    """Where a phase lies; in px. `label` is empty where there is no room for it."""

    x: float
    width: float
    label: str
    title: str


@dataclass(frozen=True, kw_only=True)
class EpochDot:
    """What one epoch measured; in px."""

    x: float
    y: float
    title: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class EpochLine:
    """One quantity over the epochs.

    Args:
        kind: "train", "held-back" or "rate".
        path: SVG path through all its points.
        dots: Those that are drawn: all of them, or the best one if there are many.
    """

    kind: str
    path: str
    dots: tuple[EpochDot, ...]


@dataclass(frozen=True, kw_only=True)
class EpochPanel:
    """One of the small multiples; lengths in px.

    Args:
        title: What the vertical axis is.
        columns: Epochs, from 1.
        rows: Values.
        bands: The phases, if there are several.
        lines: What matters most comes last, on top.
        best: The epoch whose weights were taken; None where nothing was held back to tell.
        probe: Height of the probe's accuracy; None but in the panel of accuracies.
    """

    title: str
    width: float
    height: float
    left: float
    top: float
    across: float
    down: float
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    bands: tuple[Band, ...]
    lines: tuple[EpochLine, ...]
    best: Label | None
    probe: float | None = None


@dataclass(frozen=True)
class _Frame:
    """What all panels share: the axis of epochs."""

    epochs: tuple[Epoch, ...]
    best: int | None
    left: float = 46.0
    top: float = 36.0
    across: float = 236.0
    down: float = 150.0

    @property
    def first(self) -> int:
        return self.epochs[0].number

    @property
    def slots(self) -> int:
        return self.epochs[-1].number - self.first + 1

    def edge(self, number: float) -> float:
        """Where an epoch begins."""
        return round(self.left + self.across * (number - self.first) / self.slots, 2)

    def middle(self, number: int) -> float:
        return self.edge(number + 0.5)


def draw_epochs(epochs: Sequence[Epoch], *, best: int | None, probe: float | None = None) -> tuple[EpochPanel, ...]:
    """Loss, held-back accuracy and learning rate by epoch; a quantity that was never measured has no panel.

    Args:
        epochs: In order. Values that are not finite are left out.
        best: Number of the epoch to mark, from 0 as in `Epoch`; None marks none.
        probe: Accuracy of the closed-form probe on the same held-back images, in [0, 1].
    """
    if not epochs:
        return ()
    frame = _Frame(tuple(epochs), best)
    losses = {"train": _points(epochs, lambda e: e.train_loss), "held-back": _points(epochs, lambda e: e.val_loss)}
    accuracies = _points(epochs, lambda e: e.val_accuracy)
    rates = _points(epochs, lambda e: e.lr)
    panels = []
    if any(losses.values()):
        scale = fit_axis(value for points in losses.values() for _, value in points)
        panels.append(_panel(frame, "Loss, nats", scale, losses, format_number))
    if accuracies:
        shares = [value for _, value in accuracies]
        scale = fit_scale([*shares, *([] if probe is None else [probe])], slack=0.02)
        panels.append(
            _panel(frame, "Held-back accuracy", scale, {"held-back": accuracies}, format_percent, probe=probe)
        )
    if rates:
        scale = fit_axis([0.0, *(value for _, value in rates)])
        panels.append(_panel(frame, "Highest learning rate", scale, {"rate": rates}, format_number))
    return tuple(panels)


def find_phases(epochs: Iterable[Epoch]) -> tuple[EpochPhase, ...]:
    """The phases in the order in which they ran."""
    runs = []
    for name, members in itertools.groupby(epochs, key=lambda epoch: epoch.phase):
        numbers = [epoch.number + 1 for epoch in members]
        runs.append(EpochPhase(name=name, first=numbers[0], last=numbers[-1]))
    return tuple(runs)


def fit_axis(values: Iterable[float]) -> Axis:
    """A scale with round ends that holds all values, from 0 on unless they all lie far above it.

    Args:
        values: Finite, one or more.

    Example:
        >>> [tick.text for tick in fit_axis([0.31, 1.9]).ticks]
        ['0', '0.5', '1', '1.5', '2']
    """
    found = list(values)
    least, most = min(found), max(found)
    # A loss that fell by less than a half would be a flat line above an empty half of the panel.
    base = least if 0 < most / 2 < least < most else min(least, 0.0)
    reach = next(size for size in (most - base, abs(most), 1.0) if size > TINY)
    power = 10.0 ** math.floor(math.log10(reach / (MAX_TICKS - 1)))
    for unit in ROUND:
        step = unit * power
        # The small shift keeps 0.6 / 0.2 = 2.9999999999999996 from opening one more step.
        first, last = math.floor(base / step + 1e-9), math.ceil((base + reach) / step - 1e-9)
        if last - first < MAX_TICKS:
            break
    places = [100 * (n - first) / (last - first) for n in range(first, last + 1)]
    ticks = tuple(
        Label(at=round(at, 3), text=format_number(float(f"{n * step:.6g}")))
        for n, at in zip(range(first, last + 1), places, strict=True)
    )
    return Axis(low=first * step, high=last * step, ticks=ticks)


Points = list[tuple[Epoch, float]]


def _points(epochs: Iterable[Epoch], read: Callable[[Epoch], float | None]) -> Points:
    found = [(epoch, read(epoch)) for epoch in epochs]
    return [(epoch, value) for epoch, value in found if value is not None and math.isfinite(value)]


def _panel(
    frame: _Frame,
    title: str,
    scale: Axis,
    quantities: dict[str, Points],
    write: Callable[[float], str],
    *,
    probe: float | None = None,
) -> EpochPanel:
    def lower(value: float) -> float:
        return round(frame.top + frame.down * (1 - scale.place(value) / 100), 2)

    lines = tuple(_line(frame, kind, points, lower=lower, write=write) for kind, points in quantities.items() if points)
    return EpochPanel(
        title=title,
        width=frame.left + frame.across + 12,
        height=frame.top + frame.down + 40,
        left=frame.left,
        top=frame.top,
        across=frame.across,
        down=frame.down,
        columns=_columns(frame),
        rows=tuple(
            Label(at=round(frame.top + frame.down * (1 - tick.at / 100), 2), text=tick.text) for tick in scale.ticks
        ),
        bands=_bands(frame),
        lines=lines,
        best=_best(frame),
        probe=None if probe is None else lower(probe),
    )


def _line(
    frame: _Frame, kind: str, points: Points, *, lower: Callable[[float], float], write: Callable[[float], str]
) -> EpochLine:
    names = {"train": "training loss ", "held-back": "held back ", "rate": ""}
    dots = tuple(
        EpochDot(
            x=frame.middle(epoch.number),
            y=lower(value),
            title=f"Epoch {epoch.number + 1}, {epoch.phase}: {names[kind]}{write(value)}",
            best=epoch.number == frame.best,
        )
        for epoch, value in points
    )
    return EpochLine(
        kind=kind,
        path="M" + " L".join(f"{dot.x} {dot.y}" for dot in dots),
        dots=dots if len(dots) <= DOTTED else tuple(dot for dot in dots if dot.best),
    )


def _columns(frame: _Frame) -> tuple[Label, ...]:
    """Round numbers of epochs, counted from 1."""
    first, last = frame.first + 1, frame.first + frame.slots
    steps = (unit * 10**power for power in itertools.count() for unit in ROUND[:3])
    step = next(step for step in steps if last // step - (first - 1) // step <= MAX_TICKS)
    marks = range(-(-first // step) * step, last + 1, step)
    return tuple(Label(at=frame.middle(mark - 1), text=str(mark)) for mark in marks)


def _bands(frame: _Frame) -> tuple[Band, ...]:
    phases = find_phases(frame.epochs)
    if len(phases) < 2:
        return ()
    bands = []
    for n, phase in enumerate(phases, start=1):
        x = frame.edge(phase.first - 1)
        width = round(frame.edge(phase.last) - x, 2)
        labels = [form.format(n) for form in BAND_LABELS]
        label = next((text for text in labels if (len(text) + 1) * LETTER <= width), "")
        bands.append(Band(x=x, width=width, label=label, title=f"Phase {n}: {phase.name}"))
    return tuple(bands)


def _best(frame: _Frame) -> Label | None:
    if frame.best is None or frame.best not in [epoch.number for epoch in frame.epochs]:
        return None
    return Label(at=frame.middle(frame.best), text=f"epoch {frame.best + 1}")
