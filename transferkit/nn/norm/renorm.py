"""Batch renormalisation: batch statistics corrected towards the running statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from transferkit.core.errors import OptionError
from transferkit.nn.norm.batch import BatchNorm, batch_moments, needs_statistics, unbiased
from transferkit.nn.norm.fused import check_layout

__all__ = ["AT_ONCE", "FROM_SCRATCH", "UNCORRECTED", "BatchRenorm", "Clipping"]


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Limits of the correction, as a function of the number of training batches so far.

    Args:
        r_max: Final maximum ratio of deviations, >= 1; its inverse is the minimum.
        d_max: Final maximum shift, in running deviations, >= 0.
        start: Batches of plain batch normalisation before any correction.
        r_batches, d_batches: Batches after which each limit reaches its final value, >= start; linear in between.

    Raises:
        OptionError: If one of them is out of range.

    Example:
        >>> FROM_SCRATCH.at(0), FROM_SCRATCH.at(15_000), FROM_SCRATCH.at(50_000)
        ((1.0, 0.0), (1.5714285714285714, 2.5), (3.0, 5.0))
    """

    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 0
    r_batches: int = 0
    d_batches: int = 0

    def __post_init__(self) -> None:
        if not self.r_max >= 1:
            raise OptionError(f"Clipping.r_max must be >= 1, got {self.r_max!r}.")
        if not self.d_max >= 0:
            raise OptionError(f"Clipping.d_max must be >= 0, got {self.d_max!r}.")
        if self.start < 0 or min(self.r_batches, self.d_batches) < self.start:
            raise OptionError(
                "Clipping must have 0 <= start <= r_batches and start <= d_batches, "
                f"got {self.start}, {self.r_batches}, {self.d_batches}."
            )

    @property
    def grows(self) -> bool:
        """Whether the limits depend on the number of batches."""
        return max(self.start, self.r_batches, self.d_batches) > 0

    def at(self, batches: int) -> tuple[float, float]:
        """The limits (r, d) after `batches` training batches: (1, 0) allows no correction."""
        return (
            _ramp(1.0, self.r_max, batches, self.start, self.r_batches),
            _ramp(0.0, self.d_max, batches, self.start, self.d_batches),
        )


def _ramp(first: float, last: float, batches: int, start: int, stop: int) -> float:
    if batches < start:
        return first
    if batches >= stop:
        return last
    # `last` may be infinite; then at the start 0 * inf would be NaN.
    return first + (last - first) * (batches - start) / (stop - start) if batches > start else first


AT_ONCE = Clipping()
"""The paper's final limits from the first batch on: running statistics of pretrained weights are reliable."""

FROM_SCRATCH = Clipping(start=5_000, r_batches=40_000, d_batches=25_000)
"""The paper's schedule, for training from scratch."""

UNCORRECTED = Clipping(r_max=1.0, d_max=0.0)
"""Plain batch normalisation."""


class BatchRenorm(BatchNorm):
    """Batch normalisation with batch statistics corrected towards the running statistics; for small batches.

    In training y = ((x - mean_B) / dev_B * r + d) * weight + bias, with r = dev_B / dev and d = (mean_B - mean) / dev,
    both clipped and treated as constants. Unclipped, y equals the output in evaluation; with r = 1 and d = 0 it is
    plain batch normalisation. In both cases gradients flow through the batch moments.

    Args:
        layer: With running statistics.
        clipping: Limits of the correction.

    Attributes:
        corrected: Training batches so far, an integer tensor in the state_dict: the schedule continues after a resume.

    Raises:
        OptionError: If the layer has no running statistics.

    Shape:
        (N, C, ...) -> the same. In training a channel needs two values at least.

    References:
        Ioffe, NeurIPS 2017. Deviations: the running variance is averaged, not the deviation, as in torch's layers, so
        that weights fit both; for pretrained weights there is no warm-up.

    Example:
        >>> layer = BatchRenorm(nn.BatchNorm2d(3), clipping=Clipping(r_max=1.5, d_max=0.5))
        >>> layer(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(self, layer: nn.Module, *, clipping: Clipping = AT_ONCE) -> None:
        source = needs_statistics(layer, "batch renormalisation")
        super().__init__(layer)
        self.clipping = clipping
        self.corrected: torch.Tensor
        self.register_buffer("corrected", torch.zeros((), dtype=torch.long, device=source.like.device))

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        if not self.training:
            return super().normalised(values)
        check_layout(values, self.num_features, self)
        self._check_count(values)
        with torch.no_grad():
            mean, variance, count = batch_moments(values)
            ratio, shift = self._corrections(mean, variance)
            self._follow(mean, unbiased(variance, count))
            self.corrected.add_(1)
        # As constants, r and d can be merged into the affine map; torch's kernel does the rest.
        weight = ratio if self.weight is None else self.weight * ratio
        bias = shift if self.weight is None else self.weight * shift
        bias = bias if self.bias is None else self.bias + bias
        return F.batch_norm(values, None, None, weight, bias, training=True, eps=self.eps)

    def _corrections(self, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """r and d, two (C,), clipped."""
        assert self.running_mean is not None
        assert self.running_var is not None
        # On a GPU, reading the number forces a synchronisation.
        highest, furthest = self.clipping.at(int(self.corrected) if self.clipping.grows else 0)
        scale = (self.running_var.to(variance.dtype) + self.eps).rsqrt()
        ratio = (variance + self.eps).sqrt() * scale
        shift = (mean - self.running_mean) * scale
        return ratio.clamp(0.0 if math.isinf(highest) else 1 / highest, highest), shift.clamp(-furthest, furthest)

    @contextmanager
    def batch_by_batch(self) -> Iterator[None]:
        """No correction inside, so that the old statistics do not affect the inputs of later layers."""
        clipping, batches = self.clipping, self.corrected.clone()
        self.clipping = UNCORRECTED
        try:
            yield
        finally:
            self.clipping = clipping
            self.corrected.copy_(batches)

    def extra_repr(self) -> str:
        """torch's, with the final limits."""
        return f"{super().extra_repr()}, r_max={self.clipping.r_max}, d_max={self.clipping.d_max}"
