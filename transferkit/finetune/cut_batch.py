"""A batch of images, or of the activations that frozen stages computed for them before training."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["CutBatch", "count_images", "take_images"]


class CutBatch(NamedTuple):
    """A batch of images as the activations at the end of the frozen stages.

    Args:
        activation: (n, ...) float, at the cut.
        pooled: Stage name -> (n, C) of stages up to the cut that the head reads.
    """

    activation: torch.Tensor
    pooled: dict[str, torch.Tensor]

    def part(self, rows: slice) -> CutBatch:
        """Some of the images."""
        return CutBatch(self.activation[rows], {name: vectors[rows] for name, vectors in self.pooled.items()})


def count_images(images: torch.Tensor | CutBatch) -> int:
    """The number of images in a batch.

    Example:
        >>> count_images(torch.zeros(5, 3, 4, 4))
        5
    """
    return len(images.activation if isinstance(images, CutBatch) else images)


def take_images(images: torch.Tensor | CutBatch, rows: slice) -> torch.Tensor | CutBatch:
    """Some of the images of a batch.

    Example:
        >>> take_images(torch.zeros(5, 3, 4, 4), slice(2)).shape
        torch.Size([2, 3, 4, 4])
    """
    return images.part(rows) if isinstance(images, CutBatch) else images[rows]
