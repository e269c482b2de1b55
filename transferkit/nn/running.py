"""A finished classifier over many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.nn.heads import Blend
from transferkit.nn.model import TransferModel

__all__ = ["Classifier", "logits_of"]

Classifier = TransferModel | Blend
"""What a person keeps: one network, or several whose logits are added."""

BATCH = 32
"""Fixed, because another batch size can change the last bit of a convolution: predictions are bit-equal after a round
trip through a run folder."""


def logits_of(model: Classifier, pictures: Iterable[npt.NDArray[Any]], *, device: torch.device) -> torch.Tensor:
    """(N, K) float32 logits on the CPU.

    Args:
        model: Put on the device and into evaluation mode, where it stays.
        pictures: N of (3, S, S), uint8 or float32 that is normalised already.
        device: Where to compute.
    """
    # The same memory layout however the model came to be: another one can change the last bit.
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    rows = [_logits(model, stack, device) for stack in _stacks(pictures)]
    return torch.cat(rows) if rows else torch.empty(0, len(model.classes))


def _logits(model: Classifier, stack: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    images = model.normalise(torch.from_numpy(stack).to(device)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits: torch.Tensor = model(images)
    return logits.float().cpu()


def _stacks(pictures: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    batch: list[npt.NDArray[Any]] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
