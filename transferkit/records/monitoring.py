"""What was seen inside a network while it was trained: updates, gradients, units, statistics and features by stage."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records._checks import require

__all__ = ["HEALTHY_UPDATES", "Histogram", "MonitorRecord", "MonitoredStage"]

HEALTHY_UPDATES = (1e-4, 1e-2)
"""Update / weight ratios of a healthy step. About 1e-3 is the textbook's value; fine-tuning starts a tenth below."""

BINS, BINS_PER_POWER, LOWEST_POWER = 28, 2, -12
"""Of a histogram: from 1e-12 to 100, two bins per power of ten; the outermost hold what lies beyond."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Absolute values by size, in bins of half a power of ten from 1e-12 to 100.

    Args:
        counts: Of each bin; the first holds all that is smaller, zero included, the last all that is larger.
        not_finite: Values that are infinite or NaN, which are in no bin.

    Raises:
        OptionError: The number of bins is another.
    """

    counts: tuple[int, ...]
    not_finite: int = 0

    def __post_init__(self) -> None:
        require(len(self.counts) == BINS, f"A Histogram has {BINS} bins, got {len(self.counts)}.")

    @property
    def edges(self) -> tuple[float, ...]:
        """The ends of the bins.

        Example:
            >>> edges = Histogram(counts=(0,) * 28).edges
            >>> len(edges), edges[0], edges[2], edges[-1]
            (29, 1e-12, 1e-11, 100.0)
        """
        return tuple(10.0 ** (LOWEST_POWER + number / BINS_PER_POWER) for number in range(BINS + 1))


@dataclass(frozen=True, kw_only=True)
class MonitoredStage:
    """One stage in the monitored steps; None stands for what was not measured or not finite.

    Args:
        stage: Its name, or "head".
        ratio: ||update|| / ||weight|| of each step; None while nothing of it was trained.
        gradient: Norm of the gradient as the optimizer got it, clipped if it was.
        noise: Distance between the gradients of two successive steps: 0 for equal, 1 for independent ones.
        similarity: Linear CKA (debiased) of its outputs to those of the initial network, at each comparison: 1 is
            unchanged up to rotation and scale.
        weights, gradients: Absolute values in the first and in the last step in which it was trained; empty if never.
        outputs: Absolute outputs of its layers, of the batch's first 8 images, in the first and in the last step; empty
            where they were not measured.
        dead: Share of rectified units with one output for all images, in the first and the last step; empty without
            rectifiers.
        saturated: Share of values where a nonlinearity is flat, in the first and the last step; empty without such.
        statistics_drift: Distance of running means from those at the start, in units of the standard deviations then;
            None without running statistics.
    """

    stage: str
    ratio: tuple[float | None, ...] = ()
    gradient: tuple[float | None, ...] = ()
    noise: tuple[float | None, ...] = ()
    similarity: tuple[float | None, ...] = ()
    weights: tuple[Histogram, ...] = ()
    gradients: tuple[Histogram, ...] = ()
    outputs: tuple[Histogram, ...] = ()
    dead: tuple[float, ...] = ()
    saturated: tuple[float, ...] = ()
    statistics_drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class MonitorRecord:
    """What was seen of one fit.

    Args:
        every: Steps between two that were monitored.
        steps: Their numbers, from 0; evenly spaced ones of a long fit.
        losses: Training loss of each of these steps, mean over its micro-batches.
        gradients: Norm of the whole gradient before clipping.
        stages: Stem -> head.
        compared: Steps taken before each comparison of features with those of the initial network.
        images: Number of images that were compared.
        missing: What could not be measured, a sentence each.
        capsule: Path of the file with the first step that was not finite; "" if all were, or none was kept.

    Raises:
        OptionError: A series has another number of values than there are steps.
    """

    every: int
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    gradients: tuple[float | None, ...]
    stages: tuple[MonitoredStage, ...]
    compared: tuple[int, ...] = ()
    images: int = 0
    missing: tuple[str, ...] = ()
    capsule: str = ""

    def __post_init__(self) -> None:
        count = len(self.steps)
        series = [self.losses, self.gradients]
        series += [values for one in self.stages for values in (one.ratio, one.gradient, one.noise)]
        for values in series:
            require(len(values) == count, f"MonitorRecord has {count} steps, but a series of {len(values)} values.")
        for one in self.stages:
            require(
                len(one.similarity) in (0, len(self.compared)),
                f"MonitorRecord has {len(self.compared)} comparisons, but {len(one.similarity)} values of {one.stage}.",
            )
