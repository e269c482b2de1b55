"""Learning-rate range test: a copy of the network is trained for some steps at increasing rates.

Without side effects: module, batches and generators are restored exactly, also after an error.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import OptionError
from transferkit.core.random import draw_seed
from transferkit.finetune.last_phase import last_optimizer, start_last_phase
from transferkit.finetune.module import TransferModule

__all__ = ["RangeTest", "find_rate", "judge"]

Floats = npt.NDArray[np.float64]

STEPS = 60
"""Number of steps, 15 per power of ten: neighbouring rates differ by a factor of 1.17."""

LOWEST, HIGHEST = 1e-2, 1e2
"""Range of rates tried, in units of the plan's."""

SMOOTHING = 0.8
"""Smoothing factor of the exponential average: a memory of about 5 steps, a third of a power of ten."""

AT_REST = 15
"""First steps, used to estimate the noise: their rates are below a tenth of the plan's, and little changes."""

NOISE = 3.0
"""Width of the smoothed loss's interval on each side, in standard errors."""

FEWEST = 8
"""Minimum number of losses before a rise counts: with fewer the noise is unknown. Until then rates are below 1/30 of
the plan's."""

RISE = 0.1
"""Minimum rise, as a share of the loss of an uninformed network (for K classes: log K). Not of the loss itself: with a
fitted head it starts near 0, and a multiple of that is still negligible."""

SAFETY = 4.0
"""Divisor of the edge, see `judge`."""

NO_TRAINER = ".*self.trainer. reference is not registered.*"
"""Lightning's warning that values logged by the copy are discarded."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """Result of a range test.

    Args:
        lr: The learning rate to use, > 0, for the group with the highest rate in the plan's last phase.
        planned: The plan's rate for that group.
        rates: The rate of each step, increasing.
        losses: The training loss before each step; the last one may be infinite or NaN.
        why: A sentence with the numbers.
    """

    lr: float
    planned: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    why: str

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and 0 < self.planned < math.inf):
            raise ValueError(f"Learning rates must be finite and > 0, got {self.lr!r} and {self.planned!r}.")
        if len(self.rates) != len(self.losses):
            raise ValueError(f"Every step has a rate and a loss, got {len(self.rates)} and {len(self.losses)}.")

    @property
    def factor(self) -> float:
        """Factor on the plan's rates."""
        return self.lr / self.planned


def find_rate(
    module: TransferModule,
    batches: Iterable[Any],
    *,
    seed: int,
    steps: int = STEPS,
    device: torch.device | None = None,
) -> RangeTest:
    """Train a copy of a module under its plan's last phase, increasing all rates together, until the loss rises.

    The optimizer, gradient clipping, weight decay and losses are the recipe's; precision is that of the weights.
    The result depends only on module, batches and seed. Unchanged afterwards: the module (weights, statistics,
    gradients, modes, hooks) and the generators of Python, NumPy, torch, the device and the batches' loader. A sampler's
    epoch is kept; if there are too few batches, they are repeated.

    Args:
        module: Must work without a trainer; it is copied.
        batches: Of training images, as for `TransferModule`; must be iterable repeatedly.
        seed: Of the steps' randomness.
        steps: From 1/100 to 100 times the plan's rate, >= 2; stops earlier if the loss rises.
        device: Device of the copy; None for the module's.

    Raises:
        OptionError: If there are no batches, or they can be iterated only once, or `steps` is too small.
        RuntimeError: If memory runs out.

    References:
        Smith, WACV 2017. Deviations: rates increase by a constant factor, not by a constant; the choice of the rate
        (see `judge`).
    """
    if steps < 2:
        raise OptionError(f"A range test needs steps >= 2, got {steps!r}.")
    if isinstance(batches, Iterator):
        raise OptionError("A range test needs batches that can be iterated repeatedly: pass a loader or a list.")
    device = module.device if device is None else device
    with _no_trace(batches, device):
        trial = _copied(module).to(device)
        planned = max(group["lrs"][-1] for group in trial.freeze_plan.groups())
        rates = planned * np.geomspace(LOWEST, HIGHEST, steps)
        return _swept(trial, batches, rates, planned, seed)


def judge(rates: Sequence[float], losses: Sequence[float], *, planned: float, nothing: float) -> RangeTest:
    """The rate to use, from the losses at increasing rates.

    The edge is the first rate at which the smoothed loss has risen above its lowest level so far by more than its noise
    and by a tenth of the loss of an uninformed network. A quarter of it is used. Two common rules do not work here. The
    rate of the steepest descent (Smith, 2017; fastai's "valley") is determined by noise if the head is fitted: the loss
    is low before the first step, and there is no descent. The same holds for the rate of the lowest loss.
    The edge itself is too high: divergence takes some steps to show, while the rate keeps increasing. On a noise-free
    parabola the edge is detected at 3.8 times the true stability limit (Nesterov momentum 0.9). With AdamW and noise it
    is detected sooner: on 150 hand signs (Lite0, 64 px, 8 epochs, 200 test images; probe 77 %) it was 1.3e-3 for the
    last stages and 0.7e-3 for all. Runs at exactly these rates reached 84 and 82 %, at half 79 and 80 %, at twice 56
    and 50 %: too low costs some points, too high everything.

    Args:
        rates: (n,) increasing.
        losses: (n,) before the step at each rate; the first one that is not finite counts as a rise.
        planned: The plan's rate, for the message.
        nothing: Loss of an uninformed network, > 0.

    Example:
        >>> rates = np.geomspace(1e-5, 1e-1, 41)  # the loss is 0.1 and rises from 1e-2 on
        >>> found = judge(rates, 0.1 + 100 * np.maximum(rates - 1e-2, 0), planned=1e-3, nothing=2.3)
        >>> 1e-2 / 4 < found.lr < 2e-2 / 4
        True
    """
    edge = _edge(losses, nothing=nothing)
    if edge == 0:
        lr, why = planned, f"the initial loss is not finite, so the plan's rate of {planned:.2g} is kept."
    elif edge is None:
        lr = rates[-1] / SAFETY
        why = (
            f"the training loss does not rise up to a learning rate of {rates[-1]:.2g}; a quarter of that, {lr:.2g}, "
            f"is used instead of {planned:.2g}."
        )
    else:
        risen = rates[edge - 1]
        lr = risen / SAFETY
        why = (
            f"the training loss rises from a learning rate of {risen:.2g} on; a quarter of that, {lr:.2g}, is used "
            f"instead of {planned:.2g}."
        )
    return RangeTest(
        lr=float(lr),
        planned=float(planned),
        rates=tuple(map(float, rates)),
        losses=tuple(map(float, losses)),
        why=f"In a range test of {len(losses)} steps {why}",
    )


