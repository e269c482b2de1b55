"""What happens inside a network while it is trained, for any loop: updates against weights, gradients, activations,
statistics.

A `TrainingMonitor` hangs on hooks of the optimizer and of the layers, so a loop need not call it. It works in every
`every`-th step only; in all others a hook costs one comparison.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from transferkit.core.errors import OptionError
from transferkit.nn.activation_statistics import SATURATION, dead_share

__all__ = ["HEALTHY_UPDATES", "GroupStep", "LayerStep", "MonitoredStep", "TrainingMonitor", "group_parameters"]

HEALTHY_UPDATES = (1e-4, 1e-2)
"""Update / weight ratios of a healthy step. About 1e-3 is the textbook's value; fine-tuning starts a tenth below."""

MONITORED_IMAGES = 8
"""Images of a batch whose activations are looked at: more cost time and hardly change a layer's statistics."""

BINS = 24
"""Bins of a gradient's histogram, over powers of ten from 1e-12 on, two per power."""

LOWEST_POWER = -12

SATURATED = {nn.Tanh: SATURATION["tanh"], nn.Sigmoid: SATURATION["sigmoid"], nn.ReLU6: SATURATION["relu6"]}
"""Kind of nonlinearity -> outputs beyond which it is flat."""

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Hardswish)
"""Nonlinearities whose units can be dead: the same output for all images."""


@dataclass(frozen=True, kw_only=True)
class GroupStep:
    """One group of parameters in one step.

    Args:
        lr: Largest learning rate of its parameters.
        weight: Norm of the weights before the step.
        gradient: Norm of their gradients.
        update: Norm of what the step changed.
        noise: ||g - g'||^2 / (2 ||g||^2) with the gradient g' of the step before: 1 where successive gradients are
            independent, 0 where they are equal; None without one.
        histogram: Number of gradient values by size: below 10^-11.5, then two bins per power of ten.
    """

    lr: float
    weight: float
    gradient: float
    update: float
    noise: float | None
    histogram: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """||update|| / ||weight||; NaN for weights of zero."""
        return self.update / self.weight if self.weight > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class LayerStep:
    """The outputs of one layer or nonlinearity in one step.

    Args:
        mean, deviation: Over units and `MONITORED_IMAGES` images.
        dead: Share of units with one output for all of them, in [0, 1]; of rectifiers only.
        saturated: Share of values at which the nonlinearity is flat, in [0, 1].
    """

    mean: float
    deviation: float
    dead: float
    saturated: float


@dataclass(frozen=True, kw_only=True)
class MonitoredStep:
    """One monitored step.

    Args:
        step: Number of the optimizer's step, from 0.
        loss: As passed to `observe`; None if it was not.
        groups: Name -> group of parameters.
        layers: Path -> layer.
        drift: Path of each normalisation layer with running statistics -> mean distance of its means from those at
            the start, in units of its standard deviations then.
    """

    step: int
    loss: float | None
    groups: Mapping[str, GroupStep]
    layers: Mapping[str, LayerStep]
    drift: Mapping[str, float]


