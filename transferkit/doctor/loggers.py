"""Monitored steps to a trainer's loggers: scalars to all, histograms to TensorBoard."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from transferkit.doctor.step_measures import MonitoredStep
from transferkit.records import Histogram

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["log_histograms", "log_scalars"]


def log_scalars(trainer: pl.Trainer, one: MonitoredStep, *, number: int) -> None:
    """Ratios, gradients and noise of each group, the mean of dead shares and of drifts.

    Args:
        trainer: Whose loggers.
        one: The step.
        number: Of its optimizer, from 0.
    """
    start = f"doctor/{number}/" if number else "doctor/"
    found = {f"{start}gradient": one.gradient}
    for name, group in one.groups.items():
        found |= {f"{start}ratio/{name}": group.ratio, f"{start}gradient/{name}": group.gradient}
        if group.noise is not None:
            found[f"{start}noise/{name}"] = group.noise
    dead = [layer.dead for layer in one.layers.values() if layer.dead is not None]
    if dead:
        found[f"{start}dead"] = sum(dead) / len(dead)
    if one.drift:
        found[f"{start}statistics_drift"] = sum(one.drift.values()) / len(one.drift)
    for logger in trainer.loggers:
        logger.log_metrics(found, step=trainer.global_step)


def log_histograms(trainer: pl.Trainer, one: MonitoredStep, *, number: int) -> None:
    """Absolute weights and gradients of each group, and outputs of each layer, for TensorBoard."""
    start = f"doctor/{number}/" if number else "doctor/"
    named = {f"{start}{kind}/{name}": getattr(group, kind) for name, group in one.groups.items()
             for kind in ("weights", "gradients")}  # fmt: skip
    named |= {f"{start}outputs/{name}": layer.values for name, layer in one.layers.items()}
    for logger in trainer.loggers:
        writer: Any = getattr(logger, "experiment", None)
        if callable(getattr(writer, "add_histogram_raw", None)):
            for name, histogram in named.items():
                if histogram is not None and sum(histogram.counts):
                    writer.add_histogram_raw(name, **_as_raw(histogram), global_step=trainer.global_step)


def _as_raw(histogram: Histogram) -> dict[str, object]:
    """What TensorBoard takes: moments from the middles of the bins."""
    edges, counts = histogram.edges, histogram.counts
    middles = [(low * high) ** 0.5 for low, high in pairwise(edges)]
    return {
        "min": next(low for low, count in zip(edges, counts, strict=False) if count),
        "max": max(high for high, count in zip(edges[1:], counts, strict=True) if count),
        "num": sum(counts),
        "sum": sum(count * middle for count, middle in zip(counts, middles, strict=True)),
        "sum_squares": sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        "bucket_limits": list(edges[1:]),
        "bucket_counts": list(counts),
    }