# ---- The steps ------------------------------------------------------------------------------------------------------


def _copied(module: TransferModule) -> TransferModule:
    """A copy in training mode, in the plan's last phase, without trainer and gradients."""
    trainer = module._trainer
    trial: TransferModule = copy.deepcopy(module, {} if trainer is None else {id(trainer): None})
    start_last_phase(trial)
    trial.zero_grad(set_to_none=True)
    return trial


def _swept(trial: TransferModule, batches: Iterable[Any], rates: Floats, planned: float, seed: int) -> RangeTest:
    """Run steps until the loss has risen."""
    optimizer = last_optimizer(trial)
    planned_rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    nothing = math.nan
    _seed_all(draw_seed(seed, "range test"), trial.device)  # a loader may draw its order here
    with closing(_repeated(batches)) as endless, warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", NO_TRAINER)
        for number, batch in enumerate(islice(endless, len(rates))):
            batch = trial.transfer_batch_to_device(batch, trial.device, 0)
            if not number:
                nothing = _loss_of_nothing(trial, batch[1])
            _seed_all(draw_seed(seed, "range test", number), trial.device)
            losses.append(_step(trial, optimizer, batch, [rates[number] / planned * lr for lr in planned_rates]))
            if _edge(losses, nothing=nothing) is not None:
                break
    return judge(rates[: len(losses)].tolist(), losses, planned=planned, nothing=nothing)


def _step(trial: TransferModule, optimizer: torch.optim.Optimizer, batch: Any, rates: Sequence[float]) -> float:
    """One step at these rates, one for each group; returns the loss before it."""
    loss = trial.training_step(batch, 0)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if trial.recipe.clip:
        torch.nn.utils.clip_grad_norm_(trial.parameters(), trial.recipe.clip)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()
    return float(loss.detach())


def _loss_of_nothing(trial: TransferModule, targets: torch.Tensor) -> float:
    outputs = torch.zeros(len(targets), len(trial.model.classes), device=trial.device)
    return float(trial.task.loss(outputs, targets, weights=trial.class_weights))


def _repeated(batches: Iterable[Any]) -> Generator[Any, None, None]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise OptionError("A range test needs at least one batch of training images, got none.")


# ---- No trace -------------------------------------------------------------------------------------------------------


@contextmanager
def _no_trace(batches: Iterable[Any], device: torch.device) -> Iterator[None]:
    """Restore the state of all generators after the block."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_device = getattr(torch, device.type).get_rng_state() if device.type != "cpu" else None
    own = [(generator, generator.get_state()) for generator in _generators(batches)]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if on_device is not None:
            getattr(torch, device.type).set_rng_state(on_device)
        for generator, state in own:
            generator.set_state(state)


def _generators(batches: Iterable[Any]) -> list[torch.Generator]:
    """Generators of a loader and its samplers."""
    inner = getattr(batches, "batch_sampler", None)
    holders = (batches, getattr(batches, "sampler", None), inner, getattr(inner, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _seed_all(seed: int, device: torch.device) -> None:
    """Seed all generators. Not by `torch.manual_seed`, which stores the seed for uninitialised devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


# ---- The edge -------------------------------------------------------------------------------------------------------


def _edge(losses: Sequence[float], *, nothing: float) -> int | None:
    """Index of the first loss that has risen; None if none has.

    That is where the lower end of the smoothed loss's interval exceeds the lowest earlier upper end by `RISE`.
    """
    values = np.asarray(losses, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    finite = values[: broken[0]] if len(broken) else values
    if len(finite):
        smoothed, error = _smooth(finite)
        lowest = np.minimum.accumulate(smoothed + NOISE * error)
        risen = np.flatnonzero(smoothed - NOISE * error > lowest + RISE * nothing)
        risen = risen[risen >= FEWEST]
        if len(risen):
            return int(risen[0])
    return int(broken[0]) if len(broken) else None


def _smooth(losses: Floats) -> tuple[Floats, Floats]:
    """(n,) bias-corrected exponential averages, and their standard errors."""
    averages, average = np.empty_like(losses), 0.0
    for number, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        averages[number] = average / (1 - SMOOTHING ** (number + 1))
    left = SMOOTHING ** np.arange(1, len(losses) + 1)
    # Sum of the squared weights of the losses in each average.
    variance = (1 - SMOOTHING) / (1 + SMOOTHING) * (1 + left) / (1 - left)
    return averages, _noise(losses) * np.sqrt(variance)


def _noise(losses: Floats) -> float:
    """Standard deviation of single losses, from differences of neighbours, so that a trend does not affect it."""
    between = np.abs(np.diff(losses[:AT_REST]))
    # The median of |a - b| of two normal draws is 0.6745 sqrt(2) standard deviations.
    return float(np.median(between)) / (0.6745 * math.sqrt(2)) if len(between) else 0.0
