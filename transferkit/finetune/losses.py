"""Tasks and their losses.

`targets` defines valid targets, `scores` the metric of a split; `L2SP` can be added to any task's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from transferkit.core.errors import CheckpointError, DataError, OptionError, unknown_name
from transferkit.core.registry import Registry
from transferkit.finetune.scores import accuracy, mean_average_precision, r2
from transferkit.finetune.sharding import full_tensor, is_sharded, local, placed, sum_over_processes
from transferkit.finetune.targets import (
    check_batch_classes,
    check_batch_labels,
    check_batch_numbers,
    check_classes,
    check_labels,
    check_numbers,
    weigh_classes,
    weigh_labels,
    weigh_numbers,
)

__all__ = [
    "HUBER_DELTA",
    "L2SP",
    "TASKS",
    "Task",
    "l2_sp",
    "multi_label_loss",
    "regression_loss",
    "single_label_loss",
]

Array = npt.NDArray[Any]

HUBER_DELTA = 1.0
"""Error, in standard deviations of the target, above which a regression loss is linear; torch's default."""


class Loss(Protocol):
    """(N, K) outputs and their targets -> scalar."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor: ...


class BatchCheck(Protocol):
    """Raises `DataError` unless the targets of a batch fit the number of outputs; `values`: whether to read values."""

    def __call__(self, targets: Tensor, outputs: int, *, values: bool = True) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: loss, metric and target checks.

    Args:
        loss: Loss of a batch.
        metric: Name of the score, for display.
        make_score: K -> a new metric of outputs and targets of held-back images; higher is better.
        check: Raises `DataError` with all problems unless all targets fit the names of the K outputs.
        check_batch: Raises `DataError` unless the targets of a batch fit K outputs.
        weigh: Training targets, K and one of `CLASS_WEIGHTS` -> (K,) `weights` for the loss, or None.
    """

    loss: Loss
    metric: str
    make_score: Callable[[int], Metric]
    check: Callable[[Array, Sequence[str]], None]
    check_batch: BatchCheck
    weigh: Callable[[Array, int, str], npt.NDArray[np.float64] | None]


TASKS: Registry[Task] = Registry("task")
"""Name -> task."""


def single_label_loss(
    outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy, mean over the images; lower is better.

    The loss of an image with mixed classes is the mean of the single classes' losses, also with smoothing and weights.

    Args:
        outputs: (N, K) logits.
        targets: (N,) int in [0, K), or (N, K) float, class shares that sum to 1, as from mixup.
        smoothing: Share of a target that is spread over all K classes, in [0, 1).
        weights: (K,) weight of each class.

    References:
        Szegedy et al., CVPR 2016, for smoothing. Deviation from torch's `cross_entropy`: weights are not divided by
        their sum in the batch, which depends on the batch's composition, and apply to an image's whole smoothed target.

    Example:
        >>> round(single_label_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)  # log 4
        1.3863
    """
    _check_smoothing(smoothing)
    outputs, classes = _precise(outputs), outputs.shape[1]
    shares = targets if targets.is_floating_point() else F.one_hot(targets.long(), classes)
    shares = shares.to(outputs.dtype) if weights is None else shares * weights.to(outputs)
    smooth = (1 - smoothing) * shares + smoothing / classes * shares.sum(dim=1, keepdim=True)
    return F.cross_entropy(outputs, smooth)


def multi_label_loss(
    outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy, mean over images and labels; lower is better.

    Args:
        outputs: (N, K) logits.
        targets: (N, K) in [0, 1], as from mixup.
        smoothing: Moves targets towards 1/2 by this share, in [0, 1).
        weights: (K,) weight of each label's positives; negatives have weight 1.

    Example:
        >>> round(multi_label_loss(torch.zeros(3, 4), torch.ones(3, 4)).item(), 4)  # log 2
        0.6931
    """
    _check_smoothing(smoothing)
    outputs = _precise(outputs)
    targets = targets.to(outputs.dtype) * (1 - smoothing) + smoothing / 2
    positive = None if weights is None else weights.to(outputs)
    return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=positive)


def regression_loss(
    outputs: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    delta: float | None = HUBER_DELTA,
) -> Tensor:
    """Huber loss, or half the squared error, mean over images and targets; lower is better.

    Args:
        outputs: (N,) or (N, R).
        targets: (N,) or (N, R), standardised (`TargetScale`).
        smoothing: Must be 0, as there are no classes to smooth over.
        weights: (R,) weight of each target.
        delta: Error above which the loss is linear; None for squared error everywhere.

    Example:
        >>> regression_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0])).item()  # 1/2 and 3 - 1/2
        1.5
    """
    if smoothing:
        raise OptionError(f"Label smoothing must be 0 in a regression, got {smoothing!r}.")
    outputs = _columns(_precise(outputs))
    targets = _columns(targets).to(outputs.dtype)
    if outputs.shape != targets.shape:  # (N, 1) against (N,) would silently broadcast to (N, N)
        raise DataError(f"Outputs are {tuple(outputs.shape)}, targets {tuple(targets.shape)}: they must agree.")
    if delta is None:
        losses = 0.5 * F.mse_loss(outputs, targets, reduction="none")
    else:
        losses = F.huber_loss(outputs, targets, reduction="none", delta=delta)
    return losses.mean() if weights is None else (losses * weights.to(losses)).mean()


