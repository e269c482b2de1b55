"""Probabilities for the class proportions that the new images seem to have."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch

from transferkit.nn import Classifier, TransferModel
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit

__all__ = ["add_to_bias", "log_ratios"]

LARGEST = 3.0
"""Most that a logit is moved: a class that seems to be missing stays possible."""


@REMEDIES.register("class_proportions")
def correct_proportions(situation: ShiftCase) -> Classifier:
    """Add the logarithm of the ratio of class proportions to the logits.

    References:
        Saerens et al., Neural Computation 2002.
    """
    if situation.found.kind != "classes":
        raise Unfit("class proportions can be estimated from predictions only where the images look the same.")
    return add_to_bias(situation.result.model, log_ratios(situation.found.proportions, situation.reference.proportions))


def log_ratios(estimated: npt.NDArray[np.float64], training: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K,) what the new class proportions add to the logits, mean 0."""
    moved = np.clip(np.log(np.maximum(estimated, 1e-9) / training), -LARGEST, LARGEST)
    return np.asarray(moved - moved.mean())


def add_to_bias(model: Classifier, added: npt.NDArray[np.float64]) -> Classifier:
    """A copy of the model whose logits are moved by the same values for all images."""
    made = copy.deepcopy(model)
    first = made if isinstance(made, TransferModel) else made.parts[0]
    with torch.no_grad():
        bias = first.linear.bias
        bias.copy_(bias + torch.from_numpy(added).to(bias))
    return made.eval()
