"""What a monitor saw, as a compact record, and what it and the curves say: a paragraph if all is well, or symptoms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from transferkit.doctor.curve_reading import read_curves
from transferkit.doctor.curves import Curves
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.step_measures import LayerStep, MonitoredStep
from transferkit.records import (
    HEALTHY_UPDATES,
    Diagnosis,
    Histogram,
    MonitoredStage,
    MonitorRecord,
    Symptom,
    TrainingRecord,
)

__all__ = ["diagnose_training", "read_monitor", "read_training", "record_monitor"]

MOST_STEPS = 120
"""Steps in a record; of more, evenly spaced ones."""

DIGITS = 4
"""Significant digits of a number in a record."""

TOO_LARGE, TOO_SMALL = 10 * HEALTHY_UPDATES[1], HEALTHY_UPDATES[0] / 100
"""Median update / weight ratios that are a symptom: far outside of what is healthy. Biases and norms alone have large
ones, early stages under small rates small ones, and neither harms."""

FEWEST = 3
"""Monitored steps whose median says something."""

DYING, GROWN = 0.98, 0.25
"""Share of dead units at the end, and growth of it, that is a symptom. Late units of a healthy network answer to few
classes, so that eight images find most of them silent: 87 % at the top of EfficientNet-Lite0 fine-tuned on digits, 41 %
before, test accuracy 99.4 %."""


def record_monitor(monitor: TrainingMonitor, stages: Mapping[str, str], *, capsule: str = "") -> MonitorRecord:
    """What a monitor recorded, compact.

    Args:
        monitor: During training or after it.
        stages: Path of a layer -> the stage, or group of parameters, that it belongs to.
        capsule: Path of the file with the first step that was not finite.
    """
    every = max(1, -(-len(monitor.steps) // MOST_STEPS))
    shown = monitor.steps[::every]
    compared = sorted(monitor.similarities)
    compared = compared[:: max(1, -(-len(compared) // MOST_STEPS))]
    similarities = [monitor.similarities[count] for count in compared]
    names = dict.fromkeys(name for one in (*monitor.steps[:1], *monitor.steps[-1:]) for name in one.groups)
    names |= dict.fromkeys(name for one in similarities[:1] for name in one)
    ends = [*monitor.steps[:1], *monitor.steps[-1:]]
    return MonitorRecord(
        every=monitor.every * every,
        steps=tuple(one.step for one in shown),
        losses=tuple(_short(one.loss) for one in shown),
        gradients=tuple(_short(one.gradient) for one in shown),
        stages=tuple(
            replace(
                _series(name, shown, monitor.steps),
                similarity=tuple(_short(one.get(name)) for one in similarities),
                outputs=tuple(
                    _joined([layer.values for layer in layers]) for layers in _of_stage(name, stages, ends) if layers
                ),
                dead=_means(_of_stage(name, stages, ends), "dead"),
                saturated=_means(_of_stage(name, stages, ends), "saturated"),
                statistics_drift=_drift(name, stages, ends[-1:]),
            )
            for name in _in_order(names, stages)
        ),
        compared=tuple(compared),
        images=monitor.compared_images,
        missing=monitor.missing,
        capsule=capsule,
    )


def _in_order(names: Iterable[str], stages: Mapping[str, str]) -> list[str]:
    """Stem -> head, as the network's layers are; what has no layer of its own comes where it was."""
    known = list(names)
    order = [stage for stage in dict.fromkeys(stages.values()) if stage in known]
    if set(order) >= set(known) - {"head"}:
        return [*order, *(name for name in known if name not in order)]
    return known


def _series(name: str, shown: Sequence[MonitoredStep], steps: Sequence[MonitoredStep]) -> MonitoredStage:
    groups = [one.groups.get(name) for one in shown]
    trained = [None if one is None or (not one.update and not one.gradient) else one for one in groups]
    counted = [
        (group.weights, group.gradients)
        for one in steps
        if (group := one.groups.get(name)) is not None
        and group.weights is not None
        and group.gradients is not None
        and (any(group.gradients.counts) or group.gradients.not_finite > 0)
    ]
    ends = [*counted[:1], *counted[-1:]]
    return MonitoredStage(
        stage=name,
        ratio=tuple(None if one is None else _short(one.ratio) for one in trained),
        gradient=tuple(None if one is None else _short(one.gradient) for one in trained),
        noise=tuple(None if one is None else _short(one.noise) for one in trained),
        weights=tuple(weights for weights, _ in ends),
        gradients=tuple(gradients for _, gradients in ends),
    )


