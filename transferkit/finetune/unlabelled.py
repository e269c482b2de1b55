"""Further losses from unlabelled images, added to that of each labelled batch: one per strategy that needs them.

Which unlabelled images belong to a step is a function of seed, epoch and batch. What such a loss learns of its own
(class proportions, a domain classifier) is in the checkpoints of a fit, and never in the returned network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from transferkit.core.registry import Registry
from transferkit.nn.stages import evaluating

if TYPE_CHECKING:
    from transferkit.finetune.module import TransferModule

__all__ = [
    "FURTHER_LOSSES",
    "DomainAdversarial",
    "FixMatch",
    "FurtherLoss",
    "UnlabelledBatches",
    "captured_inputs",
    "domain_weight",
    "pseudo_labels",
    "reverse_gradient",
]

CONFIDENT = 0.95
"""Probability from which a pseudo-label is used, as in FixMatch."""

UNLABELLED_PER_LABELLED = 2
"""Unlabelled images per labelled one in a FixMatch step. The paper has 7, and GPUs."""

MOMENTUM = 0.95
"""Of the running mean of predicted class proportions; an epoch of few labelled images has about ten steps."""

STEEPNESS = 10.0
"""Of the ramp of the domain loss (Ganin and Lempitsky, 2015)."""

HIDDEN, DOMAIN_LR = 64, 1e-3
"""Units of the domain classifier's hidden layer, and the learning rate of its own optimizer (AdamW)."""


class UnlabelledBatches(Protocol):
    """Batches of unlabelled images."""

    def __call__(self, size: int, *, epoch: int, batch: int, strong: bool) -> torch.Tensor:
        """(size, 3, S, S) uint8, a function of seed, epoch and batch; the same images weakly or strongly augmented."""
        ...


class FurtherLoss(Protocol):
    """A loss of unlabelled images."""

    def loss(self, module: TransferModule, features: torch.Tensor, batch: int) -> torch.Tensor:
        """A scalar to add to the loss of a labelled batch, of which the head has read these (n, D) features."""
        ...

    def end_step(self) -> None:
        """Update what it learns of its own, after the gradients of a batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


FURTHER_LOSSES: Registry[type[FixMatch] | type[DomainAdversarial]] = Registry("loss of unlabelled images")
"""Name of a strategy -> its loss."""


@contextmanager
def captured_inputs(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets the input of each call of a layer."""
    found: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()


