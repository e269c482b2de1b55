"""Batch normalisation over ghost batches (parts of a batch) or over all micro-batches of an optimizer step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.norm.batch import BatchNorm, batch_moments, unbiased
from transferkit.nn.norm.fused import check_layout
from transferkit.nn.norm.source import read_source

__all__ = ["ACCUMULATED", "GHOST", "AccumulatedBatchNorm", "GhostBatchNorm", "begin_step"]

GHOST = 16
"""Default ghost batch size: half of a common batch, so that it has an effect. Set it where it matters; Hoffer et
al. (2017) split batches of thousands into ghost batches of 128."""

ACCUMULATED = 4
"""Default number of micro-batches per optimizer step; set it to that of your training."""


class GhostBatchNorm(BatchNorm):
    """Ghost batch normalisation: a large batch is normalised in small parts, each by its own moments.

    The noise of small batches regularises; ghost batches keep it for a large batch. The running statistics are updated
    with the mean of the ghost batches' moments. In evaluation it is plain batch normalisation.

    Args:
        layer: Batch normalisation to copy; not modified.
        size: Images per ghost batch, >= 2 (1 suffices if a channel has several positions). A batch is split into
            max(1, N // size) ghost batches that differ by at most one image, so none is smaller than `size` unless the
            batch is.

    Raises:
        OptionError: If the size is < 1.

    Shape:
        (N, C, ...) -> the same. In training every ghost batch needs at least two values per channel.

    References:
        Hoffer et al., NeurIPS 2017. Deviations: ghost batches are as equal as possible; the running statistics are
        updated once per batch, not once per ghost batch, so that momentum has its standard meaning.

    Example:
        >>> ghosts, plain = GhostBatchNorm(nn.BatchNorm1d(3), size=4), nn.BatchNorm1d(3)
        >>> values = torch.randn(8, 3)
        >>> torch.allclose(ghosts(values)[:4], plain(values[:4]))
        True
    """

    def __init__(self, layer: nn.Module, *, size: int = GHOST) -> None:
        if size < 1:
            raise OptionError(f"The ghost batch size must be >= 1 image, got {size!r}.")
        super().__init__(layer)
        self.size = size

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        parts = max(1, len(values) // self.size) if self.training else 1
        if parts == 1:
            return super().normalised(values)
        check_layout(values, self.num_features, self)
        done, means, variances = [], [], []
        for part in torch.tensor_split(values, parts):
            self._check_count(part)
            mean, variance, count = batch_moments(part)
            done.append(self._normalise(part, mean, variance))
            means.append(mean)
            variances.append(unbiased(variance, count))
        self._follow(torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0))
        return torch.cat(done)

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """One ghost batch per batch inside: variances within ghost batches omit the variance between them."""
        size, self.size = self.size, sys.maxsize
        try:
            yield
        finally:
            self.size = size

    def extra_repr(self) -> str:
        """torch's, with the ghost batch size."""
        return f"{super().extra_repr()}, size={self.size}"


class AccumulatedBatchNorm(BatchNorm):
    """Batch normalisation for gradient accumulation over several micro-batches.

    Gradient accumulation is equivalent to a large batch for every layer except plain batch normalisation, whose moments
    are those of the micro-batches. Here the moments of the micro-batches since the last step are pooled: micro-batch k
    is normalised by the moments of micro-batches 1..k, exactly as if they were one batch. Weights do not change between
    steps, so pooled moments are never stale. Gradients flow through the moments of the current micro-batch; earlier
    ones are constants. The running statistics are updated with the pooled moments once per step. In evaluation it is
    plain batch normalisation.

    `TransferModule` calls `begin_step` at each step; do so in your own loop if the last step of an epoch may have fewer
    micro-batches.

    Args:
        layer: Batch normalisation to copy; not modified.
        batches: Micro-batches per optimizer step, >= 1; with 1 it is plain batch normalisation.

    Attributes:
        pooled_mean, pooled_variance: (C,) of the micro-batches since the last step.
        pooled_values: Number of values per channel in them.
        pooled_batches: Number of these micro-batches, in [0, batches).

    Raises:
        OptionError: If batches < 1.

    Shape:
        (N, C, ...) -> the same. In training the first micro-batch of a step needs at least two values per channel.

    References:
        Moments of several batches are pooled after Chan, Golub & LeVeque, 1979. The related cross-iteration
        normalisation (Yao et al., CVPR 2021) pools across steps and corrects for the change of weights.

    Example:
        >>> layer, plain = AccumulatedBatchNorm(nn.BatchNorm1d(3), batches=2), nn.BatchNorm1d(3)
        >>> values = torch.randn(8, 3)
        >>> _, second = layer(values[:4]), layer(values[4:])
        >>> torch.allclose(second, plain(values)[4:], atol=1e-6)
        True
        >>> torch.allclose(layer.running_var, plain.running_var)
        True
    """

    def __init__(self, layer: nn.Module, *, batches: int = ACCUMULATED) -> None:
        if batches < 1:
            raise OptionError(f"Micro-batches per optimizer step must be >= 1, got {batches!r}.")
        super().__init__(layer)
        self.batches = batches
        like = read_source(layer).like
        kept = torch.promote_types(like.dtype, torch.float32)
        self.pooled_mean: torch.Tensor
        self.pooled_variance: torch.Tensor
        self.pooled_values: torch.Tensor
        self.pooled_batches: torch.Tensor
        self.register_buffer("pooled_mean", torch.zeros(self.num_features, dtype=kept, device=like.device))
        self.register_buffer("pooled_variance", torch.zeros(self.num_features, dtype=kept, device=like.device))
        self.register_buffer("pooled_values", torch.zeros((), dtype=torch.long, device=like.device))
        self.register_buffer("pooled_batches", torch.zeros((), dtype=torch.long, device=like.device))

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        if not self.training:
            return super().normalised(values)
        check_layout(values, self.num_features, self)
        mean, variance, count = self._pool(values)
        self._store(mean.detach(), variance.detach(), count)
        return self._normalise(values, mean, variance)

    def _pool(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Moments of this micro-batch pooled with those since the last step."""
        mean, variance, count = batch_moments(values)
        before = int(self.pooled_values)
        if not before:
            self._check_count(values)
            return mean, variance, count
        total = before + count
        share = count / total
        apart = mean - self.pooled_mean
        pooled_variance = (1 - share) * self.pooled_variance + share * variance + share * (1 - share) * apart**2
        return self.pooled_mean + share * apart, pooled_variance, total

    def _store(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        # New tensors each time: the graph of a micro-batch before its backward pass may reference the old ones.
        self.pooled_mean, self.pooled_variance = mean, variance
        self.pooled_values = torch.full_like(self.pooled_values, count)
        self.pooled_batches = self.pooled_batches + 1
        if int(self.pooled_batches) >= self.batches:
            self._follow(mean, unbiased(variance, count))
            self.forget()

    def forget(self) -> None:
        """Discard the pooled moments, as after a step: for a last step with fewer micro-batches."""
        self.pooled_values = torch.zeros_like(self.pooled_values)
        self.pooled_batches = torch.zeros_like(self.pooled_batches)

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """No pooling inside; earlier pooled moments are discarded."""
        pooled, self.batches = self.batches, 1
        self.forget()
        try:
            yield
        finally:
            self.batches = pooled

    def extra_repr(self) -> str:
        """torch's, with the micro-batches per step."""
        return f"{super().extra_repr()}, batches={self.batches}"


def begin_step(layers: Iterable[AccumulatedBatchNorm], batches: int) -> None:
    """Start an optimizer step of `batches` micro-batches in these layers, discarding pooled moments.

    Example:
        >>> layer = AccumulatedBatchNorm(nn.BatchNorm1d(3), batches=4)
        >>> _ = layer(torch.randn(8, 3))
        >>> begin_step([layer], batches=2)
        >>> layer.batches, int(layer.pooled_batches)
        (2, 0)
    """
    for layer in layers:
        layer.batches = batches
        layer.forget()
