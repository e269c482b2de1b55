"""The loss and the score of a validation or test pass, as metrics of torchmetrics.

Both are of all images of a pass together, not means over its batches. The loss of one batch is in `losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities.data import dim_zero_cat

from transferkit.core.errors import DataError
from transferkit.measure import fit_temperature

__all__ = ["HeldBackLoss", "WholePassScore", "accuracy", "mean_average_precision", "r2"]

Array = npt.NDArray[Any]


class _WholePass(Metric):
    """Keeps the outputs and targets of a pass until they are needed together.

    Each process keeps those of its own images, and nothing is gathered. The mean over the processes, weighted by their
    numbers of images, is for the module to log (`EvaluatedModule.log_mean`).
    """

    is_differentiable = False
    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: (n, K) float outputs and their targets."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def all_outputs(self) -> Tensor:
        """(M, K) outputs of the images so far, in order."""
        return dim_zero_cat(self.outputs)

    def all_targets(self) -> Tensor:
        """Their targets."""
        return dim_zero_cat(self.targets)


class HeldBackLoss(_WholePass):
    """The loss over all images of a pass; lower is better.

    Args:
        loss: Of (M, K) outputs and their targets; takes `weights=`.
        weights: (K,) weight of each class, as `loss` takes it; None for none.
        calibrated: Whether outputs are logits of one class per image, to be divided by the temperature that fits them
            best: networks grow overconfident long before they grow less accurate, and the returned model is calibrated.

    Example:
        >>> loss = HeldBackLoss(lambda outputs, targets, weights: (outputs - targets).abs().max())
        >>> loss.update(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> loss.update(torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0], [0.0]]))
        >>> loss.compute().item()
        3.0
    """

    higher_is_better = False
    weights: Tensor | None

    def __init__(self, loss: Callable[..., Tensor], *, weights: Tensor | None = None, calibrated: bool = False) -> None:
        super().__init__()
        self.loss, self.calibrated = loss, calibrated
        self.register_buffer("weights", weights, persistent=False)

    def compute(self) -> Tensor:
        """The loss, a scalar."""
        outputs, targets = self.all_outputs(), self.all_targets()
        if self.calibrated:
            outputs = outputs / _temperature(outputs, targets)
        return self.loss(outputs, targets, weights=self.weights)


class WholePassScore(_WholePass):
    """A score that needs the outputs for all images of a pass at once; higher is better.

    Args:
        score: (M, K) outputs and their targets -> score.

    Example:
        >>> spread = WholePassScore(lambda outputs, targets: float(np.ptp(outputs - targets)))
        >>> spread.update(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        >>> spread.update(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        >>> spread.compute().item()
        3.0
    """

    higher_is_better = True

    def __init__(self, score: Callable[[Array, Array], float]) -> None:
        super().__init__()
        self.score = score

    def compute(self) -> Tensor:
        """The score, a float64 scalar on the CPU."""
        return torch.tensor(self.score(_array(self.all_outputs()), _array(self.all_targets())), dtype=torch.float64)


def accuracy(outputs: int) -> Metric:
    """Share of the images whose highest output, of K, is that of their class; in [0, 1], higher is better.

    Example:
        >>> metric = accuracy(3)
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """
    # Not validated: the targets of every batch were checked before.
    return MulticlassAccuracy(num_classes=outputs, average="micro", validate_args=False)


def mean_average_precision(outputs: int) -> Metric:
    """Average precision of K labels, mean over those that are on some image; in [0, 1], higher is better.

    Its `compute` raises a `DataError` if no label is on any image.

    References:
        Not torchmetrics' own, which takes sigmoids in single precision: large logits would become equal.
    """
    return WholePassScore(_mean_average_precision)


def r2(outputs: int) -> Metric:
    """Share of the variance of R targets that the outputs explain, mean over the targets; at most 1, higher is better.

    Its `compute` raises a `DataError` if there is one image only.

    References:
        Not torchmetrics' own, which subtracts sums of squares: numbers far from 0 would lose their digits.
    """
    return WholePassScore(_r2)


def _mean_average_precision(outputs: Array, targets: Array) -> float:
    from sklearn.metrics import average_precision_score

    seen = targets.any(axis=0)
    if not seen.any():
        raise DataError("No held-back image has any label, so labels cannot be judged. Hold back more images.")
    return float(average_precision_score(targets[:, seen], outputs[:, seen], average="macro"))


def _r2(outputs: Array, targets: Array) -> float:
    from sklearn.metrics import r2_score

    if len(targets) < 2:
        raise DataError(f"R2 needs 2 held-back images, got {len(targets)}. Hold back more images.")
    return float(r2_score(targets.reshape(len(targets), -1), outputs.reshape(len(targets), -1)))


def _temperature(outputs: Tensor, targets: Tensor) -> float:
    """What the logits are best divided by; 1 where they are not finite."""
    logits = outputs.cpu().double().numpy()
    return fit_temperature(logits, targets.cpu().numpy()) if np.isfinite(logits).all() else 1.0


def _array(tensor: Tensor) -> Array:
    # NumPy has no bfloat16, to which a trainer in half precision brings targets.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
