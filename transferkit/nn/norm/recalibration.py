"""Running statistics of batch normalisation, measured anew on images at hand."""

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
    """Whether it has running statistics that batches move, in training mode.

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
    """Estimate anew the running statistics of normalisation that learns, for weights that no batch was seen with.

    Those are the layers in train mode. Frozen ones, in evaluation mode, stay bit for bit; torch's `update_bn` would
    reset them as well. Dropout is off meanwhile, as it is when the model is used, so no random number is drawn. Layers
    whose statistics never follow a batch are left alone in any mode.

    Args:
        model: In the modes that the plan gives it for training; they are as before afterwards.
        batches: Inputs as the model takes them, of at least 2 images each. A batch counts by its number of images.
        layers: Estimate these instead, whatever mode they are in.
        size: Tells that number.

    Returns:
        Layers that were estimated anew. If there are none to estimate, no batch is asked for.

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
                # 1 for the first batch, which forgets what was. A reset would also hit layers that a hook freezes
                # when they are called, and these would never be estimated.
                layer.momentum = images / seen
            model(batch)
        estimated = sum(layer.training for layer in layers)
    if not seen:
        raise DataError(f"{len(layers)} normalisation layers need images to estimate their statistics; none came.")
    return estimated


@contextmanager
def _only_training(model: nn.Module, layers: Iterable[_NormBase]) -> Iterator[None]:
    """These layers in train mode, all else in evaluation mode; modes and momenta are as before afterwards."""
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