def _of_stage(name: str, stages: Mapping[str, str], ends: Sequence[MonitoredStep]) -> list[list[LayerStep]]:
    return [[layer for path, layer in one.layers.items() if stages.get(path) == name] for one in ends]


def _joined(histograms: Sequence[Histogram]) -> Histogram:
    """One of the values of all of them."""
    counts = tuple(map(sum, zip(*(one.counts for one in histograms), strict=True)))
    return Histogram(counts=counts, not_finite=sum(one.not_finite for one in histograms))


def _means(layers: Sequence[Sequence[LayerStep]], what: str) -> tuple[float, ...]:
    """The mean over the layers that have such a share, in the first and the last step; empty where none has."""
    shares = [[share for one in step if (share := getattr(one, what)) is not None] for step in layers]
    return tuple(round(fmean(one), DIGITS) for one in shares) if shares and all(shares) else ()


def _drift(name: str, stages: Mapping[str, str], last: Sequence[MonitoredStep]) -> float | None:
    found = [moved for one in last for path, moved in one.drift.items() if stages.get(path) == name]
    return _short(fmean(found)) if found else None


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


# ---- What it says ---------------------------------------------------------------------------------------------------


def read_monitor(record: MonitorRecord) -> tuple[Symptom, ...]:
    """What the numbers of a fit mean, alarms first; empty for a healthy one.

    Example:
        >>> stage = MonitoredStage(stage="top", ratio=(0.3, 0.4, 0.2), gradient=(1.0,) * 3, noise=(None, 0.5, 0.5))
        >>> record = MonitorRecord(
        ...     every=20, steps=(0, 20, 40), losses=(2.0, 2.1, 2.2), gradients=(1.0,) * 3, stages=(stage,)
        ... )
        >>> [one.cause for one in read_monitor(record)]
        ['updates_too_large']
    """
    found = [*_updates(record), *_dying(record), *_lost_gradients(record)]
    return tuple(sorted(found, key=lambda one: one.severity != "alarm"))


def _updates(record: MonitorRecord) -> Iterator[Symptom]:
    ratios = _ratios(record, fewest=FEWEST)
    large = {name: ratio for name, ratio in ratios.items() if ratio > TOO_LARGE}
    if large:
        worst = max(large, key=large.__getitem__)
        yield Symptom(
            cause="updates_too_large",
            severity="note",
            evidence=f"A step changes {worst} by {100 * large[worst]:.0f} % of its weights (median); healthy are 0.01 "
            "to 1 %.",
            remedy="Lower the learning rate, or that of this part; small biases and norms alone may be left so.",
            items=tuple(large),
        )
    if ratios and max(ratios.values()) < TOO_SMALL:
        yield Symptom(
            cause="updates_too_small",
            severity="note",
            evidence=f"No part changes by more than {max(ratios.values()):.1g} of its weights per step (median); "
            "healthy are 1e-4 to 1e-2.",
            remedy="Multiply the learning rate by ten, or check schedule and clipping.",
        )


def _ratios(record: MonitorRecord, *, fewest: int = 1) -> dict[str, float]:
    """Stage -> median ratio, of those that were trained in so many steps."""
    known = {one.stage: [ratio for ratio in one.ratio if ratio is not None] for one in record.stages}
    return {name: median(ratios) for name, ratios in known.items() if len(ratios) >= fewest}


def _dying(record: MonitorRecord) -> Iterator[Symptom]:
    for one in record.stages:
        if len(one.dead) == 2 and one.dead[1] >= DYING and one.dead[1] - one.dead[0] >= GROWN:
            yield Symptom(
                cause="dying_units",
                severity="note",
                evidence=f"In {one.stage} {100 * one.dead[1]:.0f} % of the rectified units give one output for all "
                f"images at the end, {100 * one.dead[0]:.0f} % at the start.",
                remedy="Lower the learning rate, warm it up, or use leaky rectifiers.",
                items=(one.stage,),
            )


def _lost_gradients(record: MonitorRecord) -> Iterator[Symptom]:
    lost = [one.stage for one in record.stages if any(found.not_finite for found in one.gradients)]
    if lost:
        yield Symptom(
            cause="gradient_not_finite",
            severity="alarm",
            evidence=f"Gradients of {', '.join(lost)} hold NaN or infinity.",
            remedy="Lower the learning rate or clip gradients; in half precision use bfloat16 or loss scaling.",
            items=tuple(lost),
        )


