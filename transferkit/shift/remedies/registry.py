"""The registry of remedies, and what each is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.registry import Registry
from transferkit.nn import Classifier, TransferModel
from transferkit.result import Result
from transferkit.shift.diagnosis import Diagnosed
from transferkit.shift.new_images import NewImages
from transferkit.shift.reference import Reference, is_probe

__all__ = ["REMEDIES", "Remedy", "ShiftCase", "Unfit", "with_head"]


class Unfit(Exception):
    """A remedy does not apply; the message says why, as a sentence."""


@dataclass(frozen=True)
class ShiftCase:
    """A run, new images, and what was found out about them.

    Args:
        result: The run; remedies work on copies of its model.
        reference: Its training images.
        new: The new images.
        found: How they differ.
        seed: Of whatever is drawn.
    """

    result: Result
    reference: Reference
    new: NewImages
    found: Diagnosed
    seed: int = 0

    def probe(self) -> TransferModel:
        """The run's model, if it is a head on features that are in the bank.

        Raises:
            Unfit: It is not.
        """
        model = self.result.model
        if not isinstance(model, TransferModel) or not is_probe(self.result.record) or self.reference.table is None:
            raise Unfit("it needs a linear probe: a fine-tuned network's features of its training images are no guide.")
        return model

    def features(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(M, D) of the training images and (N, D) of the new ones, as the probe's head reads them."""
        stages = self.probe().stages
        assert self.reference.table is not None
        return (
            self.reference.table.load(stages).astype(np.float64),
            self.new.features(stages).astype(np.float64),
        )


Remedy = Callable[[ShiftCase], Classifier]
"""Makes another model, or raises `Unfit`; whether it is used is for `guard` to say."""

REMEDIES: Registry[Remedy] = Registry("remedy")


def with_head(model: TransferModel, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> TransferModel:
    """A copy of a model with another head; the backbone's tensors are shared."""
    made = copy.copy(model)
    made._modules = dict(model._modules)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)))
        linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias, dtype=np.float32)))
    made.classifier = linear
    return made.eval()
