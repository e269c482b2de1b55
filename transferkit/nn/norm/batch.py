"""Batch normalisation made from another one: as it was, or with one thing about it fixed or set.

Each layer takes the one it replaces and copies what that knows: affine map, running statistics, precision and device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import DataError, OptionError
from transferkit.nn.norm.fused import Fused, check_layout, take_affine, take_followers
from transferkit.nn.norm.source import NormSource, read_source

__all__ = [
    "SLOW_MOMENTUM",
    "AffineFrozenBatchNorm",
    "BatchNorm",
    "FrozenBatchNorm",
    "SyncBatchNorm",
    "batch_moments",
    "needs_statistics",
    "unbiased",
]

SLOW_MOMENTUM = 0.01
"""Weight of a new batch. TensorFlow's EfficientNets were trained with it (as decay 0.99), and timm names it so: ten
times slower than torch's default, it lets a few odd batches pass."""


class BatchNorm(Fused, _BatchNorm):
    """Batch normalisation as torch has it, whatever the number of axes; of one kind with the layer it is made of.

    In training y = (x - mean_B) / sqrt(var_B + eps) * weight + bias with the moments of the batch and all positions,
    and the running statistics follow these; in evaluation the running statistics take their place.

    Args:
        layer: Batch normalisation to copy; it stays as it is.
        momentum: Weight of a new batch in the running statistics, in (0, 1], or None to count all batches alike.
            Left out, it is the layer's.

    Raises:
        OptionError: If the layer is no batch normalisation, or the momentum is out of range.

    Shape:
        (N, C, ...) -> the same. In training a channel needs two values at least: images times positions.

    References:
        Ioffe & Szegedy, ICML 2015.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> slow = BatchNorm(layer, momentum=0.01)
        >>> images = torch.randn(4, 3, 5, 5)
        >>> torch.equal(slow(images), layer(images)), slow.momentum
        (True, 0.01)
    """

    LAYERS_OWN = math.inf
    """Stands for the momentum of the layer, since None means something already."""

    def __init__(self, layer: nn.Module, *, momentum: float | None = LAYERS_OWN) -> None:
        source = read_source(layer)
        if momentum is not None and momentum != self.LAYERS_OWN and not 0 < momentum <= 1:
            raise OptionError(f"The momentum of running statistics must be in (0, 1], or None, got {momentum!r}.")
        super().__init__(source.channels, source.eps, source.momentum if momentum == self.LAYERS_OWN else momentum)
        take_affine(self, source)
        take_followers(self, layer)
        self.affine = source.weight is not None
        self.track_running_stats = source.mean is not None
        for name, tensor in (("running_mean", source.mean), ("running_var", source.variance)):
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self.register_buffer("num_batches_tracked", _counted(source))
        self.training = layer.training  # not train(): what follows may be the layer's own

    def _check_input_dim(self, input: torch.Tensor) -> None:
        check_layout(input, self.num_features, self)
        if self.training or self.running_mean is None:
            self._check_count(input)

    def _check_count(self, values: torch.Tensor) -> None:
        if values.numel() == values.shape[1]:
            raise DataError(
                f"{type(self).__name__} in training needs 2 values per channel to tell how they vary, got 1: shape "
                f"{tuple(values.shape)}. Give batches of 2 images at least, or swap to a kind that needs no batch: "
                "frozen, group."
            )

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """Inside, training is plain batch normalisation and every batch counts: for statistics estimated anew."""
        yield

    def extra_repr(self) -> str:
        """As torch has it."""
        return str(super().extra_repr())  # type: ignore[no-untyped-call, unused-ignore]

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        return _BatchNorm.forward(self, values)

    def _normalise(self, values: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) by these moments, two (C,), into which gradients flow, and by the affine map."""
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, -1, *(1,) * (values.ndim - 2))  # one pass over the values, for there are many
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(values.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> float:
        """Take a batch's mean and unbiased variance, two (C,), into the running statistics.

        Returns:
            The weight that they were given.
        """
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return 0.0
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            weight = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
            self.running_var.lerp_(variance.to(self.running_var.dtype), weight)
        return weight


def _counted(source: NormSource) -> torch.Tensor | None:
    """A copy of the number of batches; 0 where statistics are kept but not how many batches made them."""
    if source.mean is None:
        return None
    if source.count is None:
        return torch.zeros((), dtype=torch.long, device=source.mean.device)
    return source.count.detach().clone()


def batch_moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, biased variance and number of values of each channel.

    Args:
        values: (N, C, ...) float.

    Returns:
        (C,), (C,) in single precision at least, and the number.

    Example:
        >>> mean, variance, count = batch_moments(torch.tensor([[1.0], [3.0]]))
        >>> mean.item(), variance.item(), count
        (2.0, 1.0, 2)
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    axes = [0, *range(2, values.ndim)]
    mean = values.mean(dim=axes, keepdim=True)
    variance = (values - mean).square().mean(dim=axes)  # half the time of torch.var_mean
    return mean.flatten(), variance, values.numel() // values.shape[1]


def unbiased(variance: torch.Tensor, count: int) -> torch.Tensor:
    """The variance over `count` values as running statistics keep it, like torch's: divided by count - 1."""
    return variance * (count / max(count - 1, 1))


