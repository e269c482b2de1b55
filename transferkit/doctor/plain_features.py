"""Features of images that no network is needed for: where edges of which direction are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

__all__ = ["gradient_histograms"]

CELLS, DIRECTIONS = 4, 8


def gradient_histograms(images: torch.Tensor) -> torch.Tensor:
    """(N, 128 + 2 C) sizes of grey-level gradients by direction in 4 x 4 cells; mean and spread of each channel.

    Args:
        images: (N, C, H, W) float, 8 pixels a side or more.

    References:
        Dalal and Triggs, CVPR 2005. Deviation: signed directions, each counted in one bin, no normalisation of blocks.

    Example:
        >>> stripes = torch.zeros(1, 3, 16, 16)
        >>> stripes[..., ::4] = 1.0
        >>> sizes = gradient_histograms(stripes)[0, :128].reshape(8, 16).sum(dim=1)
        >>> sorted(sizes.nonzero().flatten().tolist())  # to the left and to the right, nothing up or down
        [3, 7]
    """
    grey = images.float().mean(dim=1, keepdim=True)
    across = (grey[..., 1:] - grey[..., :-1])[..., :-1, :]
    down = (grey[..., 1:, :] - grey[..., :-1, :])[..., :-1]
    size = (across**2 + down**2).sqrt()
    turns = torch.atan2(down, across) / (2 * math.pi) + 0.5
    bins = (turns * DIRECTIONS - 1e-4).long().clamp(0, DIRECTIONS - 1)
    cells = [F.adaptive_avg_pool2d(size * (bins == one), CELLS).flatten(1) for one in range(DIRECTIONS)]
    plain = images.float()
    return torch.cat([*cells, plain.mean(dim=(2, 3)), plain.std(dim=(2, 3))], dim=1)
