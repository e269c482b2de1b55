"""Reading a batch normalisation layer's statistics, affine map and options.

Supports torch's layers, timm's with fused dropout and activation, and the frozen ones of torchvision and timm, which
share no base class. They are recognised by their attributes, so neither library needs to be installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import OptionError

__all__ = [
    "FOLLOWERS",
    "NormSource",
    "folded_affine",
    "followers_of",
    "is_batch_norm",
    "nearest_divisor",
    "read_source",
]

FOLLOWERS = ("drop", "act")
"""Children that may follow the normalisation in the same module, in order: timm's dropout and activation."""

EPS = 1e-5
"""torch's default, for a layer without the attribute."""

MOMENTUM = 0.1
"""torch's default, for a layer without the attribute, such as a frozen one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NormSource:
    """State of a batch normalisation layer; the tensors are the layer's, not copies.

    Args:
        channels: C, >= 1.
        eps: Added to variances, >= 0.
        momentum: Weight of a new batch in the running statistics; None weights all batches equally.
        weight, bias: (C,) of the affine map, or None.
        mean, variance: (C,) running statistics, both or neither.
        count: Number of batches behind them, an integer tensor; None if not recorded.
    """

    channels: int
    eps: float
    momentum: float | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    mean: torch.Tensor | None
    variance: torch.Tensor | None
    count: torch.Tensor | None

    @property
    def like(self) -> torch.Tensor:
        """A tensor with the layer's precision and device."""
        return next((tensor for tensor in (self.weight, self.bias, self.mean) if tensor is not None), torch.empty(0))


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is batch normalisation, frozen variants included.

    Example:
        >>> is_batch_norm(nn.BatchNorm2d(3)), is_batch_norm(nn.GroupNorm(1, 3))
        (True, False)
    """
    if isinstance(module, _BatchNorm):
        return True
    held = (getattr(module, name, None) for name in ("running_mean", "running_var", "weight", "bias"))
    is_frozen_one = all(isinstance(tensor, torch.Tensor) and tensor.ndim == 1 for tensor in held)
    return is_frozen_one and "BatchNorm" in type(module).__name__


def followers_of(layer: nn.Module) -> Iterator[nn.Module]:
    """The dropout and the activation inside a normalisation layer, in the order in which they run.

    Example:
        >>> list(followers_of(nn.BatchNorm2d(3)))
        []
    """
    for name in FOLLOWERS:
        follower = layer._modules.get(name)
        if follower is not None:
            yield follower


def read_source(layer: nn.Module) -> NormSource:
    """The state of a batch normalisation layer.

    Raises:
        OptionError: If it is not such a layer, is lazy and uninitialised, or has unknown children.

    Example:
        >>> read_source(nn.BatchNorm2d(3, eps=1e-3)).eps
        0.001
    """
    if problem := next(_problems(layer), None):
        raise OptionError(f"{type(layer).__name__} {problem}")
    weight, bias, mean, variance, count = (
        getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    )
    channels = getattr(layer, "num_features", None)
    return NormSource(
        channels=len(mean) if channels is None and mean is not None else int(channels or 0),
        eps=float(getattr(layer, "eps", EPS)),
        momentum=getattr(layer, "momentum", MOMENTUM),
        weight=weight,
        bias=bias,
        mean=mean,
        variance=variance,
        count=count,
    )


def _problems(layer: nn.Module) -> Iterator[str]:
    if not is_batch_norm(layer):
        yield "is not batch normalisation. Pass a layer such as torch.nn.BatchNorm2d."
    if any(nn.parameter.is_lazy(tensor) for tensor in layer.state_dict().values()):
        yield "is lazy and has no channels yet. Run one batch through the network first."
    if strange := sorted(set(dict(layer.named_children())) - set(FOLLOWERS)):
        yield f"has a child {strange[0]!r} that a replacement would lose; supported are: {', '.join(FOLLOWERS)}."


def folded_affine(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map equivalent to a batch normalisation layer in evaluation mode, without dropout and activation.

    Args:
        layer: With running statistics.

    Returns:
        Scale and shift, two (C,): the layer computes x * scale + shift.

    Raises:
        OptionError: If it keeps no running statistics.

    Example:
        >>> scale, shift = folded_affine(nn.BatchNorm1d(2, eps=0))
        >>> scale.tolist(), shift.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    source = read_source(layer)
    if source.mean is None or source.variance is None:
        raise OptionError(
            f"{type(layer).__name__} has no running statistics. Pass a layer with track_running_stats=True."
        )
    scale = (source.variance.detach() + source.eps).rsqrt()
    if source.weight is not None:
        scale = scale * source.weight.detach()
    shift = -source.mean.detach() * scale
    return scale, shift if source.bias is None else shift + source.bias.detach()


def nearest_divisor(channels: int, groups: int) -> int:
    """The divisor of `channels` nearest to `groups`; on a tie the smaller, which is closer to batch statistics.

    Args:
        channels: >= 1.
        groups: >= 1.

    Returns:
        A divisor of `channels`.

    Example:
        >>> nearest_divisor(96, 32), nearest_divisor(40, 32), nearest_divisor(9, 2)
        (32, 40, 1)
    """
    if groups < 1:
        raise OptionError(f"Groups must be >= 1, got {groups!r}.")
    divisors = [number for number in range(1, channels + 1) if channels % number == 0]
    return min(divisors, key=lambda number: (abs(number - groups), number))
