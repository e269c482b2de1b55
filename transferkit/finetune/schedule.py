"""Learning-rate schedules: curves as pure functions of the step, and a scheduler for all phases.

The freeze plan defines the parameter groups and their learning rates in each phase.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from transferkit.core.errors import CheckpointError, OptionError, list_problems
from transferkit.core.registry import Registry

__all__ = ["PATIENCE", "REDUCTION", "SCHEDULES", "PhasedSchedule", "factor"]

PATIENCE = 2
"""Epochs without improvement that "plateau" tolerates. torch's 10 is longer than many fine-tuning runs."""

REDUCTION = 0.1
"""Factor on the learning rate at a plateau (He et al., CVPR 2016, divide by 10 when the error plateaus)."""

THRESHOLD = 1e-4
"""Relative decrease of the loss that counts as improvement; torch's default for ReduceLROnPlateau."""

Curve = Callable[[float, float], float]

SCHEDULES: Registry[Curve] = Registry("schedule")
"""Name -> function from progress after the warm-up, in [0, 1], and the minimum to the factor."""


@SCHEDULES.register("constant")
def _constant(progress: float, minimum: float) -> float:
    return 1.0


@SCHEDULES.register("plateau")
def _plateau(progress: float, minimum: float) -> float:
    """Constant: the reductions depend on the loss and are a separate factor, the level."""
    return 1.0


@SCHEDULES.register("linear")
def _linear(progress: float, minimum: float) -> float:
    return minimum + (1 - minimum) * (1 - progress)


@SCHEDULES.register("exponential")
def _exponential(progress: float, minimum: float) -> float:
    return minimum**progress


@SCHEDULES.register("cosine")
def _cosine(progress: float, minimum: float) -> float:
    return minimum + (1 - minimum) * (1 + math.cos(math.pi * progress)) / 2


def factor(name: str, step: int, *, steps: int, warmup: int = 0, minimum: float = 0.0) -> float:
    """Factor on a learning rate at one step: a linear warm-up to 1, then the curve.

    The warm-up starts at 1 / (warmup + 1), never 0, so no step is wasted. The curve starts at 1 and would reach
    `minimum` at the step after the last one, so a minimum of 0 wastes no step either.

    Args:
        name: One of `SCHEDULES`.
        step: >= 0; from `steps` on, the curve keeps its final value.
        steps: Number of steps, >= 1, including the warm-up.
        warmup: Steps of the warm-up, in [0, steps).
        minimum: Final value of the curve, in [0, 1]; above 0 for "exponential". Ignored by "constant" and "plateau".

    Returns:
        A value in [0, 1]; above 0 for step < steps.

    Raises:
        OptionError: If the name is unknown or a number is out of its range.

    References:
        Loshchilov & Hutter, ICLR 2017, for "cosine". Goyal et al., 2017, for the warm-up. Deviation: it starts at the
        first increment, not at a chosen learning rate.

    Example:
        >>> [round(factor("cosine", step, steps=6, warmup=2), 3) for step in range(6)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146]
    """
    curve = SCHEDULES[name]
    if problem := _wrong_minimum(name, minimum):
        raise OptionError(problem)
    if not 0 <= warmup < steps or step < 0:
        raise OptionError(f"Expected 0 <= warmup < steps and step >= 0, got {warmup=}, {steps=}, {step=}.")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return curve(min(1.0, (step - warmup) / (steps - warmup)), minimum)


def _wrong_minimum(name: str, minimum: float) -> str:
    if not 0 <= minimum <= 1:
        return f"The minimum of a schedule must be in [0, 1], got {minimum!r}."
    if name == "exponential" and minimum == 0:
        return "An exponential schedule never reaches 0: set a minimum above it, such as 0.01."
    return ""


@dataclass
class _Level:
    """State of "plateau" in one phase."""

    phase: int = 0
    level: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0


