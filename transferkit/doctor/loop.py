"""What a training loop does wrong, seen from hooks while it runs: gradients that are never zeroed, evaluation in
training mode, statistics and parameters that move though they are frozen, steps too large or too small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from transferkit.doctor.causes import ranked
from transferkit.doctor.checks.registry import listed
from transferkit.doctor.checks.trial import median_move
from transferkit.records import Diagnosis, Symptom

__all__ = ["LoopWatch"]

WATCHED = 3
"""Parameters whose gradients are compared: the smallest ones, which cost nothing."""

OFTEN = 3
"""Steps that must show a fault before it is one."""

MEASURED = frozenset({0, 1, 2, 5, 10, 20, 30, 40, 49, 75, 99})
"""Steps whose updates are measured: each costs a copy of the trained weights."""

HIGHEST, LOWEST = 0.1, 5e-5
"""Largest update / weight ratio of the median layer beyond which steps destroy what was learnt, or do nothing: 2e-4 to
8e-3 in healthy set-ups."""

DIVERGED = 4.0
"""A loss that stays above this many times the first one has diverged."""

VANISHED = 0.01
"""Share of the highest rate below which nothing more is learnt."""

FEWEST = 10
"""Steps below which nothing is said of rates."""


class LoopWatch:
    """Watches the first steps of a training loop.

    Args:
        model: The network in training.
        optimizer: Whose steps count.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with LoopWatch(net, sgd) as watch:
        ...     for _ in range(5):  # the loop forgets sgd.zero_grad()
        ...         loss = net(torch.ones(4, 3)).pow(2).mean()
        ...         loss.backward()
        ...         sgd.step()
        >>> [one.cause for one in watch.diagnose().symptoms]
        ['gradients_not_zeroed']
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._steps = self._kept = self._checked = 0
        self._losses = list[float]()
        self._ratios = list[float]()
        self._modes = {"right": 0, "trained": 0, "evaluated": 0}
        self._rates = list[float]()
        self._received = self._seen = 0
        self._random = [name for name, one in model.named_modules() if _depends_on_mode(one)]
        self._fresh = dict[int, bool]()
        self._incoming = dict[int, torch.Tensor]()
        self._before = dict[str, torch.Tensor]()
        self._start = {name: one.detach().clone() for name, one in _frozen_values(model)}
        self._first = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
        trained = sorted((one for one in model.parameters() if one.requires_grad), key=lambda one: one.numel())
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._watched = trained[:WATCHED]
        for one in self._watched:
            self._fresh[id(one)] = True
            self._handles += [
                one.register_hook(self._receiver(one)),  # type: ignore[no-untyped-call]
                one.register_post_accumulate_grad_hook(self._compare),  # type: ignore[no-untyped-call]
            ]

    def __enter__(self) -> LoopWatch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all hooks; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def observe(self, loss: torch.Tensor | float) -> None:
        """Note the loss of a step."""
        self._losses.append(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))

    def diagnose(self) -> Diagnosis:
        """What was seen so far, alarms first."""
        found = [
            *self._accumulated(),
            *(self._wrong_modes() if self._learns else ()),
            *self._moved(),
            *self._vanishing(),
            *self._too_far(),
        ]
        names = ("zero_grad", "modes", "frozen", "updates")
        return Diagnosis(
            symptoms=ranked(found),
            passed=() if found else names,
        )

    def _receiver(self, one: torch.Tensor) -> Any:
        def hook(gradient: torch.Tensor) -> None:
            if self._fresh[id(one)]:
                self._incoming[id(one)] = gradient.detach().clone()

        return hook

    def _compare(self, one: torch.Tensor) -> None:
        """The first gradient after a step must be all that is there."""
        incoming = self._incoming.pop(id(one), None)
        self._received += 1
        if incoming is None or one.grad is None or one.grad.is_sparse:
            return
        self._fresh[id(one)] = False
        if self._steps and bool(incoming.any()) and bool(torch.isfinite(incoming).all()):
            self._checked += 1
            self._kept += not torch.equal(one.grad, incoming.to(one.grad.dtype))

    def _before_forward(self, model: nn.Module, inputs: Any) -> None:
        if model is not self._model or not self._random:
            return
        training = any(model.get_submodule(name).training for name in self._random)
        if not torch.is_grad_enabled():
            self._modes["evaluated"] += training
        elif training or model.training:
            self._modes["right"] += 1
        else:
            self._modes["trained"] += 1

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._rates.append(max(group["lr"] for group in optimizer.param_groups))
        self._seen += any(one.grad is not None for one in self._watched)
        if self._steps in MEASURED:
            self._before = {
                name: one.detach().clone()
                for name, one in _hidden_weights(self._model)
                if one.requires_grad and one.grad is not None
            }

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._before:
            now = dict(self._model.named_parameters())
            moved = median_move((before, now[name]) for name, before in self._before.items() if name in now)
            if moved is not None:
                self._ratios.append(moved)
            self._before = {}
        self._steps += 1
        self._fresh = dict.fromkeys(self._fresh, True)

    def _accumulated(self) -> Iterator[Symptom]:
        if self._kept >= OFTEN and 2 * self._kept > self._checked:
            yield Symptom(
                cause="gradients_not_zeroed",
                severity="alarm",
                evidence=f"In {self._kept} of {self._checked} comparisons the gradients of earlier steps were still "
                "there when a new step began.",
                remedy="Call optimizer.zero_grad() once for each step of the optimizer.",
            )

    def _wrong_modes(self) -> Iterator[Symptom]:
        if self._modes["evaluated"]:
            yield Symptom(
                cause="evaluated_in_training_mode",
                severity="alarm",
                evidence=f"{self._modes['evaluated']} forward passes without gradients ran in training mode: dropout "
                "was on, or batch statistics were used and updated.",
                remedy="Call model.eval() before evaluating, and model.train() afterwards.",
            )
        changed = self._modes["right"] > 0
        if self._modes["trained"] > OFTEN and not self._modes["evaluated"] and (changed or self._any_trained_mode()):
            first = f", after {self._modes['right']} in training mode" if changed else ""
            yield Symptom(
                cause="trained_in_evaluation_mode",
                severity="alarm" if changed else "note",
                evidence=f"{self._modes['trained']} training passes ran with all dropout and normalisation in "
                f"evaluation mode{first}.",
                remedy="Call model.train() again after each evaluation."
                if changed
                else "Call model.train() before training, unless that is meant.",
            )

    def _any_trained_mode(self) -> bool:
        """Whether a layer that behaves otherwise in training has parameters that are trained."""
        modules = (self._model.get_submodule(name) for name in self._random)
        return any(one.requires_grad for module in modules for one in module.parameters())

    def _moved(self) -> Iterator[Symptom]:
        now = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        moved = [
            name
            for name, before in self._start.items()
            if name in now and not now[name].requires_grad and not torch.equal(now[name].detach(), before)
        ]
        parameters = [name for name in moved if isinstance(now[name], nn.Parameter)]
        statistics = sorted({name.rpartition(".")[0] for name in moved if name not in parameters})
        if parameters:
            yield Symptom(
                cause="frozen_moves",
                severity="alarm",
                evidence=f"{len(parameters)} frozen parameters were moved: {listed(parameters)}.",
                remedy="Take them out of the optimizer, or set their gradients to None.",
                items=tuple(parameters),
            )
        if statistics:
            yield Symptom(
                cause="frozen_norm_in_training_mode",
                severity="alarm",
                evidence=f"The running statistics of {len(statistics)} frozen normalisation layers moved: "
                f"{listed(statistics)}.",
                remedy="Keep frozen layers in evaluation mode, also after model.train() (FreezePlanCallback does).",
                items=tuple(statistics),
            )
        if (
            self._steps > OFTEN
            and self._first
            and all(name in now and torch.equal(now[name].detach(), before) for name, before in self._first.items())
        ):
            yield Symptom(
                cause="step_changes_nothing",
                severity="alarm",
                evidence=f"{self._steps} steps moved none of {len(self._first)} trained parameters{self._why_still}.",
                remedy="Check that the optimizer holds this model's parameters, that gradients reach them, that "
                "zero_grad() does not come between backward() and step(), and that the rate is not zero.",
            )

    @property
    def _learns(self) -> bool:
        """Whether gradients came; before the first step nothing is known."""
        return self._received > 0 or self._steps <= OFTEN or not self._fresh

    @property
    def _why_still(self) -> str:
        if not self._fresh or self._steps <= OFTEN:
            return ""
        if not self._received:
            return ": backward() gave them no gradient"
        return ": gradients came, and were gone before the step" if not self._seen else ""

    def _vanishing(self) -> Iterator[Symptom]:
        """A schedule that ends long before the loop does."""
        highest = max(self._rates, default=0.0)
        peak = len(self._rates) - self._rates[::-1].index(highest) if highest else 0
        tail = [one for one in self._rates[peak:] if one < VANISHED * highest]
        if len(tail) > max(FEWEST, self._steps // 4) and self._rates[-1] < VANISHED * highest:
            yield Symptom(
                cause="rate_vanishes",
                severity="alarm",
                evidence=f"The learning rate fell from {highest:.3g} to {self._rates[-1]:.3g} within {self._steps} "
                f"steps, of which {len(tail)} were made below a hundredth of it.",
                remedy="Give the schedule the length of the training, in the unit in which it is stepped.",
            )

    def _too_far(self) -> Iterator[Symptom]:
        losses = [one for one in self._losses if math.isfinite(one)]
        if len(losses) < len(self._losses):
            yield Symptom(
                cause="loss_not_finite",
                severity="alarm",
                evidence=f"The loss was not finite in {len(self._losses) - len(losses)} of {len(self._losses)} steps.",
                remedy="Lower the learning rate, and look for divisions and logarithms of zero.",
            )
        if self._steps < FEWEST:
            return
        largest = max(self._ratios, default=math.nan)
        highest = sorted(self._ratios)[-2:][0] if self._ratios else math.nan
        start, end = losses[0] if losses else math.nan, _mean(losses[-5:])
        if highest > HIGHEST or (len(losses) >= FEWEST and end > DIVERGED * start):
            yield Symptom(
                cause="lr_too_high",
                severity="alarm",
                evidence=f"A step moves the weights of the median layer by up to {100 * highest:.2g} % of their size, "
                f"and the loss went from {start:.3g} to {end:.3g}.",
                remedy="Divide the learning rate by ten.",
            )
        elif largest < LOWEST:
            yield Symptom(
                cause="lr_too_low",
                severity="alarm",
                evidence=f"A step moves the weights of the median layer by at most {largest:.1g} of their size, and "
                f"the loss went from {start:.3g} to {end:.3g}.",
                remedy="Multiply the learning rate by thirty to a hundred.",
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a module does something else in training: dropout, or normalisation with running statistics."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def _frozen_values(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Frozen parameters, and running statistics of layers none of whose parameters is trained."""
    for prefix, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        for name, one in own:
            if not one.requires_grad:
                yield f"{prefix}.{name}".lstrip("."), one
        if own and not any(one.requires_grad for _, one in own):
            for name, buffer in module.named_buffers(recurse=False):
                yield f"{prefix}.{name}".lstrip("."), buffer


def _hidden_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    weights = [(name, one) for name, one in model.named_parameters() if one.dim() > 1]
    return weights[:-1]
