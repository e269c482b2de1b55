"""Batch normalisation layers built from an existing one: a copy, frozen, with a frozen affine map, or synchronised.

Each takes the layer it replaces and copies its affine map, running statistics, precision and device.
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
from transferkit.nn.norm.fused import Fused, check_layout, copy_affine, copy_followers
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
"""Weight of a new batch. TensorFlow's EfficientNets were trained with it (as decay 0.99), and timm uses it: ten times
slower than torch's default, it is robust to a few odd batches."""


class BatchNorm(Fused, _BatchNorm):
    """torch's batch normalisation for any number of axes, copied from another layer.

    In training y = (x - mean_B) / sqrt(var_B + eps) * weight + bias with the moments of the batch and all positions,
    which also update the running statistics; in evaluation the running statistics are used.

    Args:
        layer: Batch normalisation to copy; not modified.
        momentum: Weight of a new batch in the running statistics, in (0, 1], or None to weight all batches equally.
            By default the layer's.

    Raises:
        OptionError: If the layer is not batch normalisation, or the momentum is out of range.

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
    """Default: the layer's momentum (None has a meaning already)."""

    def __init__(self, layer: nn.Module, *, momentum: float | None = LAYERS_OWN) -> None:
        source = read_source(layer)
        if momentum is not None and momentum != self.LAYERS_OWN and not 0 < momentum <= 1:
            raise OptionError(f"The momentum of running statistics must be in (0, 1], or None, got {momentum!r}.")
        super().__init__(source.channels, source.eps, source.momentum if momentum == self.LAYERS_OWN else momentum)
        copy_affine(self, source)
        copy_followers(self, layer)
        self.affine = source.weight is not None
        self.track_running_stats = source.mean is not None
        for name, tensor in (("running_mean", source.mean), ("running_var", source.variance)):
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self.register_buffer("num_batches_tracked", _counted(source))
        self.training = layer.training  # not train(): dropout and activation may be shared with the layer

    def _check_input_dim(self, input: torch.Tensor) -> None:
        check_layout(input, self.num_features, self)
        if self.training or self.running_mean is None:
            self._check_count(input)

    def _check_count(self, values: torch.Tensor) -> None:
        if values.numel() == values.shape[1]:
            raise DataError(
                f"{type(self).__name__} in training needs at least 2 values per channel, got 1: shape "
                f"{tuple(values.shape)}. Use batches of at least 2 images, or swap to a kind that needs no batch: "
                "frozen, group."
            )

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """Inside, training is plain batch normalisation in which every batch counts: to recalibrate statistics."""
        yield

    def extra_repr(self) -> str:
        """torch's, typed."""
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
        shape = (1, -1, *(1,) * (values.ndim - 2))  # one pass over the values, for speed
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(values.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> float:
        """Update the running statistics with a batch's mean and unbiased variance, two (C,).

        Returns:
            The weight of the update.
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
    """A copy of the number of batches; 0 if there are statistics but no count."""
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
    """The variance over `count` values divided by count - 1, as in torch's running statistics."""
    return variance * (count / max(count - 1, 1))


def needs_statistics(layer: nn.Module, kind: str) -> NormSource:
    """The layer's `NormSource`, with running statistics.

    Raises:
        OptionError: If it has none.
    """
    source = read_source(layer)
    if source.mean is None:
        raise OptionError(
            f"{type(layer).__name__} has no running statistics, which {kind} needs. "
            "Swap to a kind that needs none, such as group, or pass a layer with track_running_stats=True."
        )
    return source


class FrozenBatchNorm(BatchNorm):
    """Batch normalisation that always uses its running statistics: bit-identical in training and evaluation.

    y = x * scale + shift with the values of `folded_affine`. Statistics are fixed; the affine map is trainable.
    Gradients treat the statistics as constants, so images of a batch are independent.

    Args:
        layer: With running statistics.

    Raises:
        OptionError: If it has none.

    Shape:
        (N, C, ...) -> the same

    References:
        Common in detection (He et al., ICCV 2017). Deviation: the affine map is trainable; torchvision's
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
        # torch's flag for fixed statistics; the freeze plan reads it.
        self.track_running_stats = False

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_features, self)
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class AffineFrozenBatchNorm(BatchNorm):
    """Batch normalisation with a frozen affine map; its statistics are updated as before.

    The map is stored in buffers, out of reach of plans and optimizers; its names in the state_dict are unchanged.

    Args:
        layer: Batch normalisation to copy; not modified.

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
        layer: Batch normalisation to copy; not modified.

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
        if not (dist.is_available() and dist.is_initialized()):  # else other processes have values too
            super()._check_count(values)

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        return nn.SyncBatchNorm.forward(self, values)
