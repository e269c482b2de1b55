"""What a command would do, and what that would cost: nothing of it has been done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferkit.records._checks import require

__all__ = ["ACTIONS", "BASES", "SCHEMA", "DryRun", "PlannedData", "PlannedFile", "PlannedStep"]

SCHEMA = 1
"""Version of the JSON; raised when a reader of the old form would misread the new one. Names may be added."""

BASES = ("measured now", "remembered", "estimated")
"""Where a number of seconds comes from: timed in this dry run, timed in an earlier run here, or a rule of thumb."""

ACTIONS = ("write", "replace", "delete")


def _require_range(owner: str, low: float, high: float) -> None:
    right = math.isfinite(low) and math.isfinite(high) and 0 <= low <= high
    require(right, f"{owner}: seconds must be finite and 0 <= low <= high, got {low!r} to {high!r}.")


@dataclass(frozen=True, kw_only=True)
class PlannedData:
    """The images, as far as they are known without work.

    Args:
        origin: Where they are, in words.
        classes: Number of classes, of labels, or of numbers to predict.
        images: Split -> number of images.
        is_exact: Whether every image was audited; else files were listed, and some may turn out to be unusable.
        task: "single_label", "multi_label" or "regression".
    """

    origin: str
    classes: int
    images: Mapping[str, int]
    is_exact: bool
    task: str = "single_label"


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step of a command.

    Args:
        name: Short, the same in every run; that of the phase in `seconds` of the run's result.json where there is one.
        what: A sentence for people.
        images: That are read or computed; 0 where the step is not about images.
        passes: Times that each of them goes through the network; a fraction where only part of it runs.
        in_bank: Images of this step whose results are in the feature bank already: they cost nothing.
        seconds_low, seconds_high: Wall-clock. A step that may not be needed has 0 to what it costs.
        basis: One of `BASES`.
        memory_bytes: Peak of the process in this step.
        disk_bytes_low, disk_bytes_high: Written in this step, and kept.
        is_certain: Whether it takes place in any case; else only if what is measured before asks for it.
    """

    name: str
    what: str
    images: int = 0
    passes: float = 1.0
    in_bank: int = 0
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    basis: str = "estimated"
    memory_bytes: int = 0
    disk_bytes_low: int = 0
    disk_bytes_high: int = 0
    is_certain: bool = True

    def __post_init__(self) -> None:
        owner = f"PlannedStep {self.name!r}"
        _require_range(owner, self.seconds_low, self.seconds_high)
        require(self.basis in BASES, f"{owner}: basis must be one of {', '.join(BASES)}, got {self.basis!r}.")
        counts = (self.images, self.in_bank, self.memory_bytes, self.disk_bytes_low)
        require(min(counts) >= 0, f"{owner}: counts and bytes must be >= 0, got {counts}.")
        require(
            self.disk_bytes_low <= self.disk_bytes_high,
            f"{owner}: disk_bytes_low must be <= disk_bytes_high, got {self.disk_bytes_low} > {self.disk_bytes_high}.",
        )
        require(self.in_bank <= self.images, f"{owner}: in_bank must be <= images, got {self.in_bank} > {self.images}.")


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file or folder that would be written, replaced or deleted.

    Args:
        path: As a person would type it.
        action: One of `ACTIONS`.
        bytes: Its size, about; what is freed where it is deleted.
    """

    path: str
    action: str
    bytes: int = 0

    def __post_init__(self) -> None:
        require(self.action in ACTIONS, f"PlannedFile.action must be one of {', '.join(ACTIONS)}, got {self.action!r}.")
        require(self.bytes >= 0, f"PlannedFile.bytes must be >= 0, got {self.bytes!r}.")


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a command would do, in order, with its cost in seconds, memory and disk.

    Args:
        schema: `SCHEMA`.
        verb: Of the command line: "adapt", "doctor labels", ...
        command: What does it for real; "" if not recorded.
        model: Name of the backbone; "" where there is none.
        strategy: Named, or decided from what is in the feature bank; "" where it is not known before the frozen pass,
            or does not matter.
        data: The images; None where there are none.
        device: What computes.
        steps: In their order; empty for a sweep.
        files: That would be written, replaced or deleted, those of the feature bank left out.
        warnings: Sentences.
        runs: Of a sweep (--multirun), one each; empty for one run.
        seconds_low, seconds_high: Of all steps, or all runs one after the other.
        memory_bytes: Peak of the process.
        disk_bytes_low, disk_bytes_high: Written and kept: run folder and feature bank.
    """

    schema: int = SCHEMA
    verb: str
    command: str = ""
    model: str = ""
    strategy: str = ""
    data: PlannedData | None = None
    device: str = ""
    steps: tuple[PlannedStep, ...] = ()
    files: tuple[PlannedFile, ...] = ()
    warnings: tuple[str, ...] = ()
    runs: tuple[DryRun, ...] = ()
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    memory_bytes: int = 0
    disk_bytes_low: int = 0
    disk_bytes_high: int = 0

    def __post_init__(self) -> None:
        _require_range(f"DryRun of {self.verb}", self.seconds_low, self.seconds_high)
        require(self.schema == SCHEMA, f"DryRun.schema must be {SCHEMA}, got {self.schema!r}.")
        require(not (self.steps and self.runs), "A DryRun has steps, or runs of its own, not both.")
        parts: Sequence[PlannedStep | DryRun] = self.steps or self.runs
        for name, total in _totals(parts).items():
            given = getattr(self, name)
            right = math.isclose(given, total, rel_tol=1e-6, abs_tol=1e-6)
            require(right, f"DryRun.{name} must be that of its steps together, {total!r}, got {given!r}.")

    @classmethod
    def of_steps(cls, steps: Sequence[PlannedStep], *, verb: str, about: Mapping[str, Any] | None = None) -> DryRun:
        """With the totals of these steps.

        Args:
            steps: In their order.
            verb: Of the command line.
            about: Other fields, by name.

        Example:
            >>> step = PlannedStep(name="frozen pass", what="", images=10, seconds_low=1, seconds_high=2)
            >>> DryRun.of_steps([step, step], verb="analyze").seconds_high
            4
        """
        return cls(verb=verb, steps=tuple(steps), **_totals(steps), **(about or {}))

    @classmethod
    def of_runs(cls, runs: Sequence[DryRun], *, verb: str, command: str = "", warnings: Sequence[str] = ()) -> DryRun:
        """Of a sweep: runs one after the other, with their totals."""
        return cls(verb=verb, command=command, runs=tuple(runs), warnings=tuple(warnings), **_totals(runs))


def _totals(parts: Sequence[PlannedStep | DryRun]) -> dict[str, Any]:
    """Totals of steps or runs: time and disk add up, memory is the highest."""
    return {
        "seconds_low": sum(part.seconds_low for part in parts),
        "seconds_high": sum(part.seconds_high for part in parts),
        "memory_bytes": max((part.memory_bytes for part in parts), default=0),
        "disk_bytes_low": sum(part.disk_bytes_low for part in parts),
        "disk_bytes_high": sum(part.disk_bytes_high for part in parts),
    }
