"""Statistics of batch normalisation, blended with those of the new images."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.nn import Classifier
from transferkit.nn.norm.recalibration import follows_batches
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit

__all__ = ["blend_statistics", "new_pictures"]

PRIOR = 16
"""Images that the statistics of training count as, beside the new ones."""

MOST = 128
"""Pictures that statistics are measured on at most, all in one batch; each view of an image is one."""

FEWEST = 16
"""New images that are needed: those of fewer have the content of single pictures in them."""


@REMEDIES.register("norm_statistics")
def recalibrate(situation: ShiftCase) -> Classifier:
    """Replace running means and variances by a blend with those of the new images, layer by layer.

    References:
        Schneider et al., NeurIPS 2020.
    """
    return blend_statistics(situation.result.model, new_pictures(situation))


def new_pictures(situation: ShiftCase) -> npt.NDArray[np.uint8]:
    """(n, ...) some of the new images, enough to measure statistics on.

    Raises:
        Unfit: There are too few, or the network keeps no such statistics.
    """
    if not any(follows_batches(module) for module in situation.result.model.modules()):
        raise Unfit("the network has no batch normalisation.")
    views = len(situation.result.preprocessing.each_view)
    pictures = situation.new.pixels[: max(FEWEST, MOST // views)]
    if len(pictures) < FEWEST:
        raise Unfit(f"it needs {FEWEST} images, there are {len(pictures)}.")
    return np.stack(pictures)


def blend_statistics(
    model: Classifier, pictures: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8], *, prior: float = PRIOR
) -> Classifier:
    """A copy of the model whose batch normalisation has statistics of training and of these pictures, weighted.

    Each layer is measured behind layers that are blended already, and only counts n / (n + prior) for n pictures: one
    picture moves little.

    Args:
        model: In evaluation mode; it is not changed.
        pictures: (n, 3, S, S) or (n, V, 3, S, S) uint8.
        prior: Pictures that the statistics of training count as, > 0.
    """
    made = copy.deepcopy(model).eval()
    images = made.normalise(torch.from_numpy(np.array(pictures)))
    share = len(images) / (len(images) + prior)
    handles = [
        module.register_forward_pre_hook(lambda layer, given: _blend(layer, given[0], share))
        for module in made.modules()
        if follows_batches(module)
    ]
    try:
        with torch.no_grad():
            made(images)
    finally:
        for handle in handles:
            handle.remove()
    return made


def _blend(layer: nn.Module, given: torch.Tensor, share: float) -> None:
    axes = [axis for axis in range(given.ndim) if axis != 1]
    variance, mean = torch.var_mean(given.float(), dim=axes, correction=0)
    kept_mean, kept_variance = layer.running_mean, layer.running_var
    assert isinstance(kept_mean, torch.Tensor)
    assert isinstance(kept_variance, torch.Tensor)
    # The variance of a mixture: within both, and between their means.
    between = share * (1 - share) * (mean - kept_mean) ** 2
    kept_variance.copy_((1 - share) * kept_variance + share * variance + between)
    kept_mean.copy_((1 - share) * kept_mean + share * mean)
