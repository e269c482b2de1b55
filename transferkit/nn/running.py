"""A classifier over many images, within the memory that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.nn.heads import Blend
from transferkit.nn.model import TransferModel, mean_over_views

__all__ = ["Classifier", "in_halves", "is_out_of_memory", "logits_of"]

Classifier = TransferModel | Blend
"""What a person keeps: one network, or several whose logits are added."""

BATCH = 32
"""Pictures that run at once, each view of an image counting as one. Fixed, because another batch size can change the
last bit of a convolution: predictions are bit-equal after a round trip through a run folder."""

PICTURE = 3
"""Axes of one picture; views of it have one more in front."""

EXHAUSTED = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""What CUDA and MPS, the CPU, and cuBLAS say when memory runs out."""


def logits_of(model: Classifier, pictures: Iterable[npt.NDArray[Any]], *, device: torch.device) -> torch.Tensor:
    """(N, K) float32 logits on the CPU.

    Args:
        model: Put on the device and into evaluation mode, where it stays.
        pictures: N of (3, S, S), or of (V, 3, S, S) with the views that are averaged; uint8, or float32 that is
            normalised already.
        device: Where to compute.
    """
    # The same memory layout however the model came to be: another one can change the last bit.
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    rows = [_logits(model, stack, device) for stack in _stacks(pictures)]
    return torch.cat(rows) if rows else torch.empty(0, len(model.classes))


def _logits(model: Classifier, stack: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    def run(part: slice) -> torch.Tensor:
        images = model.normalise(torch.from_numpy(stack[part]).to(device))
        return mean_over_views(classify, images).float().cpu()

    def classify(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(images.contiguous(memory_format=torch.channels_last))
        return logits

    with torch.no_grad():
        return in_halves(run, len(stack))


def in_halves(run: Callable[[slice], torch.Tensor], n: int) -> torch.Tensor:
    """What `run` makes of n images, one half after the other for as long as memory runs out.

    Args:
        run: Slice of the images -> (m, ...) of theirs, which must not depend on what else is in the slice.
        n: Images, >= 1.

    Raises:
        RuntimeError: If not even one image fits.

    Example:
        >>> in_halves(lambda part: torch.arange(6)[part], 6).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    return torch.cat(list(_halved(run, 0, n)))


def _halved(run: Callable[[slice], torch.Tensor], start: int, stop: int) -> Iterator[torch.Tensor]:
    try:
        made = run(slice(start, stop))
    except RuntimeError as error:
        if stop - start == 1 or not is_out_of_memory(error):
            raise
    else:
        yield made
        return
    # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
    torch.cuda.empty_cache()
    middle = (start + stop) // 2
    yield from _halved(run, start, middle)
    yield from _halved(run, middle, stop)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the machine, had no memory left.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        True
    """
    said = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in said for words in EXHAUSTED)


def _stacks(pictures: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    batch: list[npt.NDArray[Any]] = []
    for picture in pictures:
        batch.append(picture)
        # An image's views run together; memory does not grow with their number.
        if len(batch) >= max(1, BATCH // math.prod(picture.shape[:-PICTURE])):
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