def pseudo_labels(
    probabilities: torch.Tensor, *, proportions: torch.Tensor, predicted: torch.Tensor, threshold: float = CONFIDENT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pseudo-labels of images, and which of them are confident.

    Args:
        probabilities: (N, K), rows sum to 1.
        proportions: (K,) of the classes among labelled images, sum 1.
        predicted: (K,) mean prediction for unlabelled images, sum 1.
        threshold: Probability from which a label counts, after distribution alignment.

    Returns:
        (N,) int labels in [0, K); (N,) bool.

    References:
        Berthelot et al., ReMixMatch, ICLR 2020 (distribution alignment); Sohn et al., FixMatch, NeurIPS 2020.

    Example:
        >>> sure = torch.tensor([[0.97, 0.03], [0.6, 0.4]])
        >>> half = torch.tensor([0.5, 0.5])
        >>> [found.tolist() for found in pseudo_labels(sure, proportions=half, predicted=half)]
        [[0, 0], [True, False]]
    """
    aligned = probabilities * (proportions / predicted.clamp(min=1e-6))
    aligned = aligned / aligned.sum(dim=1, keepdim=True)
    confidence, labels = aligned.max(dim=1)
    return labels, confidence >= threshold


@FURTHER_LOSSES.register("fixmatch")
class FixMatch:
    """Cross-entropy of strongly augmented unlabelled images against confident pseudo-labels of weakly augmented ones.

    Args:
        batches: The unlabelled images.
        labels: (N,) int in [0, K) of the labelled images that are trained on.
        classes: K.
        seed: Unused, nothing is drawn.

    References:
        Sohn et al., NeurIPS 2020. Deviations: the network is pretrained and its head fitted in closed form, whose
        temperature was fitted to held-back images; two unlabelled images per labelled one instead of seven;
        distribution alignment with smoothed counts of the labelled images; normalisation does not see unlabelled ones.
    """

    frozen_passes: ClassVar[int] = UNLABELLED_PER_LABELLED  # of the network per labelled image, without gradients
    trained_passes: ClassVar[int] = UNLABELLED_PER_LABELLED

    def __init__(self, batches: UnlabelledBatches, labels: npt.NDArray[np.int64], *, classes: int, seed: int) -> None:
        self._batches = batches
        counts = np.bincount(labels, minlength=classes) + 1.0
        self.proportions = torch.from_numpy(counts / counts.sum()).float()
        self.predicted = self.proportions.clone()

    def loss(self, module: TransferModule, features: torch.Tensor, batch: int) -> torch.Tensor:
        """The mean over all unlabelled images of the step; those that are not confident count zero."""
        size, epoch = UNLABELLED_PER_LABELLED * len(features), module.current_epoch
        weak, strong = (
            self._batches(size, epoch=epoch, batch=batch, strong=which).to(module.device) for which in (False, True)
        )
        with evaluating(module.model):  # neither statistics nor dropout see unlabelled images
            with torch.no_grad():
                probabilities = module(weak).float().softmax(dim=1)
            logits = module(strong).float()
        labels, confident = pseudo_labels(
            probabilities, proportions=self.proportions.to(logits), predicted=self.predicted.to(logits)
        )
        self.predicted = MOMENTUM * self.predicted + (1 - MOMENTUM) * probabilities.mean(dim=0).cpu()
        module.log_mean("pseudo_labelled", confident.float().mean(), images=size)
        losses: torch.Tensor = functional.cross_entropy(logits, labels, reduction="none")
        return (losses * confident).mean()

    def end_step(self) -> None:
        """Nothing: the running mean is updated with the loss."""

    def state_dict(self) -> dict[str, Any]:
        """The running mean of the predictions."""
        return {"predicted": self.predicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.predicted = state["predicted"].cpu()


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.weight * gradients[0], None


def reverse_gradient(features: torch.Tensor, weight: float) -> torch.Tensor:
    """The same features, whose gradient is multiplied by -weight.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(3 * x, 0.5).sum().backward()
        >>> x.grad.tolist()
        [-1.5, -1.5]
    """
    reversed_: torch.Tensor = _Reverse.apply(features, weight)
    return reversed_


def domain_weight(progress: float) -> float:
    """Weight of the reversed gradient, from 0 to nearly 1, after a share of the training.

    Example:
        >>> domain_weight(0.0), round(domain_weight(0.5), 3), round(domain_weight(1.0), 4)
        (0.0, 0.987, 0.9999)
    """
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


@FURTHER_LOSSES.register("dann")
class DomainAdversarial:
    """How well a small classifier tells labelled from unlabelled images by the features of the deepest stage that is
    read; its gradient is reversed on the way to the network.

    Args:
        batches: Unlabelled images of the domain that the model will be used in.
        labels: Unused.
        classes: Unused.
        seed: Of the domain classifier.

    References:
        Ganin and Lempitsky, ICML 2015; Ganin et al., JMLR 2016. Deviations: features are standardised first, the domain
        classifier has one hidden layer and its own optimizer, and the learning rate follows the recipe's schedule.
    """

    frozen_passes: ClassVar[int] = 0
    trained_passes: ClassVar[int] = 1

    def __init__(self, batches: UnlabelledBatches, labels: npt.NDArray[np.int64], *, classes: int, seed: int) -> None:
        self._batches, self._seed = batches, seed
        self._classifier: nn.Sequential | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    def loss(self, module: TransferModule, features: torch.Tensor, batch: int) -> torch.Tensor:
        """Cross-entropy of the two domains, which count the same."""
        trainer = module.trainer
        steps = max(1, int(trainer.num_training_batches) * int(trainer.max_epochs or 1))
        weight = domain_weight((module.current_epoch * int(trainer.num_training_batches) + batch) / steps)
        pictures = self._batches(len(features), epoch=module.current_epoch, batch=batch, strong=False)
        with evaluating(module.model):  # statistics do not see unlabelled images
            target = module.features(pictures.to(module.device))
        both = torch.cat([_deepest(module, features), _deepest(module, target)])
        is_target = torch.cat([both.new_zeros(len(features)), both.new_ones(len(target))])
        classifier = self._open(both.shape[1], module.device)
        logits = classifier(reverse_gradient(both, weight))[:, 0]
        right = ((logits > 0) == (is_target > 0)).float().mean()
        module.log_mean("domain_accuracy", right, images=len(both))
        return functional.binary_cross_entropy_with_logits(logits, is_target)

    def _open(self, width: int, device: torch.device) -> nn.Sequential:
        """The domain classifier, made when the width of its input is known."""
        if self._classifier is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                made = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
            self._classifier = made.to(device)
            self._optimizer = torch.optim.AdamW(made.parameters(), lr=DOMAIN_LR)
            if self._saved is not None:
                made.load_state_dict(self._saved["classifier"])
                self._optimizer.load_state_dict(self._saved["optimizer"])
        return self._classifier

    def end_step(self) -> None:
        """Train the domain classifier on the gradients of the batch, unless they overflowed."""
        if self._classifier is None or self._optimizer is None:
            return
        gradients = [one.grad for one in self._classifier.parameters() if one.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The domain classifier and its optimizer; empty before the first step."""
        if self._classifier is None or self._optimizer is None:
            return {}
        return {"classifier": self._classifier.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._saved = state or None


def _deepest(module: TransferModule, features: torch.Tensor) -> torch.Tensor:
    """(n, C) the columns of the last stage that the head reads, standardised by the labelled images."""
    model = module.model
    channels = {stage.name: stage.channels for stage in model.backbone.stages}[model.stages[-1]]
    width = channels * len(model.pooling.split("+"))
    mean, scale = (getattr(model.classifier, name)[-width:] for name in ("mean", "scale"))
    standardised: torch.Tensor = (features[:, -width:] - mean) / scale * features.shape[1] ** 0.5
    return standardised.float()
