"""Recalibration of batch normalisation: running statistics re-estimated on given images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from transferkit.core.errors import DataError
from transferkit.nn.norm.batch import BatchNorm

__all__ = ["follows_batches", "recalibrate_statistics"]


def follows_batches(module: nn.Module) -> bool:
    """Whether it has running statistics that are updated in training mode.

    Example:
        >>> follows_batches(nn.BatchNorm2d(3)), follows_batches(nn.BatchNorm2d(3, track_running_stats=False))
        (True, False)
    """
    return isinstance(module, _NormBase) and module.running_mean is not None and module.track_running_stats


def recalibrate_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Iterable[_NormBase] | None = None,
    size: Callable[[Any], int] = len,
) -> int:
    """Re-estimate the running statistics of trained normalisation layers, e.g. for averaged weights.

    Those are the layers in train mode. Frozen ones, in evaluation mode, are unchanged; torch's `update_bn` would reset
    them too. Dropout is off, as in evaluation, so no random number is drawn. Layers with fixed statistics are never
    changed.

    Args:
        model: In the modes set by the plan for training; they are restored afterwards.
        batches: Inputs of the model, at least 2 images each. A batch is weighted by its number of images.
        layers: Estimate these instead, in any mode.
        size: Function that returns the number of images of a batch.

    Returns:
        Number of layers estimated. If there are none, `batches` is not iterated.

    Raises:
        DataError: If there are layers to estimate but no batches.

    References:
        Izmailov et al., UAI 2018. Deviations: batches are weighted by size, and dropout is off.
    """
    if layers is None:
        layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    layers = [layer for layer in layers if follows_batches(layer)]
    if not layers:
        return 0
    seen = 0
    with torch.no_grad(), _only_training(model, layers):
        for batch in batches:
            images = size(batch)
            seen += images
            for layer in layers:
                # 1 for the first batch, which discards the old values. A reset would also affect layers that a hook
                # freezes when they are called, and these would never be estimated.
                layer.momentum = images / seen
            model(batch)
        estimated = sum(layer.training for layer in layers)
    if not seen:
        raise DataError(f"{len(layers)} layers need images to estimate statistics, got none. Pass at least one batch.")
    return estimated


@contextmanager
def _only_training(model: nn.Module, layers: Iterable[_NormBase]) -> Iterator[None]:
    """These layers in train mode, all others in evaluation mode; modes and momenta are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    with ExitStack() as plainly:
        for layer in layers:
            if isinstance(layer, BatchNorm):
                plainly.enter_context(layer.batch_by_batch())
        try:
            model.eval()
            for layer in layers:
                layer.training = True
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for layer, momentum in momenta:
                layer.momentum = momentum
