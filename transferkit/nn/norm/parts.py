"""Batch normalisation where the batch that counts is not the batch that came: smaller parts of it, or several
together."""

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
"""Images normalised together: half of a common batch, so that the kind does something. To be set by hand where it
matters; Hoffer et al. (2017) cut batches of thousands into parts of 128."""

ACCUMULATED = 4
"""Batches whose gradients are added up before a step; a common number, better replaced by your own."""


class GhostBatchNorm(BatchNorm):
    """Batch normalisation in which a large batch is normalised in small parts, each by its own moments.

    The noise of small batches is what regularises; a large batch in small parts keeps it. The running statistics follow
    the mean of the parts' moments. In evaluation it is plain batch normalisation.

    Args:
        layer: Batch normalisation to copy; it stays as it is.
        size: Images in a part, >= 2 (1 will do where a channel has several positions). A batch is cut into
            max(1, N // size) parts that differ by one image at most, so that no part is smaller than `size` unless the
            batch is.

    Raises:
        OptionError: If the size is < 1.

    Shape:
        (N, C, ...) -> the same. In training every part needs two values per channel at least.

    References:
        Hoffer et al., NeurIPS 2017. Deviations: parts are cut as evenly as can be; the running statistics follow once
        per batch, not once per part, so that momentum means what it does elsewhere.

    Example:
        >>> ghosts, plain = GhostBatchNorm(nn.BatchNorm1d(3), size=4), nn.BatchNorm1d(3)
        >>> values = torch.randn(8, 3)
        >>> torch.allclose(ghosts(values)[:4], plain(values[:4]))
        True
    """

    def __init__(self, layer: nn.Module, *, size: int = GHOST) -> None:
        if size < 1:
            raise OptionError(f"The size of a part must be >= 1 image, got {size!r}.")
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
        """Every batch is one part inside: variances of parts leave out how parts differ."""
        size, self.size = self.size, sys.maxsize
        try:
            yield
        finally:
            self.size = size

    def extra_repr(self) -> str:
        """With the images in a part."""
        return f"{super().extra_repr()}, size={self.size}"


class AccumulatedBatchNorm(BatchNorm):
    """Batch normalisation for gradients that are added up over several batches before a step.

    Adding up gradients makes a large batch of small ones for every layer but this one, whose moments stay those of the
    small ones. Here the moments of the batches since the last step are pooled: batch k is normalised by the moments of
    batches 1..k, exactly as if they had come together. Weights do not change between steps, so nothing pooled is stale.
    Gradients flow through the moments of the batch at hand; those before it are constants. The running statistics take
    the pooled moments once per step. In evaluation it is plain batch normalisation.

    `TransferModule` tells its layers where a step begins and of how many batches it is; in a loop of your own where the
    last step of an epoch may be shorter, call `begin_step`.

    Args:
        layer: Batch normalisation to copy; it stays as it is.
        batches: Between two optimizer steps, >= 1; with 1 it is plain batch normalisation.

    Attributes:
        pooled_mean, pooled_variance: (C,) of the batches since the last step.
        pooled_values: How many values each channel had in them.
        pooled_batches: How many batches they were, in [0, batches).

    Raises:
        OptionError: If there are < 1 batches.

    Shape:
        (N, C, ...) -> the same. In training the first batch after a step needs two values per channel at least.

    References:
        Moments of several batches are pooled after Chan, Golub & LeVeque, 1979. Cross-iteration normalisation (Yao et
        al., CVPR 2021) is a relative that reaches over steps and corrects for the weights' change.

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
            raise OptionError(f"Batches between two steps must be >= 1, got {batches!r}.")
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
        self._remember(mean.detach(), variance.detach(), count)
        return self._normalise(values, mean, variance)

    def _pool(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Moments of this batch and those before it since the last step."""
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

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        # New tensors each time: the graph of a batch not yet gone backward through may hold the old ones.
        self.pooled_mean, self.pooled_variance = mean, variance
        self.pooled_values = torch.full_like(self.pooled_values, count)
        self.pooled_batches = self.pooled_batches + 1
        if int(self.pooled_batches) >= self.batches:
            self._follow(mean, unbiased(variance, count))
            self.forget()

    def forget(self) -> None:
        """Start afresh with the next batch, as after a step; for a run whose last step added up fewer batches."""
        self.pooled_values = torch.zeros_like(self.pooled_values)
        self.pooled_batches = torch.zeros_like(self.pooled_batches)

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """Nothing is pooled inside; what was pooled before is forgotten."""
        pooled, self.batches = self.batches, 1
        self.forget()
        try:
            yield
        finally:
            self.batches = pooled

    def extra_repr(self) -> str:
        """With the batches between two steps."""
        return f"{super().extra_repr()}, batches={self.batches}"


def begin_step(layers: Iterable[AccumulatedBatchNorm], batches: int) -> None:
    """Tell them that an optimizer step begins which adds up so many batches, whatever came before it.

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