def _precise(outputs: Tensor) -> Tensor:
    """Outputs in float32 or wider: half precision rounds sums of exponentials and smoothing to a few digits."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _columns(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.ndim == 1 else values


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise OptionError(f"Label smoothing must be in [0, 1), got {smoothing!r}.")


TASKS.register("single_label")(
    Task(
        loss=single_label_loss,
        metric="accuracy",
        make_score=accuracy,
        check=check_classes,
        check_batch=check_batch_classes,
        weigh=weigh_classes,
    )
)
TASKS.register("multi_label")(
    Task(
        loss=multi_label_loss,
        metric="mean average precision",
        make_score=mean_average_precision,
        check=check_labels,
        check_batch=check_batch_labels,
        weigh=weigh_labels,
    )
)
TASKS.register("regression")(
    Task(
        loss=regression_loss,
        metric="R2",
        make_score=r2,
        check=check_numbers,
        check_batch=check_batch_numbers,
        weigh=weigh_numbers,
    )
)


def l2_sp(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], *, alpha: float, beta: float) -> Tensor:
    """alpha / 2 * |w - start|^2 + beta / 2 * |head|^2, a differentiable scalar.

    Args:
        parameters: Name -> value, of at least one parameter.
        start: Name -> value before training; parameters without one belong to the head.
        alpha: Strength of the pull to the start, >= 0.
        beta: Strength of the pull of the head to zero, >= 0.

    Example:
        >>> l2_sp({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, alpha=0.5, beta=0.0).item()
        1.0
    """
    penalty = next(iter(parameters.values())).new_zeros(())
    for name, value in parameters.items():
        if name in start:
            penalty = penalty + alpha / 2 * (value - start[name]).square().sum()
        else:
            penalty = penalty + beta / 2 * value.square().sum()
    return penalty


class L2SP:
    """L2-SP penalty: pulls trained parameters to their initial values and the head's to zero.

    Weight decay, which pulls all parameters to zero, must be off.

    Args:
        start: Name -> value before training, of all trained parameters except the head's; copied. After a resume the
            network no longer has these values: load the state.
        head: Names of the head's parameters.
        alpha: Strength of the pull to the start, >= 0.
        beta: Strength of the pull of the head to zero, >= 0.

    Raises:
        OptionError: If a strength is negative, or a name is in both.

    References:
        Li et al., ICML 2018, who train with SGD. Under Adam the gradient of the penalty is scaled per parameter, as
        for any L2 penalty (Loshchilov & Hutter, ICLR 2019).

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> penalty = L2SP({"weight": layer.weight}, head=["bias"], alpha=0.5, beta=0.0)
        >>> _ = layer.weight.data.add_(2.0)
        >>> round(penalty(dict(layer.named_parameters())).item(), 4)
        1.0
    """

    def __init__(self, start: Mapping[str, Tensor], *, head: Iterable[str], alpha: float, beta: float) -> None:
        if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
            raise OptionError(f"alpha and beta of L2-SP must be finite and >= 0, got {alpha!r} and {beta!r}.")
        self.alpha, self.beta = alpha, beta
        self.head = frozenset(head)
        self._start = {name: value.detach().clone() for name, value in start.items()}
        if both := self.head & self._start.keys():
            raise OptionError(f"A parameter must be in head or in start, but {min(both)!r} is in both.")

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The penalty, a differentiable scalar.

        Args:
            parameters: Name -> value, of at least one parameter; those without requires_grad are ignored.

        Raises:
            OptionError: If a trained parameter has no start and is not the head's.
        """
        learning = {name: value for name, value in parameters.items() if value.requires_grad}
        if strange := learning.keys() - self._start.keys() - self.head:
            known = [*self._start, *self.head]
            raise OptionError(unknown_name("parameter", min(strange), known, remedy="L2-SP has no start for it."))
        if not learning:
            return next(iter(parameters.values())).new_zeros(())
        self._start |= {name: placed(self._start[name], learning[name]) for name in learning.keys() & self._start}
        parts = {name: local(value) for name, value in learning.items()}
        start = {name: local(value) for name, value in self._start.items()}
        penalty = l2_sp(parts, start, alpha=self.alpha, beta=self.beta)
        return sum_over_processes(penalty) if any(map(is_sharded, learning.values())) else penalty

    def state_dict(self) -> dict[str, Any]:
        """The initial values."""
        return {"start": {name: full_tensor(value) for name, value in self._start.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the initial values of the resumed run.

        Raises:
            CheckpointError: If the state has other parameters.
        """
        start = state_dict["start"]
        if differ := start.keys() ^ self._start.keys():
            raise CheckpointError(
                f"The checkpoint's L2-SP start is of other parameters; {len(differ)} differ, such as {min(differ)!r}. "
                "Resume with the plan that the run was started with."
            )
        self._start = {name: start[name].detach().clone() for name in self._start}
