"""Which learning rate a network bears: a copy of it is trained for some steps at ever higher rates.

Nothing is left of it: module, batches and generators are afterwards what they were before, to the bit, also after an
error.
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
from transferkit.finetune.module import TransferModule
from transferkit.finetune.recipe import make_optimizer

__all__ = ["RangeTest", "find_rate", "judge"]

Floats = npt.NDArray[np.float64]

STEPS = 60
"""Steps in all, 15 per power of ten: neighbouring rates differ by a factor of 1.17."""

LOWEST, HIGHEST = 1e-2, 1e2
"""Rates tried, in units of the plan's."""

SMOOTHING = 0.8
"""Share of the average that each step keeps: it looks back on about 5 steps, a third of a power of ten."""

AT_REST = 15
"""First steps that the noise is read from: there the rates are below a tenth of the plan's, and little moves."""

NOISE = 3.0
"""Standard errors that the smoothed loss may be off to either side."""

FEWEST = 8
"""Losses from which on a rise is believed: of fewer the noise is not known. Rates are below 1/30 of the plan's."""

RISE = 0.1
"""What counts as a rise, as a share of the loss of knowing nothing (for K classes: log K). Not of the loss itself: a
solved head starts near 0, and many times next to nothing is still nothing."""

SAFETY = 4.0
"""What the edge is divided by, see `judge`."""

NO_TRAINER = ".*self.trainer. reference is not registered.*"
"""Lightning's warning that a value which the copy logs goes nowhere."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found.

    Args:
        lr: The learning rate to take, > 0, for what learns fastest in the plan's last phase.
        planned: What the plan has for that.
        rates: The rate of each step, rising.
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
        """What the plan's rates are to be multiplied by."""
        return self.lr / self.planned


def find_rate(
    module: TransferModule,
    batches: Iterable[Any],
    *,
    seed: int,
    steps: int = STEPS,
    device: torch.device | None = None,
) -> RangeTest:
    """Train a copy of a module under its plan's last phase, all rates rising together, until the loss rises.

    The optimizer, gradient clipping, weight decay and losses are the recipe's; precision is that of the weights.
    The answer depends on module, batches and seed alone. Before and after, these are bit for bit the same: the module
    (weights, statistics, gradients, modes, hooks), the generators of Python, NumPy, torch, the device and the batches'
    loader. An epoch that a sampler was told stays; where the batches are too few they are gone through again.

    Args:
        module: Not in need of a trainer; it is copied.
        batches: Of training images, as for `TransferModule`; must give them anew whenever it is iterated over.
        seed: Of what the steps draw.
        steps: From a hundredth of the plan's rate to 100 times that, >= 2; it stops earlier where the loss rises.
        device: Where the copy runs; None leaves it where the module is.

    Raises:
        OptionError: If there are no batches, or they can be gone through only once, or `steps` is too small.
        RuntimeError: If memory runs out.

    References:
        Smith, WACV 2017. Deviations: rates rise by a constant factor, not by a constant; what is chosen (see `judge`).
    """
    if steps < 2:
        raise OptionError(f"A range test needs steps >= 2, got {steps!r}.")
    if isinstance(batches, Iterator):
        raise OptionError("A range test needs batches that can be gone through again: a loader or a list.")
    device = module.device if device is None else device
    with _no_trace(batches, device):
        trial = _copied(module).to(device)
        planned = max(group["lrs"][-1] for group in trial.freeze_plan.groups())
        rates = planned * np.geomspace(LOWEST, HIGHEST, steps)
        return _swept(trial, batches, rates, planned, seed)


