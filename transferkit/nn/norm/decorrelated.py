"""Decorrelated batch normalisation: also removes correlations between channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from transferkit.nn.norm.batch import BatchNorm, batch_moments, needs_statistics, unbiased
from transferkit.nn.norm.fused import apply_affine, check_layout, laid_out_as
from transferkit.nn.norm.source import nearest_divisor

__all__ = ["CHANNELS_TOGETHER", "DecorrelatedBatchNorm", "inverse_root"]

CHANNELS_TOGETHER = 16
"""Channels per group; the paper's best setting."""


class _InverseRoot(torch.autograd.Function):
    """A^(-1/2) by eigendecomposition, with a derivative that is stable for close or equal eigenvalues.

    That of torch.linalg.eigh divides by differences of eigenvalues. The derivative of a function of a symmetric matrix
    needs only its divided differences (Daleckii & Krein, 1965), and those of 1 / sqrt are, with roots p and q,
    (1/p - 1/q) / (p^2 - q^2) = -1 / (p q (p + q)): no difference is left.
    """

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        # Rounding can leave a least eigenvalue below zero.
        roots = values.clamp(min=torch.finfo(values.dtype).eps * values.amax(dim=-1, keepdim=True)).sqrt()
        ctx.save_for_backward(roots, vectors)
        result: torch.Tensor = (vectors / roots.unsqueeze(-2)) @ vectors.mT
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        roots, vectors = ctx.saved_tensors
        rows, columns = roots.unsqueeze(-1), roots.unsqueeze(-2)
        differences = -1 / (rows * columns * (rows + columns))
        symmetric = (gradient + gradient.mT) / 2
        result: torch.Tensor = vectors @ (differences * (vectors.mT @ symmetric @ vectors)) @ vectors.mT
        return result


def inverse_root(matrices: torch.Tensor) -> torch.Tensor:
    """A^(-1/2) of symmetric matrices; once differentiable, also where eigenvalues are equal.

    Args:
        matrices: (..., d, d) float, symmetric and positive definite. What rounding has put at or below zero counts as
            the smallest eigenvalue that the precision can tell from it.

    Returns:
        (..., d, d), symmetric.

    Example:
        >>> inverse_root(torch.diag(torch.tensor([4.0, 0.25]))).tolist()
        [[0.5, 0.0], [0.0, 2.0]]
    """
    result: torch.Tensor = _InverseRoot.apply(matrices)
    return result


class DecorrelatedBatchNorm(BatchNorm):
    """Batch normalisation that whitens groups of channels: variance 1 each, and no correlation inside a group.

    In training y = S^(-1/2) (x - mean_B), with S = cov_B + eps I over the batch and all positions, group by group, then
    the affine map. The symmetric root (ZCA) rotates the channels as little as possible, so they keep their meaning.
    In evaluation the running mean and the running S^(-1/2) take the batch's place. These start as the layer's own,
    channel by channel: until it trains, evaluation gives what the layer gave.

    A batch must have many more values per channel than channels in a group, or S is mostly noise.

    Args:
        layer: With running statistics.
        groups: Of neighbouring channels, >= 1; the nearest divisor of the channels is taken. None makes groups of
            `CHANNELS_TOGETHER` channels or, where that is no divisor, of the next smaller number that is one.

    Attributes:
        running_whitening: (groups, C / groups, C / groups), S^(-1/2) as it follows the batches.

    Raises:
        OptionError: If there are < 1 groups, or the layer keeps no running statistics.

    Shape:
        (N, C, ...) -> the same. In training a channel needs two values at least.

    References:
        Huang et al., CVPR 2018. Deviation: the derivative is taken in closed form by divided differences, which stays
        finite where the paper's, and torch's of eigh, divides by the difference of equal eigenvalues. The running
        variance is kept besides, for those who read it.

    Example:
        >>> layer = DecorrelatedBatchNorm(nn.BatchNorm1d(2, eps=0, affine=False))
        >>> values = torch.randn(100, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.1]])
        >>> torch.allclose(torch.cov(layer(values).T, correction=0), torch.eye(2), atol=1e-3)
        True
    """

    def __init__(self, layer: nn.Module, *, groups: int | None = None) -> None:
        source = needs_statistics(layer, "whitening")
        assert source.variance is not None
        super().__init__(layer)
        self.asked_groups = _default_groups(source.channels) if groups is None else groups
        self.num_groups = nearest_divisor(source.channels, self.asked_groups)
        scales = (source.variance.detach() + source.eps).rsqrt().view(self.num_groups, -1)
        self.running_whitening: torch.Tensor
        self.register_buffer("running_whitening", torch.diag_embed(scales))

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_features, self)
        # Autocast would compute the covariance in half precision, where its small eigenvalues are lost.
        with torch.autocast(values.device.type, enabled=False):
            whitened = self._whiten_by_batch(values) if self.training else self._whiten_by_memory(values)
        return apply_affine(whitened, self.weight, self.bias).to(values.dtype)

    def _whiten_by_batch(self, values: torch.Tensor) -> torch.Tensor:
        self._check_count(values)
        mean, variance, count = batch_moments(values)
        grouped = self._group(values, mean)
        covariance = grouped @ grouped.mT / count
        ridge = self.eps * torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        whitening = inverse_root(covariance + ridge)
        weight = self._follow(mean, unbiased(variance, count))
        with torch.no_grad():
            self.running_whitening.lerp_(whitening.to(self.running_whitening.dtype), weight)
        return self._ungroup(whitening @ grouped, values)

    def _whiten_by_memory(self, values: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        grouped = self._group(values, self.running_mean)
        return self._ungroup(self.running_whitening.to(grouped.dtype) @ grouped, values)

    def _group(self, values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> (groups, C / groups, values per channel), less the mean, in single precision at least."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        channels = values.movedim(1, 0).flatten(1) - mean.to(values.dtype).unsqueeze(1)
        return channels.view(self.num_groups, self.num_features // self.num_groups, channels.shape[1])

    def _ungroup(self, grouped: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Back to the shape of the values, and their place in memory."""
        return laid_out_as(grouped.reshape(values.movedim(1, 0).shape).movedim(0, 1), values)

    def extra_repr(self) -> str:
        """With the groups."""
        return f"{super().extra_repr()}, groups={self.num_groups}"


def _default_groups(channels: int) -> int:
    return next(channels // size for size in range(min(CHANNELS_TOGETHER, channels), 0, -1) if channels % size == 0)