def group_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Names of the trainable parameters by the part of the network they belong to: the outermost level with two parts
    or more.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        >>> group_parameters(net)
        {'0.0': ['0.0.weight', '0.0.bias'], '0.2': ['0.2.weight', '0.2.bias']}
    """
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    depth = 1
    while len({_prefix(name, depth) for name in names}) < 2 and any(name.count(".") > depth for name in names):
        depth += 1
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_prefix(name, depth), []).append(name)
    return groups


def _prefix(name: str, depth: int) -> str:
    parts = name.split(".")[:-1]
    return ".".join(parts[:depth]) or name


class TrainingMonitor:
    """Records every `every`-th step of a training loop.

    Args:
        model: The network in training.
        optimizer: Whose steps count.
        every: Steps between two that are monitored, >= 1.
        groups: Name -> names of parameters; None for `group_parameters`.

    Attributes:
        steps: What was recorded, a `MonitoredStep` each.

    Raises:
        OptionError: `every` is below 1, or a group names an unknown parameter.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with TrainingMonitor(net, sgd, every=1) as monitor:
        ...     loss = net(torch.ones(4, 3)).pow(2).mean()
        ...     monitor.observe(loss)
        ...     loss.backward()
        ...     sgd.step()
        >>> monitor.steps[0].step, list(monitor.steps[0].groups)
        (0, ['weight', 'bias'])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 20,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if every < 1:
            raise OptionError(f"TrainingMonitor.every must be >= 1, got {every!r}.")
        named = dict(model.named_parameters())
        chosen = group_parameters(model) if groups is None else groups
        if unknown := [name for names in chosen.values() for name in names if name not in named]:
            raise OptionError(f"No parameter is called {unknown[0]!r}.")
        self.every = every
        self.steps = list[MonitoredStep]()
        self._model, self._count = model, 0
        self._groups = {name: [named[one] for one in names] for name, names in chosen.items()}
        self._loss: torch.Tensor | None = None
        self._layers = dict[str, LayerStep]()
        self._before = dict[str, list[torch.Tensor]]()
        self._previous = dict[str, list[torch.Tensor]]()
        self._start = {
            name: (module.running_mean.clone(), module.running_var.clone())
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), torch.Tensor)
            and isinstance(getattr(module, "running_var", None), torch.Tensor)
        }
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *(
                module.register_forward_hook(self._make_hook(name, module))
                for name, module in model.named_modules()
                if next(module.children(), None) is None and _is_watched(module)
            ),
        ]

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all hooks; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()
        self._previous.clear()

    def observe(self, loss: torch.Tensor | float) -> None:
        """Note the loss of the current step, before the optimizer's step; read only in monitored steps."""
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(float(loss))

    @property
    def is_due(self) -> bool:
        """Whether the current step is monitored."""
        return self._count % self.every == 0

    def _make_hook(self, name: str, watched: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # A copy of the network, for an average of its weights or a check, has this hook as well.
            if (
                module is watched
                and self.is_due
                and module.training
                and isinstance(output, torch.Tensor)
                and output.is_floating_point()
            ):
                self._layers[name] = _look_at(module, output.detach()[:MONITORED_IMAGES])

        return hook

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.is_due:
            for name, parameters in self._groups.items():
                self._before[name] = [one.detach().clone() for one in parameters]
        elif (self._count + 1) % self.every == 0:  # for the noise of the next step
            for name, parameters in self._groups.items():
                self._previous[name] = [_gradient(one).clone() for one in parameters if one.grad is not None]

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.is_due:
            rates = {id(one): float(group["lr"]) for group in optimizer.param_groups for one in group["params"]}
            self.steps.append(
                MonitoredStep(
                    step=self._count,
                    loss=None if self._loss is None else float(self._loss),
                    groups={name: self._measure(name, rates) for name in self._before},
                    layers=dict(self._layers),
                    drift=dict(self._drift()),
                )
            )
            self._before.clear()
            self._previous.clear()
            self._layers.clear()
        self._loss = None
        self._count += 1

    def _measure(self, name: str, rates: Mapping[int, float]) -> GroupStep:
        # After the step: with a closure there are no gradients before it.
        pairs = zip(self._groups[name], self._before[name], strict=True)
        trained, weights = [], []
        for one, before in pairs:
            if one.grad is not None:
                trained.append(one)
                weights.append(before)
        gradients = [_gradient(one) for one in trained]
        changes = [one.detach() - before for one, before in zip(trained, weights, strict=True)]
        return GroupStep(
            lr=max((rates.get(id(one), 0.0) for one in trained), default=0.0),
            weight=_norm(weights),
            gradient=_norm(gradients),
            update=_norm(changes),
            noise=_noise(gradients, self._previous.get(name)),
            histogram=_histogram(gradients),
        )

    def _drift(self) -> Iterator[tuple[str, float]]:
        for name, (mean, variance) in self._start.items():
            now: Any = self._model.get_submodule(name)
            if not isinstance(getattr(now, "running_mean", None), torch.Tensor):
                continue  # it was replaced
            mean, variance = mean.to(now.running_mean.device), variance.to(now.running_mean.device)
            yield name, float(((now.running_mean - mean).abs() / (variance + 1e-5).sqrt()).mean())

    def write_csv(self, path: str | Path) -> None:
        """Write a row for each monitored step and group of parameters."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "group", "lr", "weight", "gradient", "update", "ratio", "noise"])
            for one in self.steps:
                for name, group in one.groups.items():
                    row = asdict(group)
                    writer.writerow(
                        [
                            one.step,
                            one.loss,
                            name,
                            *(row[key] for key in ("lr", "weight", "gradient", "update")),
                            group.ratio,
                            group.noise,
                        ]
                    )


def _is_watched(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *SATURATED, *RECTIFIERS, nn.GELU, nn.SiLU))


def _look_at(module: nn.Module, output: torch.Tensor) -> LayerStep:
    low, high = SATURATED.get(type(module), (-math.inf, math.inf))
    wide = output.float()
    dead = dead_share(wide) if isinstance(module, RECTIFIERS) else 0.0
    flat = float(((wide <= low) | (wide >= high)).float().mean()) if math.isfinite(high) else 0.0
    return LayerStep(mean=float(wide.mean()), deviation=float(wide.std(correction=0)), dead=dead, saturated=flat)


def _gradient(one: torch.Tensor) -> torch.Tensor:
    assert one.grad is not None
    found = one.grad.detach()
    return found.coalesce().values() if found.is_sparse else found


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    if not tensors:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack([one.float().norm() for one in tensors])))


def _noise(gradients: Sequence[torch.Tensor], previous: Sequence[torch.Tensor] | None) -> float | None:
    if not previous or len(previous) != len(gradients):
        return None
    total = _norm(gradients) ** 2
    between = _norm([now - then for now, then in zip(gradients, previous, strict=True)]) ** 2
    return between / (2 * total) if total > 0 else None


def _histogram(gradients: Sequence[torch.Tensor]) -> tuple[int, ...]:
    counts = torch.zeros(BINS, dtype=torch.long)
    for one in gradients:
        sizes = one.abs().float().flatten()
        places = ((sizes.clamp_min(10.0 ** (LOWEST_POWER - 1)).log10() - LOWEST_POWER) * 2).long().clamp(0, BINS - 1)
        counts += torch.bincount(places.cpu(), minlength=BINS)
    return tuple(counts.tolist())