def judge(rates: Sequence[float], losses: Sequence[float], *, planned: float, nothing: float) -> RangeTest:
    """The rate to take, from the losses at rising rates.

    The edge is the first rate at which the smoothed loss has risen above its lowest level so far: by more than its
    noise, and by a tenth of the loss of knowing nothing. Taken is a quarter of it. Two usual rules do not work here.
    The rate of the steepest descent (Smith, 2017; fastai's "valley") is told by noise alone where the head was
    solved for: the loss is low before the first step, and there is no descent. So is the rate of the lowest loss.
    What remains is the edge, and it is too high in itself: steps that lead away from the minimum need time to show it,
    and the rate rises meanwhile. On a parabola without noise the edge is seen at 3.8 times the rate at which it is
    (Nesterov momentum 0.9). With AdamW and noise it is seen sooner: on 150 hand signs (Lite0, 64 px, 8 epochs, 200 test
    images; probe 77 %) it was 1.3e-3 for the last stages and 0.7e-3 for all. Runs at once these rates reached 84 and
    82 %, at a half 79 and 80 %, at twice 56 and 50 %: too low costs some points, too high everything.

    Args:
        rates: (n,) rising.
        losses: (n,) before the step at each rate; the first one that is not finite counts as a rise.
        planned: What the rates are compared with, for people.
        nothing: Loss of a network that says nothing, > 0.

    Example:
        >>> rates = np.geomspace(1e-5, 1e-1, 41)  # the loss is 0.1 and rises from 1e-2 on
        >>> found = judge(rates, 0.1 + 100 * np.maximum(rates - 1e-2, 0), planned=1e-3, nothing=2.3)
        >>> 1e-2 / 4 < found.lr < 2e-2 / 4
        True
    """
    edge = _edge(losses, nothing=nothing)
    if edge == 0:
        lr, why = planned, f"its loss is not finite to begin with, so the plan's rate of {planned:.2g} stays."
    elif edge is None:
        lr = rates[-1] / SAFETY
        why = (
            f"the training loss does not rise up to a learning rate of {rates[-1]:.2g}; a quarter of that, {lr:.2g}, "
            f"is taken instead of {planned:.2g}."
        )
    else:
        risen = rates[edge - 1]
        lr = risen / SAFETY
        why = (
            f"the training loss rises from a learning rate of {risen:.2g} on; a quarter of that, {lr:.2g}, is taken "
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
    """In training mode, the plan's last phase in force, without trainer and gradients."""
    trainer = module._trainer
    trial: TransferModule = copy.deepcopy(module, {} if trainer is None else {id(trainer): None})
    trial.freeze_plan.start(len(trial.freeze_plan.phases) - 1)
    trial.train()
    trial.freeze_plan.set_modes(training=True)
    trial.zero_grad(set_to_none=True)
    return trial


def _swept(trial: TransferModule, batches: Iterable[Any], rates: Floats, planned: float, seed: int) -> RangeTest:
    """Step after step until the loss has risen."""
    optimizer = _make_optimizer(trial)
    losses: list[float] = []
    nothing = math.nan
    _seed_all(draw_seed(seed, "range test"), trial.device)  # a loader may draw its order now
    with closing(_again_and_again(batches)) as endless, warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", NO_TRAINER)
        for number, batch in enumerate(islice(endless, len(rates))):
            batch = trial.transfer_batch_to_device(batch, trial.device, 0)
            if not number:
                nothing = _loss_of_nothing(trial, batch[1])
            _seed_all(draw_seed(seed, "range test", number), trial.device)
            losses.append(_step(trial, optimizer, batch, rates[number] / planned))
            if _edge(losses, nothing=nothing) is not None:
                break
    return judge(rates[: len(losses)].tolist(), losses, planned=planned, nothing=nothing)


def _make_optimizer(trial: TransferModule) -> torch.optim.Optimizer:
    """As the module would make it, for what the last phase trains."""
    groups = [{**group, "planned": group["lrs"][-1]} for group in trial.freeze_plan.groups() if group["lrs"][-1] > 0]
    return make_optimizer(trial.recipe, groups)


def _step(trial: TransferModule, optimizer: torch.optim.Optimizer, batch: Any, factor: float) -> float:
    """One step at so many times the plan's rates; returns the loss before it."""
    loss = trial.training_step(batch, 0)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if trial.recipe.clip:
        torch.nn.utils.clip_grad_norm_(trial.parameters(), trial.recipe.clip)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["planned"]
    optimizer.step()
    return float(loss.detach())


def _loss_of_nothing(trial: TransferModule, targets: torch.Tensor) -> float:
    outputs = torch.zeros(len(targets), len(trial.model.classes), device=trial.device)
    return float(trial.task.loss(outputs, targets, weights=trial.class_weights))


def _again_and_again(batches: Iterable[Any]) -> Generator[Any, None, None]:
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
    """Whatever is drawn inside, generators are afterwards where they were."""
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
    """Those that a loader and its samplers draw from."""
    inner = getattr(batches, "batch_sampler", None)
    holders = (batches, getattr(batches, "sampler", None), inner, getattr(inner, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _seed_all(seed: int, device: torch.device) -> None:
    """Not `torch.manual_seed`: devices that nobody has used yet would remember the seed until somebody does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


# ---- The edge -------------------------------------------------------------------------------------------------------


def _edge(losses: Sequence[float], *, nothing: float) -> int | None:
    """Number of the first loss that has risen; None if none has.

    That is where the lower end of the smoothed loss's interval is above the lowest upper end before by `RISE`.
    """
    seen = np.asarray(losses, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(seen))
    finite = seen[: broken[0]] if len(broken) else seen
    if len(finite):
        smoothed, error = _smooth(finite)
        lowest = np.minimum.accumulate(smoothed + NOISE * error)
        risen = np.flatnonzero(smoothed - NOISE * error > lowest + RISE * nothing)
        risen = risen[risen >= FEWEST]
        if len(risen):
            return int(risen[0])
    return int(broken[0]) if len(broken) else None


def _smooth(losses: Floats) -> tuple[Floats, Floats]:
    """(n,) exponential averages, freed of the bias to 0, and their standard errors."""
    averages, average = np.empty_like(losses), 0.0
    for number, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        averages[number] = average / (1 - SMOOTHING ** (number + 1))
    left = SMOOTHING ** np.arange(1, len(losses) + 1)
    # Sum of the squared weights of the losses in each average.
    variance = (1 - SMOOTHING) / (1 + SMOOTHING) * (1 + left) / (1 - left)
    return averages, _noise(losses) * np.sqrt(variance)


def _noise(losses: Floats) -> float:
    """Standard deviation of single losses, from differences of neighbours: a trend does not widen it."""
    between = np.abs(np.diff(losses[:AT_REST]))
    # The median of |a - b| of two normal draws is 0.6745 sqrt(2) standard deviations.
    return float(np.median(between)) / (0.6745 * math.sqrt(2)) if len(between) else 0.0