def read_training(
    curves: Curves | None, record: MonitorRecord, *, not_finite: str = "", others: Sequence[Sequence[Symptom]] = ()
) -> tuple[tuple[Symptom, ...], tuple[str, ...]]:
    """Symptoms of curves and monitor, alarms first, and lines that say it: one paragraph if there is none.

    Args:
        curves: Of the whole run; None to read none.
        record: What the monitor saw.
        not_finite: What was first not finite, as a sentence.
        others: What monitors of further optimizers saw.
    """
    read = () if curves is None else read_curves(curves)
    found = [one for one in read if not (not_finite and one.cause == "not_finite")]
    if not_finite:
        kept = (
            f" The step is kept in {record.capsule}: transferkit.doctor.replay names the layer."
            if record.capsule
            else ""
        )
        remedy = "Lower the learning rate or clip gradients; in half precision use bfloat16 or loss scaling."
        found.insert(0, Symptom(cause="not_finite", severity="alarm", evidence=f"{not_finite}{kept}", remedy=remedy))
    monitored = [*read_monitor(record), *(one for symptoms in others for one in symptoms)]
    found += [one for one in monitored if not (not_finite and one.cause == "gradient_not_finite")]
    symptoms = tuple(sorted(found, key=lambda one: one.severity != "alarm"))
    if symptoms:
        return symptoms, Diagnosis(symptoms=symptoms).sentences
    return (), (_reassure(curves, record),)


def _reassure(curves: Curves | None, record: MonitorRecord) -> str:
    """What was looked at and found well, with its numbers."""
    losses = [] if curves is None else list(curves.train_loss)
    said = ["Healthy:"]
    if curves is None or not losses:
        said.append("all gradients are finite.")
    elif len(losses) == 1:
        said.append(f"the training loss is {losses[0]:.3g}, and all losses and gradients are finite.")
    else:
        said.append(
            f"the training loss goes from {losses[0]:.3g} to {losses[-1]:.3g} in {curves.long(len(losses))}, and all "
            "losses and gradients are finite."
        )
    ratios = sorted(_ratios(record).values())
    if ratios:
        low, high = (f"{100 * one:.2g}" for one in (ratios[0], ratios[-1]))
        said.append(
            f"A step changes the trained parts by {low if low == high else f'{low} to {high}'} % of their weights "
            "(median; 0.01 to 1 % is usual)."
        )
    dead = [one.dead[-1] for one in record.stages if one.dead]
    if dead:
        said.append(f"At most {100 * max(dead):.0f} % of a stage's rectified units are dead.")
    alike = {
        one.stage: one.similarity[-1] for one in record.stages if one.similarity and one.similarity[-1] is not None
    }
    if alike:
        least = min(alike, key=lambda name: alike[name] or 0.0)
        said.append(f"Features moved most in {least}: similarity to the start {alike[least]:.2f} (1 is unchanged).")
    return " ".join(said)


def diagnose_training(training: TrainingRecord, *, classes: int | None, folder: str = "") -> TrainingRecord:
    """The record of a run with its symptoms.

    Args:
        training: With its monitor's record; without one the curves alone are read.
        classes: K; None where images have not one class each, so that no loss is known to be a guess.
        folder: The run's; the capsule is named relative to it.
    """
    curves = Curves(
        train_loss=[one.train_loss for one in training.epochs],
        held_back_loss=_with_gaps([one.val_loss for one in training.epochs]),
        # Of labels or numbers it is another score, which the causes know nothing of.
        held_back_accuracy=() if classes is None else _with_gaps([one.val_accuracy for one in training.epochs]),
        classes=classes,
        held_back_images=training.held_back or None,
    )
    if not training.epochs:
        return training
    monitor = training.monitor
    if monitor is None:
        return replace(training, symptoms=read_curves(curves))
    monitor = replace(
        monitor, capsule=monitor.capsule.removeprefix(folder).lstrip("/\\") if folder else monitor.capsule
    )
    notes = tuple(one.replace(f"{folder}/", "") if folder else one for one in training.notes)
    broken = "A step of the first fold was not finite." if monitor.capsule else ""
    symptoms, _ = read_training(curves, monitor, not_finite=broken)
    return replace(training, monitor=monitor, symptoms=symptoms, notes=notes)


def _with_gaps(values: Sequence[float | None]) -> tuple[float, ...]:
    """NaN where there is no value; empty without any."""
    return tuple(math.nan if one is None else one for one in values) if any(one is not None for one in values) else ()
