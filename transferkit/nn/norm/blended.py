"""Batch normalisation by a mixture of source and batch statistics."""

from __future__ import annotations

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.norm.batch import BatchNorm, batch_moments, needs_statistics
from transferkit.nn.norm.fused import check_layout

__all__ = ["STRENGTH", "AlphaBatchNorm"]

STRENGTH = 16.0
"""Weight of the source statistics, in images: a guess, for batches of 8 to 32."""


class AlphaBatchNorm(BatchNorm):
    """Batch normalisation by a blend of source and batch statistics, in both training and evaluation.

    With n images in the batch and a strength of N, mean = a mean_source + (1 - a) mean_B, and likewise the variance,
    where a = N / (N + n): with a small batch the source statistics dominate, with a large one the batch's. The source
    statistics are the layer's running statistics and are fixed.

    In evaluation too, an image's output depends on the others in its batch; single images also work.

    Args:
        layer: With running statistics.
        strength: N, in images, >= 0: 0 is batch statistics only, infinite is `FrozenBatchNorm`.

    Raises:
        OptionError: If the strength is negative or NaN, or the layer keeps no running statistics.

    Shape:
        (N, C, ...) -> the same

    References:
        Schneider et al., NeurIPS 2020, for the blend (there at test time only); alpha-BN (You et al., 2021) sets a by
        hand; EvalNorm (Singh & Shrivastava, ICCV 2019) learns it. Deviation: it blends in training as well.

    Example:
        >>> layer = AlphaBatchNorm(nn.BatchNorm1d(2, eps=0), strength=3).eval()
        >>> layer(torch.tensor([[4.0, 8.0]])).tolist()  # of one image: mean 4 / 4, variance 3 / 4
        [[3.464101552963257, 6.928203105926514]]
    """

    def __init__(self, layer: nn.Module, *, strength: float = STRENGTH) -> None:
        if not strength >= 0:
            raise OptionError(f"The strength of the source must be >= 0 images, got {strength!r}.")
        needs_statistics(layer, "a blend with the source")
        super().__init__(layer)
        self.track_running_stats = False
        self.strength = float(strength)

    def source_weight(self, images: int) -> float:
        """a, the weight of the source statistics for a batch of `images`, in [0, 1]."""
        return 1.0 if self.strength == float("inf") else self.strength / (self.strength + images)

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same, before dropout and activation."""
        check_layout(values, self.num_features, self)
        source = self.source_weight(len(values))
        if source == 0:
            self._check_count(values)
        mean, variance, _ = batch_moments(values)
        assert self.running_mean is not None
        assert self.running_var is not None
        mean = source * self.running_mean + (1 - source) * mean
        variance = source * self.running_var + (1 - source) * variance
        return self._normalise(values, mean, variance)

    def extra_repr(self) -> str:
        """torch's, with the strength."""
        return f"{super().extra_repr()}, strength={self.strength}"
