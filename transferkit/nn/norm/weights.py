"""Weight standardisation and weight normalisation: independent of the batch.

Both are torch parametrizations: the convolution is kept, and its weight is computed on each access. Such a module can
be copied and its state_dict saved, but not pickled as a module (torch refuses); `plain_weights` removes them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from transferkit.core.errors import OptionError

__all__ = ["StandardisedWeight", "normalise_weights", "plain_weights", "standardise_weights"]

EPS = 1e-5
"""Added to a filter's deviation, as the authors' code does."""

_Convolution = nn.modules.conv._ConvNd


class StandardisedWeight(nn.Module):
    """Weight standardisation: every filter with mean 0 and deviation 1.

    w = (v - mean(v)) / (dev(v) + eps), over inputs and positions of each filter.

    Args:
        eps: Added to the deviation, > 0: a constant filter becomes 0.

    Shape:
        (outputs, inputs, ...) -> the same

    References:
        Qiao et al., 2019. Deviation: the deviation is the biased one, as in the paper; the authors' code takes the
        unbiased.

    Example:
        >>> StandardisedWeight()(torch.tensor([[[1.0, 3.0]]])).tolist()
        [[[-0.9999899864196777, 0.9999899864196777]]]
    """

    def __init__(self, *, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(outputs, inputs, ...) -> the same."""
        rows = weight.flatten(1)
        variance, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
        # The root has no derivative for a constant filter.
        deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
        return ((rows - mean) / (deviation + self.eps)).view_as(weight)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The unstandardised weight: the value assigned."""
        return weight


def standardise_weights(module: nn.Module) -> nn.Module:
    """Weight standardisation in every convolution of at least two weights per filter, in place.

    Changes the network's output: filters lose their mean and their scale. A following batch normalisation compensates
    for the scale once its statistics are recalibrated, but not for the mean.

    Returns:
        The module.

    Raises:
        OptionError: If there is no convolution, or one of them is parametrized already.

    References:
        Qiao et al., 2019; together with group normalisation it trained BiT (Kolesnikov et al., ECCV 2020).

    Example:
        >>> weight = standardise_weights(nn.Conv2d(3, 4, 3)).weight
        >>> torch.allclose(weight.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6)
        True
    """
    for convolution in _convolutions(module):
        if convolution.weight[0].numel() > 1:
            parametrize.register_parametrization(convolution, "weight", StandardisedWeight())
    return module


def normalise_weights(module: nn.Module) -> nn.Module:
    """Weight normalisation in every convolution, in place: length and direction of a filter are trained separately.

    w = g v / ||v|| per filter, by torch's `weight_norm`. The network's output is unchanged; the filter's length is g
    for any v.

    Returns:
        The module.

    Raises:
        OptionError: If there is no convolution, or one of them is parametrized already.

    References:
        Salimans & Kingma, NeurIPS 2016. Deviation: g is initialised to the length of the existing weights, not from
        a batch.

    Example:
        >>> convolution = normalise_weights(nn.Conv2d(3, 4, 3))
        >>> sorted(name for name, _ in convolution.named_parameters())
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    for convolution in _convolutions(module):
        parametrizations.weight_norm(convolution, dim=0)
        with torch.no_grad():  # A filter of zeros has no direction: any will do, at length 0.
            length, direction = (convolution.get_parameter(f"parametrizations.weight.original{part}") for part in "01")
            direction.add_((length == 0).to(direction.dtype))
    return module


def plain_weights(module: nn.Module) -> nn.Module:
    """Remove both, in place: every weight becomes a plain tensor with its current value.

    Returns:
        The module, with unchanged output.

    Example:
        >>> sorted(plain_weights(normalise_weights(nn.Conv2d(3, 4, 3))).state_dict())
        ['bias', 'weight']
    """
    for layer in module.modules():
        if isinstance(layer, _Convolution) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def _convolutions(module: nn.Module) -> list[nn.modules.conv._ConvNd]:
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, _Convolution)}
    if not found:
        raise OptionError(f"{type(module).__name__} has no convolution to normalise. Pass a network with convolutions.")
    for path, layer in found.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise OptionError(
                f"The weight of {path or type(layer).__name__!r} is parametrized already. "
                "Remove that with plain_weights first."
            )
    return list(found.values())
