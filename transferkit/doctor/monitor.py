"""What happens inside a network while it is trained, for any loop: updates against weights, gradients, activations,
statistics, features.

A `TrainingMonitor` hangs on hooks of the optimizer and, in the steps that it monitors, on a hook of torch itself, so a
loop need not call it and no copy of the network has a hook. It works in every `every`-th step only.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.doctor.feature_similarity import FeatureComparison
from transferkit.doctor.step_measures import (
    GroupStep,
    LayerStep,
    MonitoredStep,
    gradient_noise,
    gradient_of,
    group_parameters,
    is_measured,
    magnitudes,
    measure_layer,
    norm_of,
)

__all__ = ["TrainingMonitor"]

COLUMNS = ("step", "loss", "group", "lr", "weight", "gradient", "update", "ratio", "noise", "similarity")
"""Of the CSV file."""


class TrainingMonitor:
    """Records every `every`-th step of a training loop, and changes neither its numbers nor copies of its network.

    Args:
        model: The network in training.
        optimizer: Whose steps count.
        every: Steps between two that are monitored, >= 1.
        groups: Name -> names of parameters; None for `group_parameters`.
        stages: Name -> path of the module whose outputs are compared with those at the start; None for the groups that
            are modules.
        images: Number of images that are compared, from the first batch; 0 compares none.

    Attributes:
        steps: What was recorded, a `MonitoredStep` each.
        similarities: Number of steps taken -> stage -> linear CKA of its features with those at the start.
        missing: What could not be measured, a sentence each.

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
        stages: Mapping[str, str] | None = None,
        images: int = 16,
    ) -> None:
        if every < 1:
            raise OptionError(f"TrainingMonitor.every must be >= 1, got {every!r}.")
        named, modules = dict(model.named_parameters()), dict(model.named_modules())
        chosen = group_parameters(model) if groups is None else groups
        if unknown := [name for names in chosen.values() for name in names if name not in named]:
            raise OptionError(f"No parameter is called {unknown[0]!r}.")
        self.every = every
        self.steps = list[MonitoredStep]()
        self.similarities = dict[int, dict[str, float]]()
        self._model, self._count = model, 0
        self._groups = {name: [named[one] for one in names] for name, names in chosen.items()}
        self._loss: torch.Tensor | float = 0.0
        self._losses = 0
        self._gradient: float | None = None
        self._layers = dict[str, LayerStep]()
        self._before = dict[str, list[torch.Tensor]]()
        self._previous = dict[str, list[torch.Tensor]]()
        self._start = dict(_statistics(model))
        self._watched = {id(module): name for name, module in modules.items() if is_measured(module)}
        self._compiled = any(_is_compiled(module) for module in modules.values())
        stages = {name: name for name in chosen if name in modules} if stages is None else stages
        self._features = FeatureComparison(model, stages, images=images) if images and not self._compiled else None
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._open: list[RemovableHandle] = []
        self._listen()

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.compare_features()
        self.close()

    def close(self) -> None:
        """Remove all hooks; what was recorded stays."""
        for handle in (*self._handles, *self._open):
            handle.remove()
        self._handles.clear()
        self._open.clear()
        self._before.clear()
        self.forget_gradients()

    @property
    def missing(self) -> tuple[str, ...]:
        compiled = "The network is compiled: outputs of its layers and features are not measured."
        features = self._features.missing if self._features is not None else ""
        return tuple(one for one in (compiled if self._compiled else "", features) if one)

    @property
    def compared_images(self) -> int:
        """Number of images whose features are compared; 0 before the first step."""
        return 0 if self._features is None else self._features.count

    @property
    def is_due(self) -> bool:
        """Whether the current step is monitored."""
        return self._count % self.every == 0

    @property
    def steps_taken(self) -> int:
        """Steps of the optimizer, monitored or not."""
        return self._count

    def observe(self, loss: torch.Tensor | float) -> None:
        """Note the loss of the current step, or of one of its micro-batches, before the optimizer's step; read only in
        monitored steps."""
        if self._features is not None and not self._features.is_started:
            self._features.start()  # while the weights are those of the start
        if self.is_due:
            self._loss = self._loss + (loss.detach() if isinstance(loss, torch.Tensor) else loss)
            self._losses += 1

    def observe_gradient(self, norm: float) -> None:
        """Note the norm of the whole gradient before it is clipped."""
        self._gradient = norm

    def forget_gradients(self) -> None:
        """Drop the gradient that the noise of the next step would be measured with."""
        self._previous.clear()

    def compare_features(self) -> None:
        """Compare features with those at the start; nothing if that was done after this step already."""
        if self._features is None or not self._count or self._count in self.similarities:
            return
        if found := self._features.compare():
            self.similarities[self._count] = found

    def _listen(self) -> None:
        """Hooks of torch itself, in steps that need them: no module has one that a copy or a file of it would keep."""
        for handle in self._open:
            handle.remove()
        self._open.clear()
        if self.is_due and self._watched and not self._compiled:
            self._open.append(register_module_forward_hook(self._see_output))
        if self._features is not None and not (self._features.is_started or self._features.missing):
            self._open.append(register_module_forward_pre_hook(self._features.offer))

    def _see_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self._watched.get(id(module))
        # Not the layer's own mode: what is frozen is in evaluation mode while the rest is trained.
        if name is None or name in self._layers or not (self._model.training and torch.is_grad_enabled()):
            return
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            found = measure_layer(module, output)
            if found is not None:
                self._layers[name] = found

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._features is not None and not self._features.is_started:
            self._features.start()
        if self.is_due:
            for name, parameters in self._groups.items():
                self._before[name] = [one.detach().clone() for one in parameters]

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.is_due:
            rates = {id(one): float(group["lr"]) for group in optimizer.param_groups for one in group["params"]}
            groups = {name: self._measure(name, rates) for name in self._before}
            total = norm_of([torch.tensor(one.gradient) for one in groups.values()])
            self.steps.append(
                MonitoredStep(
                    step=self._count,
                    loss=float(self._loss) / self._losses if self._losses else None,
                    gradient=total if self._gradient is None else self._gradient,
                    groups=groups,
                    layers=dict(self._layers),
                    drift=dict(self._drift()),
                )
            )
            self._before.clear()
            self._layers.clear()
        self.forget_gradients()
        self._loss, self._losses, self._gradient = 0.0, 0, None
        self._count += 1
        if self.is_due:  # for the noise of the next step; before a step with a closure there would be none
            for name, parameters in self._groups.items():
                self._previous[name] = [gradient_of(one).clone() for one in parameters if one.grad is not None]
        self._listen()

    def _measure(self, name: str, rates: Mapping[int, float]) -> GroupStep:
        # After the step: with a closure there are no gradients before it.
        pairs = zip(self._groups[name], self._before[name], strict=True)
        trained = [(one, before) for one, before in pairs if one.grad is not None]
        gradients = [gradient_of(one) for one, _ in trained]
        return GroupStep(
            lr=max((rates.get(id(one), 0.0) for one, _ in trained), default=0.0),
            weight=norm_of([before for _, before in trained]),
            gradient=norm_of(gradients),
            update=norm_of([one.detach() - before for one, before in trained]),
            noise=gradient_noise(gradients, self._previous.get(name)),
            weights=magnitudes([one.detach() for one, _ in trained]),
            gradients=magnitudes(gradients),
        )

    def _drift(self) -> Iterator[tuple[str, float]]:
        now = dict(_statistics(self._model))
        for name, (mean, variance) in self._start.items():
            if name in now:  # else it was replaced
                moved = now[name][0] - mean.to(now[name][0].device)
                spread = (variance.to(moved.device) + 1e-5).sqrt()
                yield name, float((moved.abs() / spread).mean())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to record what an uninterrupted one would. Of most steps, histograms and layers
        are left out."""
        ends = {id(one) for one in (*self.steps[:1], *self.steps[-1:], *_first_trained(self.steps))}
        features = self._features
        return {
            "count": self._count,
            "steps": [to_json(one if id(one) in ends else _without_details(one)) for one in self.steps],
            "similarities": dict(self.similarities),
            "start": {name: [mean, variance] for name, (mean, variance) in self._start.items()},
            "features": features.state_dict() if features is not None and features.is_started else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._count = state["count"]
        self.steps = [from_json(MonitoredStep, one) for one in state["steps"]]
        self.similarities = {count: dict(found) for count, found in state["similarities"].items()}
        self._start = {name: (mean, variance) for name, (mean, variance) in state["start"].items()}
        if self._features is not None and state["features"] is not None:
            self._features.load_state_dict(state["features"])
        if self._handles:
            self._listen()

    def write_csv(self, path: str | Path) -> None:
        """Write a row for each monitored step and group of parameters; the similarity of features is that of the last
        comparison before the next of these steps, where there was one."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            ends = [*(one.step for one in self.steps[1:]), self._count]
            for one, end in zip(self.steps, ends, strict=True):
                latest = max((count for count in self.similarities if one.step < count <= end), default=None)
                alike = {} if latest is None else self.similarities[latest]
                for name, group in one.groups.items():
                    numbers = (group.lr, group.weight, group.gradient, group.update, group.ratio, group.noise)
                    writer.writerow([one.step, one.loss, name, *numbers, alike.get(name)])


def _first_trained(steps: Sequence[MonitoredStep]) -> Iterator[MonitoredStep]:
    """Of each group, the first step in which it was trained."""
    waiting = {name for one in steps for name in one.groups}
    for one in steps:
        if begun := {name for name in waiting if name in one.groups and one.groups[name].gradient}:
            waiting -= begun
            yield one


def _without_details(one: MonitoredStep) -> MonitoredStep:
    groups = {name: replace(group, weights=None, gradients=None) for name, group in one.groups.items()}
    return replace(one, groups=groups, layers={}, drift={})


def _statistics(model: nn.Module) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Path, means and variances of each layer with running statistics, copied."""
    for name, module in model.named_modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor):
            yield name, (mean.detach().clone(), variance.detach().clone())


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