class PhasedSchedule(LRScheduler):
    """Scheduler for all groups and phases: `lrs[group][phase] * factor(step within the phase)`.

    A pure function of the step, so a resumed run has the same learning rates as an uninterrupted one; only "plateau"
    has further state. Call `step` after each optimizer step, `observe` once per epoch after its last `step`.

    Args:
        optimizer: With the groups of all phases. Their learning rates are overwritten.
        name: One of `SCHEDULES`.
        lrs: (groups, phases) learning rates, >= 0; 0 if a group is frozen.
        starts: First step of every phase: 0, then increasing.
        steps: Total of all phases.
        warmup: Share of every phase's steps used for warm-up, in [0, 1). A phase that unfreezes layers needs its own
            warm-up.
        minimum: Factor at a phase's end, in [0, 1]; the lowest level for "plateau".
        patience: Epochs without improvement that "plateau" tolerates.
        reduction: Factor on the level at a plateau, in (0, 1).
        restarts: Further steps at which the curve begins anew, without a warm-up, inside phases and increasing.

    Raises:
        OptionError: If arguments are invalid; all problems are reported at once.

    References:
        "plateau" follows torch's ReduceLROnPlateau. Deviation: each phase starts at level 1 without a best loss,
        since other layers are trained in it.

    Example:
        >>> head, trunk = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([{"params": [head]}, {"params": [trunk]}], lr=1.0)
        >>> schedule = PhasedSchedule(optimizer, "linear", lrs=[(1.0, 0.5), (0.0, 0.1)], starts=[0, 2], steps=4)
        >>> for _ in range(4):
        ...     print(schedule.get_last_lr())
        ...     optimizer.step()
        ...     schedule.step()
        [1.0, 0.0]
        [0.5, 0.0]
        [0.5, 0.1]
        [0.25, 0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: str,
        *,
        lrs: Sequence[Sequence[float]],
        starts: Sequence[int],
        steps: int,
        warmup: float = 0.0,
        minimum: float = 0.0,
        patience: int = PATIENCE,
        reduction: float = REDUCTION,
        restarts: Sequence[int] = (),
    ) -> None:
        self.restarts = tuple(restarts)
        self.name, self.minimum, self.warmup = name, minimum, warmup
        self.lrs = tuple(tuple(group) for group in lrs)
        self.starts, self.steps = tuple(starts), steps
        self.patience, self.reduction = patience, reduction
        self._level = _Level()
        if problems := [*self._wrong_curve(), *self._wrong_phases(len(optimizer.param_groups))]:
            raise OptionError(list_problems("Invalid learning-rate schedule:", problems))
        super().__init__(optimizer)

    @property
    def phase(self) -> int:
        """Index of the phase of the next step, from 0."""
        return self._phase_of(self.last_epoch)

    def factor_at(self, step: int) -> float:
        """The curve's value at a step, without the reductions of "plateau"."""
        phase = self._phase_of(step)
        start, end = self.starts[phase], (*self.starts, self.steps)[phase + 1]
        begun = max((at for at in self.restarts if start < at <= step), default=start)
        end = min((at for at in self.restarts if step < at < end), default=end)
        # A share below 1 can round up to a whole short phase; at least one step must have the full rate.
        warmup = min(round(self.warmup * (end - start)), end - start - 1) if begun == start else 0
        start = begun
        return factor(self.name, step - start, steps=end - start, warmup=warmup, minimum=self.minimum)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group for the next step."""
        level = self._level.level if self._level.phase == self.phase else 1.0
        scale = self.factor_at(self.last_epoch) * level
        return [group[self.phase] * scale for group in self.lrs]

    def observe(self, loss: float) -> None:
        """Reduce the level if the held-back loss no longer decreases; does nothing unless the schedule is "plateau".

        Args:
            loss: Of the epoch whose last step is done.
        """
        if self.name != "plateau":
            return
        # At a phase boundary the next step is in the next phase, but the loss belongs to the previous one.
        done = self._phase_of(max(self.last_epoch - 1, 0))
        if self._level.phase != done:
            self._level = _Level(phase=done)
        state = self._level
        if loss < state.best * (1 - THRESHOLD):
            state.best, state.bad_epochs = loss, 0
        else:
            state.bad_epochs += 1
        if state.bad_epochs > self.patience:
            state.level, state.bad_epochs = max(state.level * self.reduction, self.minimum), 0
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """The step; for "plateau" also the level, the best loss, the bad epochs since, and their phase."""
        return {"step": self.last_epoch, **(asdict(self._level) if self.name == "plateau" else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; optimizer and schedule may be restored in any order.

        Raises:
            CheckpointError: If the state is that of another schedule.
        """
        state = dict(state_dict)
        if state.keys() != self.state_dict().keys():
            raise CheckpointError(
                f"Expected a state of schedule {self.name!r} with {', '.join(self.state_dict())}; got "
                f"{', '.join(state) or 'nothing'}. Resume with the schedule that the run was started with."
            )
        self.last_epoch = state.pop("step")
        self._step_count = self.last_epoch + 1
        self._level = _Level(**state)
        self._write()

    def _phase_of(self, step: int) -> int:
        return bisect_right(self.starts, step) - 1

    def _write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = self.get_lr()

    def _wrong_curve(self) -> Iterator[str]:
        SCHEDULES[self.name]
        if problem := _wrong_minimum(self.name, self.minimum):
            yield problem
        if not 0 <= self.warmup < 1:
            yield f"the warm-up is a share of a phase, in [0, 1), got {self.warmup!r}"
        if self.patience < 0 or not 0 < self.reduction < 1:
            yield f"expected patience >= 0 and 0 < reduction < 1, got {self.patience!r} and {self.reduction!r}"

    def _wrong_phases(self, groups: int) -> Iterator[str]:
        bounds = (*self.starts, self.steps)
        if self.starts[:1] != (0,) or any(end <= start for start, end in pairwise(bounds)):
            yield f"phases must start at 0, then rise, and end before {self.steps} steps, got {list(self.starts)}"
        if len(self.lrs) != groups:
            yield f"the optimizer has {groups} groups, but learning rates came for {len(self.lrs)}"
        if wrong := {len(group) for group in self.lrs} - {len(self.starts)}:
            yield f"every group needs {len(self.starts)} learning rates, one per phase, got {sorted(wrong)}"
        if not all(math.isfinite(lr) and lr >= 0 for group in self.lrs for lr in group):
            yield f"learning rates must be finite and >= 0, got {self.lrs}"
