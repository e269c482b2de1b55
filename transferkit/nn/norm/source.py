"""What a batch normalisation layer knows: its moments, its affine map, its places in a batch.

torch's own layers, those of timm that drop out and activate as well, and the frozen ones of torchvision and timm, which
share no base class, all tell the same things. They are known by what they hold, so no library need be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import OptionError

__all__ = ["FOLLOWERS", "NormSource", "folded_affine", "is_batch_norm", "nearest_divisor", "read_source"]

FOLLOWERS = ("drop", "act")
"""What may follow the normalisation inside the same module, in this order: timm's names for dropout and activation."""

EPS = 1e-5
"""torch's default, for a layer that names none."""

MOMENTUM = 0.1
"""torch's default, for a layer that names none: one that was frozen has no use for it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NormSource:
    """What is read of a layer; the tensors are the layer's own.

    Args:
        channels: C, >= 1.
        eps: Added to variances, >= 0.
        momentum: Weight of a new batch in the running statistics; None counts all batches alike.
        weight, bias: (C,) of the affine map, or None.
        mean, variance: (C,) running statistics, both or neither.
        count: Batches they were measured on, an integer tensor; None if it was not kept.
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
        """Has the layer's precision and device."""
        return next((tensor for tensor in (self.weight, self.bias, self.mean) if tensor is not None), torch.empty(0))


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it normalises channels by statistics of a batch, or by those that it once measured.

    Example:
        >>> is_batch_norm(nn.BatchNorm2d(3)), is_batch_norm(nn.GroupNorm(1, 3))
        (True, False)
    """
    if isinstance(module, _BatchNorm):
        return True
    held = (getattr(module, name, None) for name in ("running_mean", "running_var", "weight", "bias"))
    is_frozen_one = all(isinstance(tensor, torch.Tensor) and tensor.ndim == 1 for tensor in held)
    return is_frozen_one and "BatchNorm" in type(module).__name__


def read_source(layer: nn.Module) -> NormSource:
    """What a batch normalisation layer knows.

    Raises:
        OptionError: If it is no such layer, has not seen its first batch, or holds parts of an unknown kind.

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
        yield "is no batch normalisation. Give a layer such as torch.nn.BatchNorm2d."
    if any(nn.parameter.is_lazy(tensor) for tensor in layer.state_dict().values()):
        yield "does not know its channels yet. Send one batch through the network first."
    if strange := sorted(set(dict(layer.named_children())) - set(FOLLOWERS)):
        yield f"holds a part {strange[0]!r} that a replacement would lose; known are: {', '.join(FOLLOWERS)}."


def folded_affine(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map that a batch normalisation layer is in evaluation mode, dropout and activation aside.

    Args:
        layer: With running statistics.

    Returns:
        Scale and shift, two (C,): the layer gives x * scale + shift.

    Raises:
        OptionError: If it keeps no running statistics.

    Example:
        >>> scale, shift = folded_affine(nn.BatchNorm1d(2, eps=0))
        >>> scale.tolist(), shift.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    source = read_source(layer)
    if source.mean is None or source.variance is None:
        raise OptionError(f"{type(layer).__name__} keeps no running statistics; without them it is no affine map.")
    scale = (source.variance.detach() + source.eps).rsqrt()
    if source.weight is not None:
        scale = scale * source.weight.detach()
    shift = -source.mean.detach() * scale
    return scale, shift if source.bias is None else shift + source.bias.detach()


def nearest_divisor(channels: int, groups: int) -> int:
    """The number of equal groups nearest to the one asked for, the smaller one of two: it is nearer to batch
    statistics.

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
