"""How fast to learn, step by step: curves as pure functions of the step, and one scheduler that goes through phases.

Which parameters form a group, and the learning rate that a group has in a phase, is for the freeze plan to say.
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
"""Epochs without a better loss that "plateau" lets pass; at one more it acts. torch's 10 is longer than many a
fine-tuning run as a whole."""

REDUCTION = 0.1
"""What "plateau" multiplies the learning rate by (He et al., CVPR 2016, divide by 10 when the error plateaus)."""

THRESHOLD = 1e-4
"""Share by which a loss must fall to count as better; torch's default for ReduceLROnPlateau."""

Curve = Callable[[float, float], float]

SCHEDULES: Registry[Curve] = Registry("schedule")
"""Name -> function from progress after the warm-up, in [0, 1], and the minimum to the factor."""


@SCHEDULES.register("constant")
def _constant(progress: float, minimum: float) -> float:
    return 1.0


@SCHEDULES.register("plateau")
def _plateau(progress: float, minimum: float) -> float:
    """Known in advance only as long as the loss falls: what is lowered then is a level that this is multiplied by."""
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
    """What a learning rate is multiplied by at one step: a warm-up in equal stairs to 1, then the curve.

    The warm-up's first stair is 1 / (warmup + 1), never 0, so no step is wasted. The curve begins at 1 and would reach
    `minimum` at the step after the last one: a minimum of 0 wastes no step either.

    Args:
        name: One of `SCHEDULES`.
        step: >= 0; from `steps` on, the curve stays where it ended.
        steps: Of the whole stretch, >= 1, the warm-up's included.
        warmup: Steps of the warm-up, in [0, steps).
        minimum: Where the curve ends, in [0, 1]; above 0 for "exponential". "constant" and "plateau" make no use of it.

    Returns:
        A value in [0, 1]; above 0 for step < steps.

    Raises:
        OptionError: If the name is unknown or a number is out of its range.

    References:
        Loshchilov & Hutter, ICLR 2017, for "cosine". Deviation: no restarts inside a stretch. Goyal et al., 2017, for
        the warm-up. Deviation: it begins at the first stair, not at a chosen learning rate.

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
        return "An exponential schedule never reaches 0: give a minimum above it, such as 0.01."
    return ""


@dataclass
class _Level:
    """What "plateau" remembers of one phase."""

    phase: int = 0
    level: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0


class PhasedSchedule(LRScheduler):
    """Learning rates of all groups through all phases: `lrs[group][phase] * factor(step within the phase)`.

    A pure function of the step, so a resumed run has the learning rates of the run that was not interrupted; only
    "plateau" remembers more. Call `step` after each optimizer step, `observe` once per epoch after its last `step`.

    Args:
        optimizer: With all groups that are ever trained. Their own learning rates are overwritten.
        name: One of `SCHEDULES`.
        lrs: (groups, phases) learning rates, >= 0; 0 where a group is frozen.
        starts: First step of every phase: 0, then rising.
        steps: Of all phases together.
        warmup: Share of every phase's steps in which its learning rates rise, in [0, 1). A phase that unfreezes layers
            needs a warm-up of its own.
        minimum: Factor at a phase's end, in [0, 1]; the lowest level for "plateau".
        patience: Epochs without a better loss that "plateau" lets pass.
        reduction: What "plateau" multiplies the level by, in (0, 1).

    Raises:
        OptionError: If something does not fit; all problems at once.

    References:
        "plateau" follows torch's ReduceLROnPlateau. Deviation: a new phase starts afresh, at level 1 and with no best
        loss, since other layers learn in it.

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
    ) -> None:
        self.name, self.minimum, self.warmup = name, minimum, warmup
        self.lrs = tuple(tuple(group) for group in lrs)
        self.starts, self.steps = tuple(starts), steps
        self.patience, self.reduction = patience, reduction
        self._level = _Level()
        if problems := [*self._wrong_curve(), *self._wrong_phases(len(optimizer.param_groups))]:
            raise OptionError(list_problems("The learning-rate schedule cannot be made:", problems))
        super().__init__(optimizer)

    @property
    def phase(self) -> int:
        """Number of the phase that the coming step is in, from 0."""
        return self._phase_of(self.last_epoch)

    def factor_at(self, step: int) -> float:
        """The curve's value at any step, without what "plateau" has lowered."""
        phase = self._phase_of(step)
        start, end = self.starts[phase], (*self.starts, self.steps)[phase + 1]
        # A share below 1 rounds up to all of a short phase; one step at full rate must remain.
        warmup = min(round(self.warmup * (end - start)), end - start - 1)
        return factor(self.name, step - start, steps=end - start, warmup=warmup, minimum=self.minimum)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group for the coming step."""
        level = self._level.level if self._level.phase == self.phase else 1.0
        scale = self.factor_at(self.last_epoch) * level
        return [group[self.phase] * scale for group in self.lrs]

    def observe(self, loss: float) -> None:
        """Lower the level where the held-back loss no longer falls; a no-op for all schedules but "plateau".

        Args:
            loss: Of the epoch whose last step is done.
        """
        if self.name != "plateau":
            return
        # At the border the next phase's first step is due, but the loss is the last phase's.
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
        """Go on from a state, in whatever order optimizer and schedule are restored.

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
