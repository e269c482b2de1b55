"""What a monitored step is described by: numbers of a group of parameters, and of a layer's outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from transferkit.nn.activation_statistics import SATURATION, dead_share
from transferkit.records import Histogram
from transferkit.records.monitoring import BINS, BINS_PER_POWER, LOWEST_POWER

__all__ = [
    "GroupStep",
    "LayerStep",
    "MonitoredStep",
    "gradient_of",
    "gradient_noise",
    "group_parameters",
    "is_measured",
    "magnitudes",
    "measure_layer",
    "norm_of",
]

MONITORED_IMAGES = 8
"""Images of a batch whose activations are measured: more cost time and hardly change a layer's statistics."""

COUNTED = 8_192
"""Values of a tensor that a histogram counts, evenly spaced: its shape does not change with more."""

BULK = 0.8
"""A group with this share of all trainable scalars is divided further, if it can be: it is the whole network."""

SATURATED = {nn.Tanh: SATURATION["tanh"], nn.Sigmoid: SATURATION["sigmoid"], nn.ReLU6: SATURATION["relu6"]}
"""Kind of nonlinearity -> outputs beyond which it is flat."""

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Hardswish)
"""Nonlinearities whose units can be dead: the same output for all images."""

MEASURED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *SATURATED, *RECTIFIERS, nn.GELU, nn.SiLU)
"""Layers whose outputs are measured."""


@dataclass(frozen=True, kw_only=True)
class GroupStep:
    """One group of parameters in one step.

    Args:
        lr: Largest learning rate of its parameters.
        weight: Norm of the weights before the step.
        gradient: Norm of their gradients, as the optimizer got them.
        update: Norm of what the step changed.
        noise: ||g - g'||^2 / (2 ||g||^2) with the gradient g' of the step before: 1 where successive gradients are
            independent, 0 where they are equal; None without one.
        weights, gradients: Absolute values after the step, of up to 8,192 evenly spaced ones per parameter; None where
            only the numbers above were kept.
    """

    lr: float
    weight: float
    gradient: float
    update: float
    noise: float | None
    weights: Histogram | None = None
    gradients: Histogram | None = None

    @property
    def ratio(self) -> float:
        """||update|| / ||weight||; NaN for weights of zero."""
        return self.update / self.weight if self.weight > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class LayerStep:
    """The outputs of one layer or nonlinearity in one step, at its first call.

    Args:
        mean, deviation: Over units and the batch's first 8 images, of about 8,192 evenly spaced values.
        dead: Share of units with one output for all of them, in [0, 1]; None where it is no rectifier, or for a single
            image.
        saturated: Share of values at which the nonlinearity is flat, in [0, 1]; None where it never is.
        values: Absolute values of the same ones.
    """

    mean: float
    deviation: float
    dead: float | None
    saturated: float | None
    values: Histogram


@dataclass(frozen=True, kw_only=True)
class MonitoredStep:
    """One monitored step.

    Args:
        step: Number of the optimizer's step, from 0.
        loss: As passed to `observe`, mean over the step's micro-batches; None if it was not.
        gradient: Norm of the whole gradient before clipping, as passed to `observe_gradient`; else that of the groups.
        groups: Name -> group of parameters.
        layers: Path -> layer.
        drift: Path of each normalisation layer with running statistics -> mean distance of its means from those at
            the start, in units of its standard deviations then.
    """

    step: int
    loss: float | None
    gradient: float
    groups: Mapping[str, GroupStep]
    layers: Mapping[str, LayerStep]
    drift: Mapping[str, float]


def group_parameters(model: nn.Module, *, among: Collection[str] | None = None) -> dict[str, list[str]]:
    """Names of the trainable parameters by the part of the network they belong to: the outermost level with two parts
    or more; a part with over 80 % of all parameters is divided further.

    Args:
        model: The network.
        among: Names of the parameters that count; None for all.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        >>> group_parameters(net)
        {'0.0': ['0.0.weight', '0.0.bias'], '0.2': ['0.2.weight', '0.2.bias']}
    """
    sizes = {
        name: one.numel()
        for name, one in model.named_parameters()
        if one.requires_grad and (among is None or name in among)
    }
    depths = dict.fromkeys(sizes, 1)
    while True:
        groups: dict[str, list[str]] = {}
        for name in sizes:
            groups.setdefault(_prefix(name, depths[name]), []).append(name)
        largest = max(groups.values(), key=lambda names: sum(sizes[name] for name in names), default=[])
        deeper = any(name.count(".") > depths[name] for name in largest)
        if not deeper or sum(sizes[name] for name in largest) <= BULK * sum(sizes.values()):
            return groups
        depths |= {name: depths[name] + 1 for name in largest}