def needs_statistics(layer: nn.Module, kind: str) -> NormSource:
    """What the layer knows, running statistics among it.

    Raises:
        OptionError: If it keeps none.
    """
    source = read_source(layer)
    if source.mean is None:
        raise OptionError(
            f"{type(layer).__name__} keeps no running statistics, which {kind} needs. "
            "Swap to a kind that needs none, such as group, or give a layer with track_running_stats=True."
        )
    return source


class FrozenBatchNorm(BatchNorm):
    """Batch normalisation by its running statistics always: the same bits in training and in evaluation.

    y = x * scale + shift with what `folded_affine` gives. Statistics never move; the affine map may learn. Gradients
    treat the statistics as constants, so nothing ties the images of a batch together.

    Args:
        layer: With running statistics.

    Raises:
        OptionError: If it keeps none.

    Shape:
        (N, C, ...) -> the same

    References:
        Detection code has long done so (He et al., ICCV 2017). Deviation: the affine map may learn; torchvision's
        `FrozenBatchNorm2d` freezes it too.

    Example:
        >>> frozen = FrozenBatchNorm(nn.BatchNorm2d(3))
        >>> image = torch.randn(1, 3, 5, 5)
        >>> torch.equal(frozen.train()(image), frozen.eval()(image))
        True
    """

    def __init__(self, layer: nn.Module) -> None:
        needs_statistics(layer, "frozen")
        super().__init__(layer)
        # torch's word for statistics that do not follow; who counts what moves reads it.
        self.track_running_stats = False

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_features, self)
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class AffineFrozenBatchNorm(BatchNorm):
    """Batch normalisation whose affine map cannot learn; its statistics follow the batches as ever.

    The map is kept in buffers, so that no plan and no optimizer can reach it; its name in a state_dict stays.

    Args:
        layer: Batch normalisation to copy; it stays as it is.

    Shape:
        (N, C, ...) -> the same

    Example:
        >>> layer = AffineFrozenBatchNorm(nn.BatchNorm2d(3))
        >>> list(layer.parameters()), sorted(layer.state_dict())
        ([], ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight'])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        for name in ("weight", "bias"):
            learnt = self._parameters.pop(name)
            self.register_buffer(name, None if learnt is None else learnt.detach())


class SyncBatchNorm(BatchNorm, nn.SyncBatchNorm):
    """torch's batch normalisation over the batches of all processes, with the dropout and activation of timm's layers.

    In one process it is plain batch normalisation. It takes effect on GPUs under torch.distributed only.

    Args:
        layer: Batch normalisation to copy; it stays as it is.

    Shape:
        (N, C, ...) -> the same

    References:
        `torch.nn.SyncBatchNorm`, whose forward pass it runs. Deviation: `convert_sync_batchnorm` shares the tensors of
        the layer and loses what follows inside timm's; this copies both.

    Example:
        >>> isinstance(SyncBatchNorm(nn.BatchNorm2d(3)), nn.SyncBatchNorm)
        True
    """

    def _check_count(self, values: torch.Tensor) -> None:
        if not (dist.is_available() and dist.is_initialized()):  # else the other processes have values too
            super()._check_count(values)

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        return nn.SyncBatchNorm.forward(self, values)