def _prefix(name: str, depth: int) -> str:
    parts = name.split(".")[:-1]
    return ".".join(parts[:depth]) or name


def is_measured(module: nn.Module) -> bool:
    """Whether a module is a layer whose outputs say something: linear, convolution, nonlinearity."""
    return isinstance(module, MEASURED) and next(module.children(), None) is None


def measure_layer(module: nn.Module, output: torch.Tensor) -> LayerStep | None:
    """The outputs of a layer; None for an empty batch."""
    seen = output.detach()[:MONITORED_IMAGES]
    if not seen.numel():
        return None
    dead = dead_share(seen) if isinstance(module, RECTIFIERS) and len(seen) > 1 else None
    low, high = next((ends for kind, ends in SATURATED.items() if isinstance(module, kind)), (-math.inf, math.inf))
    values = _spaced(seen)
    flat = float(((values <= low) | (values >= high)).float().mean()) if math.isfinite(high) else None
    deviation, mean = torch.std_mean(values, correction=0)
    return LayerStep(
        mean=float(mean), deviation=float(deviation), dead=dead, saturated=flat, values=magnitudes([values])
    )


def _spaced(output: torch.Tensor) -> torch.Tensor:
    """About `COUNTED` values of outputs, evenly spaced over positions, then over units."""
    if output.dim() >= 4:  # so that maps in channels_last need not be copied to be counted
        step = min(max(1, math.isqrt(output.numel() // COUNTED)), min(output.shape[2:]))
        output = output[:, :, ::step, ::step]
    return output.flatten()[:: max(1, output.numel() // COUNTED)].float()


def gradient_of(one: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter that has one; of a sparse one its values."""
    assert one.grad is not None
    found = one.grad.detach()
    return found.coalesce().values() if found.is_sparse else found


def norm_of(tensors: Sequence[torch.Tensor]) -> float:
    """Euclidean norm of all of them together."""
    if not tensors:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack([one.float().norm() for one in tensors])))


def gradient_noise(gradients: Sequence[torch.Tensor], previous: Sequence[torch.Tensor] | None) -> float | None:
    """||g - g'||^2 / (2 ||g||^2); None without a gradient before, or with one of other shapes."""
    if not previous or [one.shape for one in previous] != [one.shape for one in gradients]:
        return None
    total = norm_of(gradients) ** 2
    between = norm_of([now - then for now, then in zip(gradients, previous, strict=True)]) ** 2
    return between / (2 * total) if total > 0 else None


def magnitudes(tensors: Sequence[torch.Tensor]) -> Histogram:
    """Absolute values by size.

    Example:
        >>> found = magnitudes([torch.tensor([0.0, 2e-12, 0.2, 1e3, float("nan")])])
        >>> found.counts[0], found.counts[22], found.counts[-1], found.not_finite
        (2, 1, 1, 1)
    """
    counts, not_finite = [0] * BINS, 0
    taken = [one.flatten()[:: math.ceil(one.numel() / COUNTED)] for one in tensors if one.numel()]
    if taken:
        sizes = torch.cat([one.float() for one in taken]).abs()
        finite = sizes[sizes.isfinite()]
        not_finite = len(sizes) - len(finite)
        # Below the smallest power only to have a logarithm: it falls into the first bin as well.
        powers = finite.clamp_min(10.0 ** (LOWEST_POWER - 1)).log10()
        places = ((powers - LOWEST_POWER) * BINS_PER_POWER).long().clamp(0, BINS - 1)
        counts = torch.bincount(places, minlength=BINS).tolist()
    return Histogram(counts=tuple(counts), not_finite=not_finite)
